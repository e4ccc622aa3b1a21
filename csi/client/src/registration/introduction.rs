//! What a plugin says of itself, and what it is told.

use super::{Times, Version};
use crate::{
    DriverName,
    transport::{self, Connection, Failure, ask},
};
use berth_csi_proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, registration_client::RegistrationClient,
};
use std::path::{Path, PathBuf};

/// The type of plugin that is a CSI driver.
const CSI: &str = "CSIPlugin";

/// The most characters of a foreign text that a message shows.
const SHOWN: usize = 100;

/// A CSI driver as its plugin introduces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Introduced {
    /// The driver's name.
    pub(super) name: DriverName,
    /// The driver's socket.
    pub(super) endpoint: PathBuf,
    /// The newest version that both sides speak.
    pub(super) version: Version,
}

/// Asks the plugin at the socket for itself.
pub(super) async fn get_info(socket: &Path, times: Times) -> Result<PluginInfo, Failure> {
    let connection = Connection::new(socket);
    transport::call(connection, times.get_info, InfoRequest {}, ask!(RegistrationClient.get_info)).await
}

/// Tells the plugin whether it is registered: `None` is yes, else the reason.
pub(super) async fn notify(socket: &Path, error: Option<&str>, times: Times) -> Result<(), Failure> {
    let status = RegistrationStatus {
        plugin_registered: error.is_none(),
        error: error.map(str::to_owned).unwrap_or_default(),
    };
    let send = ask!(RegistrationClient.notify_registration_status);
    transport::call(Connection::new(socket), times.notify, status, send).await.map(drop)
}

/// Reads what the plugin at the socket said. The error is for the plugin, and stays until the plugin is another.
pub(super) fn read(info: &PluginInfo, socket: &Path) -> Result<Introduced, String> {
    if info.r#type != CSI {
        let kind: String = info.r#type.chars().take(SHOWN).collect();
        return Err(format!("plugins of type {kind:?} are not supported; {CSI} is"));
    }
    let name = DriverName::parse(&info.name).map_err(|error| error.to_string())?;
    let version = Version::newest(&info.supported_versions)?;
    // A plugin without an endpoint serves at the registration socket.
    let endpoint = match info.endpoint.as_str() {
        "" => socket,
        text => Path::new(text.strip_prefix("unix://").unwrap_or(text)),
    };
    if !endpoint.is_absolute() {
        let shown: String = info.endpoint.chars().take(SHOWN).collect();
        return Err(format!("endpoint {shown:?} is not an absolute path"));
    }
    Ok(Introduced { name, endpoint: endpoint.to_owned(), version })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(kind: &str, name: &str, endpoint: &str, versions: &[&str]) -> Result<Introduced, String> {
        let info = PluginInfo {
            r#type: kind.into(),
            name: name.into(),
            endpoint: endpoint.into(),
            supported_versions: versions.iter().map(|v| (*v).to_owned()).collect(),
        };
        read(&info, Path::new("/r/a.sock"))
    }

    #[test]
    fn a_driver_has_its_endpoint_or_serves_at_the_socket() {
        let endpoint = |text| said(CSI, "a.b", text, &["1.0"]).map(|i| i.endpoint);
        assert_eq!(endpoint("/p/csi.sock"), Ok("/p/csi.sock".into()));
        assert_eq!(endpoint("unix:///p/csi.sock"), Ok("/p/csi.sock".into()));
        assert_eq!(endpoint(""), Ok("/r/a.sock".into()));
        assert_eq!(endpoint("p/csi.sock").unwrap_err(), r#"endpoint "p/csi.sock" is not an absolute path"#);
    }

    #[test]
    fn what_is_no_driver_is_refused_with_its_reason() {
        for kind in ["DevicePlugin", "DRAPlugin", ""] {
            let expected = format!("plugins of type {kind:?} are not supported; CSIPlugin is");
            assert_eq!(said(kind, "a", "", &["1.0"]).unwrap_err(), expected);
        }
        assert!(said(CSI, "../a", "", &["1.0"]).unwrap_err().starts_with("driver name"));
        assert!(said(CSI, "a", "", &["0.3"]).unwrap_err().starts_with("none of the supported versions"));
        assert!(said(&"x".repeat(10_000), "a", "", &[]).unwrap_err().len() < 200);
    }
}
