//! Terminal sizes from the resize stream: JSON objects with `Width` and `Height`, one after the other. Pure.

use super::TerminalSize;
use serde::Deserialize;

/// The longest object, in bytes.
const LONGEST: usize = 256;

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

/// Reads sizes out of the stream's bytes, however they are cut.
#[derive(Debug, Default)]
pub(super) struct Sizes(Vec<u8>);

impl Sizes {
    /// Takes bytes and returns the last size that they complete: an older one matters no more. What is no size is
    /// passed over.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Option<TerminalSize> {
        let mut last = None;
        for byte in bytes {
            if self.0.is_empty() && *byte != b'{' {
                continue;
            }
            self.0.push(*byte);
            if *byte == b'}' || self.0.len() >= LONGEST {
                if let Ok(Size { width, height }) = serde_json::from_slice(&self.0) {
                    last = Some(TerminalSize { width, height });
                }
                self.0.clear();
            }
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(width: u16, height: u16) -> Option<TerminalSize> {
        Some(TerminalSize { width, height })
    }

    #[test]
    fn sizes_are_read_however_they_are_cut() {
        let text = b"{\"Width\":80,\"Height\":24}\n{\"Width\":100,\"Height\":50}\n";
        assert_eq!(Sizes::default().add(text), size(100, 50));
        let mut sizes = Sizes::default();
        let read: Vec<_> = text.iter().filter_map(|byte| sizes.add(&[*byte])).collect();
        assert_eq!(read.into_iter().map(Some).collect::<Vec<_>>(), [size(80, 24), size(100, 50)]);
    }

    #[test]
    fn what_is_no_size_is_passed_over_and_kept_short() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.add(&[b'{'; 100_000]), None);
        assert!(sizes.0.len() < LONGEST);
        assert_eq!(sizes.add(b"}{\"Width\":-1,\"Height\":1}x{\"Width\":1,\"Height\":2}"), size(1, 2));
    }
}
