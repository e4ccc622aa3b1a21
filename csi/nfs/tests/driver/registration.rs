//! The registration, called as the real kubelet calls it.

use crate::setup::{Driver, connect, until};
use berth_csi_proto::registration::{InfoRequest, registration_client::RegistrationClient};
use std::{fs, os::unix::net::UnixStream};

/// The kubelet's authority is the socket's path with `%2F` for each slash.
#[tokio::test]
async fn a_path_as_authority_is_taken() {
    let driver = Driver::start().await;
    // It is made after the driver's own socket.
    let sockets = || fs::read_dir(driver.path("registry")).ok()?.next()?.ok().map(|entry| entry.path());
    until("the registration's socket", || sockets().is_some_and(|path| UnixStream::connect(path).is_ok()))
        .await;
    let socket = sockets().unwrap();
    let authority = socket.display().to_string().replace('/', "%2F");
    let channel = connect(socket, &format!("http://{authority}")).await;
    let info = RegistrationClient::new(channel).get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "nfs.csi.berth.dev"));
    assert_eq!(info.endpoint, driver.path("driver@csi.sock").display().to_string());
}
