//! The parameters of a request's query, as Go's `url.ParseQuery` reads them. Pure.

/// The parameters in their order. A pair with an invalid escape or a semicolon is left out.
pub(crate) fn pairs(query: Option<&str>) -> Vec<(String, String)> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty() && !pair.contains(';'));
    pairs
        .filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((unescape(name)?, unescape(value)?))
        })
        .collect()
}

/// The first value of a parameter.
pub(crate) fn first<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digit = |at: usize| after.get(at).and_then(|b| char::from(*b).to_digit(16));
                bytes.push(u8::try_from(digit(0)? * 16 + digit(1)?).ok()?);
                rest = after.get(2..)?;
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn queries_are_read_as_in_go() {
        let read = pairs(Some("a=1&b=x%20y+z&a=2&c&d=%zz&e=1;f=2&=v&&g=%C3%A4"));
        let text: Vec<String> = read.iter().map(|(name, value)| format!("{name}:{value}")).collect();
        assert_eq!(text, ["a:1", "b:x y z", "a:2", "c:", ":v", "g:ä"]);
        assert_eq!((first(&read, "a"), first(&read, "x")), (Some("1"), None));
        assert!(pairs(None).is_empty());
    }

    proptest! {
        #[test]
        fn no_query_makes_the_reader_panic(query in "[ -~]{0,60}") {
            prop_assert!(pairs(Some(&query)).len() <= query.len());
        }
    }
}
