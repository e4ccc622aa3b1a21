//! The statistics of a node that reads none.

use berth_nodeapi::{Boxed, Statistics, Unavailable};

/// Answers that there are none.
pub(super) struct NoStatistics;

type Answer<'a, T> = Boxed<'a, Result<T, Unavailable>>;

fn none<'a, T: Send + 'a>() -> Answer<'a, T> {
    Box::pin(async { Err(Unavailable("this node has no statistics".to_owned())) })
}

impl Statistics for NoStatistics {
    fn summary(&self, _: bool) -> Answer<'_, bytes::Bytes> {
        none()
    }

    fn metrics(&self) -> Answer<'_, bytes::Bytes> {
        none()
    }

    fn cadvisor(&self) -> Answer<'_, bytes::Bytes> {
        none()
    }

    fn resource(&self) -> Answer<'_, bytes::Bytes> {
        none()
    }

    fn probes(&self) -> Answer<'_, bytes::Bytes> {
        none()
    }
}
