//! Header blocks after decompression: a count, then names and values, each behind its length.

use crate::Error;

/// The most headers of one block.
const COUNT: u32 = 100;

/// Headers of a stream, in the order of their block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Headers with these lower-case names and values.
    pub fn of(list: &[(&str, &str)]) -> Headers {
        Headers(list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    /// The first value of the header of this name, in lower case; empty values count as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        value.split('\0').next().filter(|first| !first.is_empty())
    }

    /// Reads a block, which has to end with its last header.
    pub(crate) fn parse(mut block: &[u8]) -> Result<Headers, Error> {
        let count = number(&mut block)?;
        if count > COUNT {
            return Err(Error::Headers("too many headers"));
        }
        let mut list: Vec<(String, String)> = Vec::new();
        for _ in 0..count {
            let name = text(&mut block)?;
            let value = text(&mut block)?;
            if name.is_empty() || name.chars().any(|c| c.is_ascii_uppercase()) {
                return Err(Error::Headers("a name is empty or not in lower case"));
            }
            if list.iter().any(|(known, _)| *known == name) {
                return Err(Error::Headers("a name stands there twice"));
            }
            list.push((name, value));
        }
        if block.is_empty() { Ok(Headers(list)) } else { Err(Error::Headers("bytes follow the last header")) }
    }

    /// Appends the block's bytes.
    pub(crate) fn write(&self, to: &mut Vec<u8>) {
        let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
        to.extend_from_slice(&length(self.0.len()));
        for (name, value) in &self.0 {
            for text in [name, value] {
                to.extend_from_slice(&length(text.len()));
                to.extend_from_slice(text.as_bytes());
            }
        }
    }
}

fn number(block: &mut &[u8]) -> Result<u32, Error> {
    let (head, rest) = block.split_first_chunk::<4>().ok_or(Error::Headers("it ends within a number"))?;
    *block = rest;
    Ok(u32::from_be_bytes(*head))
}

fn text(block: &mut &[u8]) -> Result<String, Error> {
    let length = usize::try_from(number(block)?).unwrap_or(usize::MAX);
    let (text, rest) = block.split_at_checked(length).ok_or(Error::Headers("it ends within a text"))?;
    *block = rest;
    Ok(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(headers: &Headers) -> Vec<u8> {
        let mut bytes = Vec::new();
        headers.write(&mut bytes);
        bytes
    }

    #[test]
    fn a_block_is_read_back_and_a_cut_one_is_an_error() {
        let headers = Headers::of(&[("streamtype", "data"), ("port", "80"), ("list", "a\0b"), ("none", "")]);
        let bytes = block(&headers);
        assert_eq!(Headers::parse(&bytes), Ok(headers.clone()));
        assert_eq!((headers.get("list"), headers.get("none"), headers.get("gone")), (Some("a"), None, None));
        for cut in 0..bytes.len() {
            assert!(Headers::parse(&bytes[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn twins_upper_case_and_lies_about_lengths_are_errors() {
        assert!(Headers::parse(&block(&Headers::of(&[("a", "1"), ("a", "2")]))).is_err());
        assert!(Headers::parse(&block(&Headers::of(&[("A", "1")]))).is_err());
        assert!(Headers::parse(&block(&Headers::of(&[("", "1")]))).is_err());
        assert!(Headers::parse(&[0xff; 12]).is_err());
        assert!(Headers::parse(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]).is_err());
        assert!(Headers::parse(&[0, 0, 0, 0, 7]).is_err());
    }
}
