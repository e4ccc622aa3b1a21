//! The state of a pull: its layers and how far each is. And times as Go writes them, which events about pulls hold.

use serde::{Deserialize, Serialize};
use std::{fmt::Write, time::Duration};

/// How far a pull is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullProgress {
    /// The layers in the order in which they became known.
    pub layers: Vec<LayerProgress>,
}

/// How far a layer of a pull is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerProgress {
    /// The layer's digest.
    pub digest: String,
    /// What is done with it.
    pub state: LayerState,
    /// Bytes that are done in this state.
    pub done: u64,
    /// Bytes of the layer.
    pub total: u64,
}

/// What is done with a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerState {
    /// It waits to be fetched.
    Waiting,
    /// It is being fetched.
    Downloading,
    /// It is fetched.
    Downloaded,
    /// It is being unpacked.
    Extracting,
    /// It is unpacked.
    Extracted,
    /// It was there before.
    Present,
}

impl LayerProgress {
    /// Whether the layer is unpacked or was there before.
    pub fn is_finished(&self) -> bool {
        matches!(self.state, LayerState::Extracted | LayerState::Present)
    }
}

impl PullProgress {
    /// Bytes of all known layers.
    pub fn total(&self) -> u64 {
        self.layers.iter().map(|l| l.total).fold(0, u64::saturating_add)
    }

    /// Bytes of the known layers that are on this node.
    pub fn fetched(&self) -> u64 {
        let bytes = |l: &LayerProgress| match l.state {
            LayerState::Waiting => 0,
            LayerState::Downloading => l.done.min(l.total),
            _ => l.total,
        };
        self.layers.iter().map(bytes).fold(0, u64::saturating_add)
    }

    /// Number of the layers that are unpacked or were there before.
    pub fn finished(&self) -> usize {
        self.layers.iter().filter(|l| l.is_finished()).count()
    }
}

/// A time as Go's `Duration` writes it, cut to milliseconds: `1.234s`, `532ms`, `1m2.5s`.
pub fn go_duration(time: Duration) -> String {
    let millis = time.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (hours, minutes, rest) = (millis / 3_600_000, millis / 60_000 % 60, millis % 60_000);
    let mut text = String::new();
    // Writing to a text does not fail.
    if hours > 0 {
        write!(text, "{hours}h").unwrap_or_default();
    }
    if hours > 0 || minutes > 0 {
        write!(text, "{minutes}m").unwrap_or_default();
    }
    let fraction = format!("{:03}", rest % 1000);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    write!(text, "{}{point}{fraction}s", rest / 1000).unwrap_or_default();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_writes_them() {
        for (millis, text) in [
            (0, "0s"),
            (7, "7ms"),
            (999, "999ms"),
            (1000, "1s"),
            (1230, "1.23s"),
            (61_005, "1m1.005s"),
            (3_600_000, "1h0m0s"),
            (3_725_500, "1h2m5.5s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn bytes_count_as_they_come() {
        let layer = |state, done| LayerProgress { digest: "d".into(), state, done, total: 100 };
        let layers = vec![
            layer(LayerState::Waiting, 0),
            layer(LayerState::Downloading, 40),
            layer(LayerState::Extracting, 10),
            layer(LayerState::Present, 0),
        ];
        let progress = PullProgress { layers };
        assert_eq!((progress.fetched(), progress.total(), progress.finished()), (240, 400, 1));
    }
}
