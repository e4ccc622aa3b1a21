//! Reading of a transfer's progress messages: which layers there are and how far each is. Pure.

use crate::wire;
use berth_core::image::{LayerProgress, LayerState, PullProgress};
use containerd_client::types::transfer::Progress;
use prost::Message;
use prost_types::Any;
use std::collections::HashMap;

/// The most layers that are shown. An image has at most 127 for overlayfs.
const MAX_LAYERS: usize = 512;
/// The most parts of a pull whose movement is watched.
const MAX_PARTS: usize = 4096;

/// The progress of one transfer.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    progress: PullProgress,
    /// The last message of each part, by which a repeated one is known.
    last: HashMap<String, (String, i64)>,
}

fn state_of(event: &str) -> Option<LayerState> {
    Some(match event {
        "waiting" => LayerState::Waiting,
        "downloading" => LayerState::Downloading,
        "complete" => LayerState::Downloaded,
        "extracting" => LayerState::Extracting,
        "extracted" => LayerState::Extracted,
        "already exists" => LayerState::Present,
        _ => return None,
    })
}

impl Tracker {
    /// Takes a message; whether anything has moved. A message that says the same again is none of progress.
    pub(super) fn take(&mut self, any: &Any) -> bool {
        if wire::type_name(any) != "containerd.types.transfer.Progress" {
            return false;
        }
        let Ok(message) = Progress::decode(any.value.as_slice()) else { return false };
        let key = if message.name.is_empty() { message.event.clone() } else { message.name.clone() };
        let now = (message.event.clone(), message.progress);
        if self.last.get(&key) == Some(&now) || self.last.len() >= MAX_PARTS && !self.last.contains_key(&key)
        {
            return false;
        }
        self.last.insert(key, now);
        self.note_layer(&message);
        true
    }

    fn note_layer(&mut self, message: &Progress) {
        let Some(digest) = message.name.strip_prefix("layer-") else { return };
        let Some(state) = state_of(&message.event) else { return };
        let number = |n: i64| u64::try_from(n).unwrap_or(0);
        let new = LayerProgress {
            digest: digest.to_owned(),
            state,
            done: number(message.progress),
            total: number(message.total),
        };
        let layers = &mut self.progress.layers;
        match layers.iter().position(|l| l.digest == digest).and_then(|at| layers.get_mut(at)) {
            Some(known) => *known = new,
            None => {
                layers.push(new);
                layers.truncate(MAX_LAYERS);
            }
        }
    }

    pub(super) fn progress(&self) -> &PullProgress {
        &self.progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_client::to_any;
    use proptest::prelude::*;

    fn message(event: &str, name: &str, progress: i64) -> Any {
        let (event, name) = (event.to_owned(), name.to_owned());
        to_any(&Progress { event, name, progress, total: 100, ..Progress::default() })
    }

    #[test]
    fn layers_advance_and_repeats_are_no_progress() {
        let mut tracker = Tracker::default();
        for (event, progress, state) in [
            ("waiting", 0, LayerState::Waiting),
            ("downloading", 40, LayerState::Downloading),
            ("downloading", 80, LayerState::Downloading),
            ("complete", 100, LayerState::Downloaded),
            ("extracting", 5, LayerState::Extracting),
            ("extracted", 100, LayerState::Extracted),
        ] {
            assert!(tracker.take(&message(event, "layer-sha256:aa", progress)), "{event}");
            assert!(!tracker.take(&message(event, "layer-sha256:aa", progress)), "{event} again");
            let layer = &tracker.progress().layers[0];
            assert_eq!((layer.state, layer.digest.as_str(), layer.total), (state, "sha256:aa", 100));
        }
        assert!(tracker.take(&message("waiting", "config-sha256:bb", 0)), "it moves, and is no layer");
        assert!(tracker.take(&message("Resolving from OCI Registry", "", 0)));
        assert_eq!(tracker.progress().layers.len(), 1);
    }

    proptest! {
        #[test]
        fn no_message_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let any = Any { value: bytes, ..message("waiting", "layer-x", 0) };
            Tracker::default().take(&any);
        }
    }
}
