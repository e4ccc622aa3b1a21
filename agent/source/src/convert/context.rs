//! What the fields of a pod's containers are checked against, and the treatment of values that the kubelet ignores.

use super::field::FieldError;
use berth_core::ids::VolumeName;
use std::{cell::RefCell, collections::BTreeSet};

/// Treatment of meaningless values that the kubelet ignores, such as the name of an unknown capability.
pub(crate) struct IgnoredValues {
    refuse: bool,
    errors: RefCell<Vec<FieldError>>,
}

impl IgnoredValues {
    /// An ignored value is an error.
    pub(crate) fn refused() -> IgnoredValues {
        IgnoredValues { refuse: true, errors: RefCell::default() }
    }

    /// An ignored value is skipped; its error is kept for a warning.
    pub(crate) fn collected() -> IgnoredValues {
        IgnoredValues { refuse: false, errors: RefCell::default() }
    }

    /// Reports an ignored value.
    pub(super) fn ignore(&self, error: FieldError) -> Result<(), FieldError> {
        if self.refuse {
            return Err(error);
        }
        self.errors.borrow_mut().push(error);
        Ok(())
    }

    /// The errors about values that were skipped.
    pub(super) fn into_errors(self) -> Vec<FieldError> {
        self.errors.into_inner()
    }
}

/// What a container's fields are checked against.
pub(super) struct PodContext {
    pub(super) ignored: IgnoredValues,
    /// The names of the pod's volumes.
    pub(super) volumes: BTreeSet<VolumeName>,
    pub(super) host_network: bool,
    pub(super) grace_seconds: u32,
}
