//! Reviewed differences between the kubelet and Berth. Pure but for reading the file.

use anyhow::{Context, Result, bail};
use std::{fs, path::Path};

/// One line: who, method and path (each may end with `*`), the kubelet's status, Berth's status, the reason.
#[derive(Debug)]
struct Difference {
    text: String,
    patterns: [String; 3],
    kubelet: u16,
    berth: u16,
}

/// The reviewed differences.
#[derive(Debug)]
pub(super) struct Differences(Vec<Difference>);

impl Differences {
    /// Reads the file.
    ///
    /// # Errors
    /// The file cannot be read, or a line has not every part.
    pub(super) fn read(path: &Path) -> Result<Differences> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Differences::parse(&text)
    }

    fn parse(text: &str) -> Result<Differences> {
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        let read = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [who, method, path, kubelet, berth, _, ..] = words.as_slice() else {
                bail!("a difference needs who, method, path, both statuses and a reason: {line}");
            };
            let code = |text: &str| text.parse().with_context(|| format!("{text} is no status: {line}"));
            Ok(Difference {
                text: line.to_owned(),
                patterns: [who, method, path].map(|part| (*part).to_owned()),
                kubelet: code(kubelet)?,
                berth: code(berth)?,
            })
        };
        Ok(Differences(lines.map(read).collect::<Result<_>>()?))
    }

    /// Number of lines.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The lines.
    pub(super) fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|difference| difference.text.as_str())
    }

    /// The line that allows a difference.
    pub(super) fn of(&self, tuple: &(String, String, String), kubelet: u16, berth: u16) -> Option<usize> {
        let parts = [&tuple.0, &tuple.1, &tuple.2];
        self.0.iter().position(|d| {
            (d.kubelet, d.berth) == (kubelet, berth)
                && d.patterns.iter().zip(parts).all(|(p, text)| fits(p, text))
        })
    }
}

/// Whether a text fits a pattern; `*` at the end stands for any rest.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => pattern == text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_allows_what_it_names_and_no_more() {
        let reviewed =
            Differences::parse("# why\n\n* GET /a* 301 404 no redirects\nx POST /b 404 403 a reason\n")
                .unwrap();
        let of = |who: &str, method: &str, path: &str, kubelet, berth| {
            reviewed.of(&(who.into(), method.into(), path.into()), kubelet, berth)
        };
        assert_eq!(of("y", "GET", "/ab", 301, 404), Some(0));
        assert_eq!(of("y", "GET", "/ab", 301, 403), None);
        assert_eq!(of("x", "POST", "/b", 404, 403), Some(1));
        assert_eq!((of("y", "POST", "/b", 404, 403), of("x", "POST", "/bc", 404, 403)), (None, None));
        assert_eq!((reviewed.len(), reviewed.lines().count()), (2, 2));
        assert!(
            Differences::parse("x GET /a 1 2").is_err() && Differences::parse("x GET /a b 2 why").is_err()
        );
    }
}
