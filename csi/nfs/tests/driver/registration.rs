//! The registration, called as the real kubelet calls it.

use crate::setup::{Driver, connect};
use berth_csi_proto::registration::{InfoRequest, registration_client::RegistrationClient};
use std::fs;

/// The kubelet's authority is the socket's path with `%2F` for each slash.
#[tokio::test]
async fn a_path_as_authority_is_taken() {
    let driver = Driver::start().await;
    let socket = fs::read_dir(driver.path("registry")).unwrap().next().unwrap().unwrap().path();
    let authority = socket.display().to_string().replace('/', "%2F");
    let channel = connect(socket, &format!("http://{authority}")).await;
    let info = RegistrationClient::new(channel).get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "nfs.csi.berth.dev"));
    assert_eq!(info.endpoint, driver.path("driver@csi.sock").display().to_string());
}
