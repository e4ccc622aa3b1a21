//! Errors of calls.

use crate::{DriverName, VolumeId, transport::Failure};
use std::{fmt, path::PathBuf, time::Duration};
use tonic::Code;

/// A call of the driver. Shown as what the node wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// GetPluginInfo.
    GetPluginInfo,
    /// CreateVolume.
    CreateVolume,
    /// DeleteVolume.
    DeleteVolume,
    /// NodeGetInfo.
    NodeGetInfo,
    /// NodeGetCapabilities.
    NodeGetCapabilities,
    /// NodeStageVolume.
    NodeStageVolume,
    /// NodeUnstageVolume.
    NodeUnstageVolume,
    /// NodePublishVolume.
    NodePublishVolume,
    /// NodeUnpublishVolume.
    NodeUnpublishVolume,
    /// NodeGetVolumeStats.
    NodeGetVolumeStats,
    /// NodeExpandVolume.
    NodeExpandVolume,
}

impl Call {
    /// The path of the gRPC method.
    pub fn method(self) -> &'static str {
        match self {
            Call::GetPluginInfo => "/csi.v1.Identity/GetPluginInfo",
            Call::CreateVolume => "/csi.v1.Controller/CreateVolume",
            Call::DeleteVolume => "/csi.v1.Controller/DeleteVolume",
            Call::NodeGetInfo => "/csi.v1.Node/NodeGetInfo",
            Call::NodeGetCapabilities => "/csi.v1.Node/NodeGetCapabilities",
            Call::NodeStageVolume => "/csi.v1.Node/NodeStageVolume",
            Call::NodeUnstageVolume => "/csi.v1.Node/NodeUnstageVolume",
            Call::NodePublishVolume => "/csi.v1.Node/NodePublishVolume",
            Call::NodeUnpublishVolume => "/csi.v1.Node/NodeUnpublishVolume",
            Call::NodeGetVolumeStats => "/csi.v1.Node/NodeGetVolumeStats",
            Call::NodeExpandVolume => "/csi.v1.Node/NodeExpandVolume",
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Call::GetPluginInfo => "get the name and version",
            Call::CreateVolume => "create volume",
            Call::DeleteVolume => "delete volume",
            Call::NodeGetInfo => "get the node's info",
            Call::NodeGetCapabilities => "get the node service's capabilities",
            Call::NodeStageVolume => "stage volume",
            Call::NodeUnstageVolume => "unstage volume",
            Call::NodePublishVolume => "publish volume",
            Call::NodeUnpublishVolume => "unpublish volume",
            Call::NodeGetVolumeStats => "get statistics of volume",
            Call::NodeExpandVolume => "expand volume",
        })
    }
}

/// What a call was about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The driver that was called.
    pub driver: DriverName,
    /// The call.
    pub call: Call,
    /// The volume, for calls about one.
    pub volume: Option<VolumeId>,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.call)?;
        if let Some(volume) = &self.volume {
            write!(f, " {volume}")?;
        }
        write!(f, " by driver {}", self.driver)
    }
}

/// A call that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The driver refused or failed, and said so.
    #[error("cannot {subject}: {code:?}: {message}")]
    Refused {
        /// The call.
        subject: Subject,
        /// The driver's code.
        code: Code,
        /// The driver's text.
        message: String,
    },
    /// The driver did not answer in time.
    #[error("cannot {subject}: no answer within {} s", .within.as_secs_f32())]
    Deadline {
        /// The call.
        subject: Subject,
        /// The deadline.
        within: Duration,
    },
    /// The driver could not be reached, went away during the call, or sent what is no answer.
    #[error("cannot {subject}: no usable answer: {reason}")]
    NoAnswer {
        /// The call.
        subject: Subject,
        /// How the driver was lost, or why what it sent is no answer.
        reason: String,
    },
    /// The driver succeeded, and what it answered makes no sense.
    #[error("cannot {subject}: invalid answer: {reason}")]
    InvalidAnswer {
        /// The call.
        subject: Subject,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing was sent: a path is no UTF-8, so that no message can carry it.
    #[error("cannot {subject}: path {path:?} is not UTF-8")]
    Path {
        /// The call.
        subject: Subject,
        /// The path.
        path: PathBuf,
    },
}

