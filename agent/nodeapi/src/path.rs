//! A request's path, decoded once. Pure.
//!
//! Routes and authorisation look at the same decoded segments, so that no two readings of one path differ. A path that
//! could be read in two ways is refused instead of cleaned: `.`, `..` and empty segments, an encoded slash, NUL.

/// A decoded path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestPath {
    /// The path from its first slash on, decoded.
    text: String,
}

impl RequestPath {
    /// Decodes the path of a request's target.
    ///
    /// # Errors
    /// The path can be read in two ways, or is no text; the reason.
    pub fn decode(raw: &str) -> Result<RequestPath, &'static str> {
        if !raw.starts_with('/') {
            return Err("the path does not begin with a slash");
        }
        let text = unescape(raw.as_bytes())?;
        let inner = text.strip_prefix('/').unwrap_or_default();
        let inner = inner.strip_suffix('/').unwrap_or(inner);
        for segment in inner.split('/') {
            match segment {
                "" if !text.eq("/") => return Err("the path has an empty segment"),
                "." | ".." => return Err("the path has a segment that leads elsewhere"),
                _ => {}
            }
        }
        Ok(RequestPath { text })
    }

    /// The whole path.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The segments; a slash at the end adds none.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.text.split('/').filter(|segment| !segment.is_empty())
    }

    /// Whether the path ends with a slash.
    pub fn is_directory(&self) -> bool {
        self.text.ends_with('/')
    }
}

/// Undoes percent-encoding.
fn unescape(raw: &[u8]) -> Result<String, &'static str> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |at: usize| after.get(at).and_then(|b| char::from(*b).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err("the path has an invalid escape");
        };
        match u8::try_from(high * 16 + low).unwrap_or_default() {
            b'/' => return Err("the path has an encoded slash"),
            byte => bytes.push(byte),
        }
        rest = after.get(2..).unwrap_or_default();
    }
    if bytes.contains(&0) {
        return Err("the path has a NUL");
    }
    String::from_utf8(bytes).map_err(|_invalid| "the path is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_decoded_once() {
        let of = |raw: &str| RequestPath::decode(raw).map(|path| path.as_str().to_owned());
        assert_eq!(of("/pods/").unwrap(), "/pods/");
        assert_eq!(of("/").unwrap(), "/");
        assert_eq!(of("/logs/a%20b%2525").unwrap(), "/logs/a b%25");
        for bad in
            ["", "*", "//", "/a//b", "//a", "/a/../b", "/a/%2e%2e/b", "/./a", "/a/..", "/a%2fb", "/a%2Fb"]
        {
            assert!(of(bad).is_err(), "{bad:?}");
        }
        for bad in ["/a%00", "/a%", "/a%2", "/a%zz", "/a%ff"] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
        let path = RequestPath::decode("/exec/ns/pod/").unwrap();
        assert_eq!(path.segments().collect::<Vec<_>>(), ["exec", "ns", "pod"]);
        assert!(path.is_directory());
    }

    proptest! {
        #[test]
        fn a_decoded_path_has_one_reading(raw in "[/a.%2efF0-9x]{0,30}") {
            if let Ok(path) = RequestPath::decode(&raw) {
                prop_assert!(!path.as_str().contains("//") && !path.as_str().contains('\0'));
                prop_assert!(path.segments().all(|segment| segment != "." && segment != ".."));
            }
        }
    }
}
