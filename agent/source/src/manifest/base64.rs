//! Fields whose values are base64: decoded before the object is, because Go's decoder is more lenient than
//! that of the generated types.

use crate::convert::field::{FieldError, FieldPath, kind_of};
use serde_json::Value;
use std::{borrow::Cow, collections::BTreeMap};

/// Decoded bytes by key.
pub(super) type Data = BTreeMap<String, Vec<u8>>;

/// The object without the values of a field of base64 texts, and those values decoded. Line ends in a base64
/// text are ignored, as by Go's decoder.
pub(super) fn without_bytes<'v>(
    at: &FieldPath<'_>,
    value: &'v Value,
    field: &str,
) -> Result<(Cow<'v, Value>, Data), FieldError> {
    let mut decoded = BTreeMap::new();
    let Some(Value::Object(texts)) = value.get(field) else { return Ok((Cow::Borrowed(value), decoded)) };
    let at = &at.key(field);
    for (key, text) in texts {
        let at = &at.key(key);
        let bytes = match text {
            Value::Null => Vec::new(),
            Value::String(text) => base64(text).map_err(|why| at.error(why))?,
            other => {
                let other = kind_of(other);
                return Err(at.error(format!("must be a base64 text, not {other}")));
            }
        };
        decoded.insert(key.clone(), bytes);
    }
    let mut value = value.clone();
    if let Some(texts) = value.get_mut(field) {
        *texts = Value::Null;
    }
    Ok((Cow::Owned(value), decoded))
}

/// Decodes base64 of the standard alphabet with padding.
fn base64(text: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held, mut padding, mut count) = (0_u32, 0_u32, 0_usize, 0_usize);
    for (place, byte) in text.bytes().enumerate() {
        let value = match byte {
            b'\r' | b'\n' => continue,
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => {
                padding = padding.saturating_add(1);
                count = count.saturating_add(1);
                continue;
            }
            _ => {
                let found = text.get(place..).and_then(|t| t.chars().next()).unwrap_or_default();
                return Err(format!(
                    "is no base64: {found:?} at byte {place}; plain text goes into stringData or data"
                ));
            }
        };
        if padding > 0 {
            return Err(format!("is no base64: something follows the padding at byte {place}"));
        }
        count = count.saturating_add(1);
        held = (held << 6 | u32::from(value)) & 0xff_ffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push(u8::try_from(held >> bits & 0xff).unwrap_or_default());
        }
    }
    let wanted = [0, 9, 2, 1];
    let rest = count.saturating_sub(padding) % 4;
    if count % 4 != 0 || wanted.get(rest) != Some(&padding) {
        return Err("is no base64: it is cut off, or its padding ('=') is not right".to_owned());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded_as_go_decodes_it() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("YQ==", b"a"),
            ("YWI=", b"ab"),
            ("YWJj", b"abc"),
            ("YWJj\n", b"abc"),
            ("YW\r\nJj\n", b"abc"),
            ("YQ=\n=", b"a"),
            ("AAEC/+8=", &[0, 1, 2, 0xff, 0xef]),
            // The unused bits of the last character may be set.
            ("YR==", b"a"),
        ] {
            assert_eq!(base64(text).as_deref(), Ok(bytes), "{text:?}");
        }
        for bad in ["YQ", "YQ=", "Y===", "=", "====", "YQ==YQ==", "a b=", "_-A=", "ä"] {
            assert!(base64(bad).unwrap_err().starts_with("is no base64"), "{bad:?}");
        }
    }
}
