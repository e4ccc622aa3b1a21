//! The input of setting up one volume.

use crate::PodFacts;
use berth_core::model::{Objects, Pod, Volume};

/// What a volume is set up from.
#[derive(Clone, Copy)]
pub(crate) struct VolumeInputs<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) volume: &'a Volume,
    pub(crate) facts: &'a PodFacts,
    pub(crate) objects: &'a Objects,
}
