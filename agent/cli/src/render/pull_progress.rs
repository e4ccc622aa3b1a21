//! Progress of a pull: a bar for each layer on a terminal, and a line for each finished layer elsewhere.

use super::images::bytes;
use berth_core::image::{LayerProgress, LayerState, PullProgress};
use std::collections::BTreeMap;

/// Width of a bar in columns.
const BAR: usize = 24;
/// The most bars at once; further layers are counted in the last line.
const MOST_BARS: usize = 16;
/// The narrowest terminal with bars.
const NARROWEST: usize = 70;

/// The lines on the screen.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    terminal: bool,
    drawn: usize,
    told: BTreeMap<String, LayerState>,
}

impl Lines {
    /// For a terminal of that many columns, or for a file.
    pub(crate) fn new(columns: Option<usize>) -> Lines {
        Lines { terminal: columns.is_some_and(|c| c >= NARROWEST), ..Lines::default() }
    }

    /// The text that shows the progress after what was shown before.
    pub(crate) fn step(&mut self, progress: &PullProgress) -> String {
        if self.terminal { self.bars(progress) } else { self.lines(progress) }
    }

    fn bars(&mut self, progress: &PullProgress) -> String {
        let mut text = if self.drawn > 0 { format!("\x1b[{}A", self.drawn) } else { String::new() };
        let open = progress.layers.iter().filter(|l| !l.is_finished());
        let mut rows: Vec<String> = open.take(MOST_BARS).map(bar).collect();
        let (done, all) = (progress.finished(), progress.layers.len());
        let (fetched, total) = (bytes(progress.fetched()), bytes(progress.total()));
        rows.push(format!("{done} of {all} layers done, {fetched} of {total}"));
        // Rows that are not needed any more are cleared.
        rows.resize(rows.len().max(self.drawn), String::new());
        for row in &rows {
            text.push_str(&format!("\x1b[2K{row}\n"));
        }
        self.drawn = rows.len();
        text
    }

    fn lines(&mut self, progress: &PullProgress) -> String {
        let mut text = String::new();
        for layer in &progress.layers {
            let told = self.told.get(&layer.digest).copied();
            let word = match layer.state {
                LayerState::Present => "is present",
                LayerState::Downloaded | LayerState::Extracting => "is fetched",
                LayerState::Extracted => "is unpacked",
                LayerState::Waiting | LayerState::Downloading => continue,
            };
            let same = |told| matches!((told, layer.state), (LayerState::Downloaded, LayerState::Extracting));
            if told.is_some_and(|told| told >= layer.state || same(told)) {
                continue;
            }
            self.told.insert(layer.digest.clone(), layer.state);
            text.push_str(&format!("{} {word} ({})\n", short(&layer.digest), bytes(layer.total)));
        }
        text
    }
}

/// One line about a pull, for tables of pods.
pub(crate) fn summary(image: &str, progress: &PullProgress) -> String {
    if progress.layers.is_empty() {
        return format!("pulling {image}");
    }
    let (done, all) = (progress.finished(), progress.layers.len());
    let (fetched, total) = (bytes(progress.fetched()), bytes(progress.total()));
    format!("pulling {image}: {done} of {all} layers, {fetched} of {total}")
}

fn short(digest: &str) -> String {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.chars().filter(char::is_ascii_alphanumeric).take(12).collect()
}

fn bar(layer: &LayerProgress) -> String {
    let word = match layer.state {
        LayerState::Waiting => "waiting",
        LayerState::Downloading => "fetching",
        LayerState::Downloaded => "fetched",
        LayerState::Extracting => "unpacking",
        LayerState::Extracted => "unpacked",
        LayerState::Present => "present",
    };
    let done = if layer.state == LayerState::Downloaded { layer.total } else { layer.done.min(layer.total) };
    let filled = match usize::try_from(done.saturating_mul(BAR as u64).checked_div(layer.total).unwrap_or(0))
    {
        Ok(filled) => filled.min(BAR),
        Err(_) => BAR,
    };
    let (full, empty) = ("=".repeat(filled), " ".repeat(BAR - filled));
    format!(
        "{:<12}  {word:<9}  [{full}{empty}]  {} of {}",
        short(&layer.digest),
        bytes(done),
        bytes(layer.total)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(states: &[(LayerState, u64)]) -> PullProgress {
        let layer = |(n, (state, done)): (usize, &(LayerState, u64))| LayerProgress {
            digest: format!("sha256:{n}123456789abcdef"),
            state: *state,
            done: *done,
            total: 2048,
        };
        PullProgress { layers: states.iter().enumerate().map(layer).collect() }
    }

    #[test]
    fn a_terminal_gets_bars_that_are_drawn_again_in_place() {
        let mut lines = Lines::new(Some(80));
        let first = lines.step(&progress(&[(LayerState::Downloading, 1024), (LayerState::Waiting, 0)]));
        assert!(first.contains("0123456789ab  fetching"), "{first}");
        assert!(first.contains("[============            ]  1.0 KiB of 2.0 KiB\n"), "{first}");
        assert!(first.ends_with("0 of 2 layers done, 1.0 KiB of 4.0 KiB\n"), "{first}");
        let next = lines.step(&progress(&[(LayerState::Extracted, 2048), (LayerState::Waiting, 0)]));
        assert!(next.starts_with("\x1b[3A"), "{next:?}");
        assert_eq!(next.matches('\n').count(), 3, "a line that is gone is cleared: {next:?}");
    }

    #[test]
    fn a_file_gets_a_line_for_each_finished_step() {
        let mut lines = Lines::new(None);
        assert_eq!(
            lines.step(&progress(&[(LayerState::Downloading, 1024), (LayerState::Present, 0)])),
            "1123456789ab is present (2.0 KiB)\n"
        );
        assert_eq!(
            lines.step(&progress(&[(LayerState::Downloaded, 0)])),
            "0123456789ab is fetched (2.0 KiB)\n"
        );
        assert_eq!(lines.step(&progress(&[(LayerState::Extracting, 5)])), "");
        assert_eq!(
            lines.step(&progress(&[(LayerState::Extracted, 5)])),
            "0123456789ab is unpacked (2.0 KiB)\n"
        );
        assert_eq!(lines.step(&progress(&[(LayerState::Extracted, 5)])), "");
    }

    #[test]
    fn one_line_tells_of_a_pull() {
        assert_eq!(summary("i:1", &PullProgress::default()), "pulling i:1");
        let half = progress(&[(LayerState::Present, 0), (LayerState::Downloading, 1024)]);
        assert_eq!(summary("i:1", &half), "pulling i:1: 1 of 2 layers, 3.0 KiB of 4.0 KiB");
    }
}
