//! Reader of container log files, independent of the project's own reader.

use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Every log file of one run of a container, oldest first: `<n>.log.<time>[.gz]`, then `<n>.log`.
///
/// # Errors
/// The directory cannot be read.
pub fn rotated_set(dir: &Path, run: u32) -> Result<Vec<PathBuf>> {
    let current = format!("{run}.log");
    let mut old: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with(&format!("{current}.")) && !name.ends_with(".tmp") {
            old.push(path);
        }
    }
    old.sort();
    old.push(dir.join(current));
    Ok(old)
}

/// Output of a stream (`stdout`, `stderr`) of a run from all log files, with partial lines joined.
///
/// # Errors
/// A line is not in the CRI format, or a file cannot be read.
pub fn text(dir: &Path, run: u32, stream: &str) -> Result<String> {
    let mut text = String::new();
    for file in rotated_set(dir, run)? {
        let bytes = if file.extension().is_some_and(|e| e == "gz") {
            let out = Command::new("/bin/busybox").arg("zcat").arg(&file).output().context("run zcat")?;
            ensure!(out.status.success(), "{} does not unpack", file.display());
            out.stdout
        } else {
            fs::read(&file).with_context(|| format!("read {}", file.display()))?
        };
        for line in String::from_utf8_lossy(&bytes).lines() {
            let mut words = line.splitn(4, ' ');
            let (Some(_time), Some(of), Some(tag)) = (words.next(), words.next(), words.next()) else {
                bail!("{}: not a line of CRI's format: {line:?}", file.display());
            };
            if of == stream {
                text.push_str(words.next().unwrap_or_default());
                match tag {
                    "F" => text.push('\n'),
                    "P" => {}
                    _ => bail!("{}: unknown tag in {line:?}", file.display()),
                }
            }
        }
    }
    Ok(text)
}

/// Checks that the lines begin with 1, 2, 3, … each once and in order, and returns their number. The last
/// line may be unfinished.
///
/// # Errors
/// A number is missing, twice or out of order.
pub fn numbered(text: &str) -> Result<u64> {
    let (first, last) = numbered_from(text)?;
    ensure!(first <= 1, "the first line is {first}");
    Ok(last)
}

/// Checks the same where rotation may have removed the oldest lines. Returns the first and the last number;
/// zeros where there is no line.
///
/// # Errors
/// A number is missing, twice or out of order.
pub fn numbered_from(text: &str) -> Result<(u64, u64)> {
    let (mut first, mut last) = (0, 0);
    for line in text.split_inclusive('\n').filter(|l| l.ends_with('\n')) {
        let number: Option<u64> = line.split_whitespace().next().and_then(|w| w.parse().ok());
        let shown: String = line.chars().take(40).collect();
        match number {
            Some(n) if last == 0 => first = n,
            Some(n) if n == last + 1 => {}
            _ => bail!("after line {last} comes {shown:?}"),
        }
        last = number.unwrap_or(0);
    }
    Ok((first, last))
}

/// Difference between the lines and 1, 2, 3, …: bytes of missing lines and bytes of repeated lines, each line
/// `width` bytes wide. An incomplete line (cut where a reader died) counts as missing.
pub fn damage(text: &str, width: u64) -> (u64, u64) {
    let (mut expected, mut missing, mut again) = (1_u64, 0_u64, 0_u64);
    for line in text.lines() {
        let Some(n) = line.split_whitespace().next().and_then(|w| w.parse::<u64>().ok()) else { continue };
        if u64::try_from(line.len()).unwrap_or(0) + 1 != width {
            continue;
        }
        match n.checked_sub(expected) {
            Some(gap) => {
                missing += gap;
                expected = n + 1;
            }
            None => again += 1,
        }
    }
    (missing * width, again * width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_read_in_order_and_partial_lines_are_joined() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("0.log.20260101-000000"), "t stdout F 1 x\nt stderr F no\nt stdout P 2 ")
            .unwrap();
        fs::write(dir.path().join("0.log"), "t stdout F x\nt stdout F 3\n").unwrap();
        // The first file ends without a newline; the next line begins in the next file.
        let text = text(dir.path(), 0, "stdout").unwrap();
        assert_eq!(text, "1 x\n2 x\n3\n");
        assert_eq!(numbered(&text).unwrap(), 3);
    }

    #[test]
    fn gaps_and_repetitions_are_found() {
        assert!(numbered("1\n3\n").is_err());
        assert!(numbered("1\n1\n").is_err());
        assert!(numbered("2\n").is_err());
        assert_eq!(numbered("1\n2\n3").unwrap(), 2);
        assert_eq!(numbered_from("7\n8\n").unwrap(), (7, 8));
        assert_eq!(damage("1 x\n4 x\n3 x\n5 x\n", 4), (8, 4));
    }
}
