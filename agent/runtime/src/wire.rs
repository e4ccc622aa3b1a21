//! Messages and encodings of containerd's protocol that its client crate lacks.

use berth_core::time::Wall;
use prost_types::{Any, Timestamp};
use serde::Serialize;

/// `containerd.runc.v1.Options`: options for the runc shim of a container. Only the used fields.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RuncOptions {
    /// The runtime binary; empty for `runc` in the shim's `PATH`.
    #[prost(string, tag = "6")]
    pub(crate) binary_name: String,
    /// State directory of the runtime; empty for the shim's default.
    #[prost(string, tag = "7")]
    pub(crate) root: String,
    /// Whether systemd creates the cgroups.
    #[prost(bool, tag = "9")]
    pub(crate) systemd_cgroup: bool,
    /// Address of the task's shim, as `ttrpc+unix://<path>`; empty lets containerd start a shim.
    #[prost(string, tag = "12")]
    pub(crate) task_api_address: String,
    /// Version of the shim's task service.
    #[prost(uint32, tag = "13")]
    pub(crate) task_api_version: u32,
}

/// The version of the task service that the runc shim of containerd 2.x serves.
pub(crate) const TASK_API_VERSION: u32 = 3;

/// The type of [`RuncOptions`] as containerd registers it.
const OPTIONS_TYPE: &str = "containerd.runc.v1.Options";
/// The type of an OCI spec as containerd registers it: JSON.
pub(crate) const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// The type of an OCI process as containerd registers it: JSON.
pub(crate) const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// The type of the resources of an OCI spec as containerd registers it: JSON.
pub(crate) const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

impl RuncOptions {
    pub(crate) fn to_any(&self) -> Any {
        Any { type_url: OPTIONS_TYPE.to_owned(), value: prost::Message::encode_to_vec(self) }
    }
}

/// A JSON document with a type name.
pub(crate) fn json_any(type_url: &str, value: &impl Serialize) -> Result<Any, serde_json::Error> {
    Ok(Any { type_url: type_url.to_owned(), value: serde_json::to_vec(value)? })
}

/// The last part of an `Any`'s type, with or without a domain before it.
pub(crate) fn type_name(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

/// Converts a protobuf timestamp to wall-clock time. Go's zero time (year 1) and absent timestamps are
/// `None`.
pub(crate) fn wall(timestamp: Option<&Timestamp>) -> Option<Wall> {
    let t = timestamp.filter(|t| t.seconds > 0)?;
    Some(Wall(t.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(t.nanos))))
}

/// Converts an exit status. Exit codes fit a byte; containerd passes larger statuses (255 for unknown)
/// unchanged.
pub(crate) fn exit_code(status: u32) -> i32 {
    i32::try_from(status).unwrap_or(255)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_zero_time_is_no_time() {
        assert_eq!(wall(None), None);
        assert_eq!(wall(Some(&Timestamp { seconds: -62_135_596_800, nanos: 0 })), None);
        assert_eq!(wall(Some(&Timestamp { seconds: 2, nanos: 5 })), Some(Wall(2_000_000_005)));
    }

    #[test]
    fn options_have_the_field_numbers_of_the_protocol() {
        let options = RuncOptions {
            root: "r".into(),
            task_api_address: "a".into(),
            task_api_version: 3,
            ..RuncOptions::default()
        };
        let any = options.to_any();
        assert_eq!(any.type_url, "containerd.runc.v1.Options");
        assert_eq!(any.value, [0x3a, 1, b'r', 0x62, 1, b'a', 0x68, 3]);
    }
}