impl Error {
    /// The failure of this call.
    pub(crate) fn of(subject: Subject, failure: Failure) -> Error {
        match failure {
            Failure::Refused(code, message) => Error::Refused { subject, code, message },
            Failure::Deadline(within) => Error::Deadline { subject, within },
            Failure::NoAnswer(reason) => Error::NoAnswer { subject, reason },
        }
    }

    /// Whether the state of the volume is known: the call did not begin, or it failed and is over. After any other
    /// error the call may still run or may have taken effect, so that what it does must be undone later even if it
    /// never succeeds.
    ///
    /// The codes are those of the kubelet (`isFinalError` in pkg/volume/csi/csi_client.go). Unlike there, a code counts
    /// only if the driver itself sent it: a connection that breaks has an uncertain end whatever code stands for it.
    pub fn is_final(&self) -> bool {
        match self {
            Error::Refused { code, .. } => !matches!(
                code,
                Code::Cancelled
                    | Code::DeadlineExceeded
                    | Code::Unavailable
                    | Code::ResourceExhausted
                    | Code::Aborted
            ),
            Error::Deadline { .. } | Error::NoAnswer { .. } | Error::InvalidAnswer { .. } => false,
            Error::Path { .. } => true,
        }
    }

    /// The code that the driver answered with; `None` if it did not.
    pub fn code(&self) -> Option<Code> {
        match self {
            Error::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// The code by which others count the failure: the driver's, or the one that a gRPC client gives a call without an
    /// answer. An answer that makes no sense came with success.
    pub fn counted_as(&self) -> Code {
        match self {
            Error::Refused { code, .. } => *code,
            Error::Deadline { .. } => Code::DeadlineExceeded,
            Error::NoAnswer { .. } => Code::Unavailable,
            Error::InvalidAnswer { .. } => Code::Ok,
            Error::Path { .. } => Code::InvalidArgument,
        }
    }

    /// The call that failed.
    pub fn subject(&self) -> &Subject {
        match self {
            Error::Refused { subject, .. }
            | Error::Deadline { subject, .. }
            | Error::NoAnswer { subject, .. }
            | Error::InvalidAnswer { subject, .. }
            | Error::Path { subject, .. } => subject,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject {
        let volume = VolumeId::new("pv-1").ok();
        Subject { driver: DriverName::parse("nfs.example").unwrap(), call: Call::NodePublishVolume, volume }
    }

    fn refused(code: Code) -> Error {
        Error::Refused { subject: subject(), code, message: "no such share".into() }
    }

    #[test]
    fn the_text_names_call_volume_and_driver() {
        let error = refused(Code::NotFound);
        assert_eq!(
            error.to_string(),
            "cannot publish volume pv-1 by driver nfs.example: NotFound: no such share"
        );
        let error = Error::Deadline { subject: subject(), within: Duration::from_millis(2500) };
        assert_eq!(
            error.to_string(),
            "cannot publish volume pv-1 by driver nfs.example: no answer within 2.5 s"
        );
        let info = Subject { call: Call::NodeGetInfo, volume: None, ..subject() };
        let error = Error::NoAnswer { subject: info, reason: "closed".into() };
        assert_eq!(
            error.to_string(),
            "cannot get the node's info by driver nfs.example: no usable answer: closed"
        );
    }

    #[test]
    fn five_codes_leave_the_state_unknown() {
        let uncertain: Vec<i32> = (1..=16).filter(|n| !refused(Code::from_i32(*n)).is_final()).collect();
        // Cancelled, DeadlineExceeded, ResourceExhausted, Aborted, Unavailable.
        assert_eq!(uncertain, [1, 4, 8, 10, 14]);
        assert!(!Error::NoAnswer { subject: subject(), reason: String::new() }.is_final());
        assert!(Error::Path { subject: subject(), path: PathBuf::new() }.is_final());
    }
}
