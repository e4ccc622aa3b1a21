//! Mount options as users write them.

use crate::error::Error;
use berth_nfs_mount::InvalidOption;
pub(crate) use berth_nfs_mount::Options;

impl From<InvalidOption> for Error {
    fn from(error: InvalidOption) -> Error {
        Error::field("mount options", error.0)
    }
}
