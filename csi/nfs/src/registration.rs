//! The driver's registration with the node agent (the kubelet's plugin registration), which is otherwise the work of
//! the sidecar node-driver-registrar: a socket in the agent's directory of plugins, on which the agent asks for the
//! driver's name and socket and tells whether it has taken it.

use crate::{error::Result, socket::Socket};
use berth_csi_proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse, registration_server,
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{sync::watch, time::sleep};
use tonic::{Request, Response, Status, transport::Server};
use tracing::{info, warn};

/// Wait before a refused registration is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// The registration service.
struct Registration {
    name: String,
    endpoint: String,
    refused: watch::Sender<bool>,
}

#[tonic::async_trait]
impl registration_server::Registration for Registration {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: self.name.clone(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            info!("registered with the node agent");
        } else {
            warn!(error = status.error, "the node agent refuses the driver; asking again in {AGAIN:?}");
            self.refused.send_replace(true);
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// The socket of a driver in the agent's directory of plugins.
///
/// The kubelet sends the path of a socket, with `%2F` for each slash, as the authority of its requests. Our side's HTTP
/// refuses such a host, but takes the same before an `@`, where it is a user's name. So the name of a socket that the
/// kubelet calls has an `@` in it.
pub(crate) fn socket_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}@reg.sock"))
}

/// Serves the registration until the end. A refused registration is offered again as a new socket, because the agent
/// looks at a socket once.
///
/// # Errors
/// The socket cannot be made.
pub(crate) async fn serve(
    dir: PathBuf,
    name: String,
    endpoint: PathBuf,
    mut end: watch::Receiver<bool>,
) -> Result<()> {
    let path = socket_path(&dir, &name);
    if !endpoint.file_name().is_some_and(|name| name.to_string_lossy().contains('@')) {
        warn!(endpoint = %endpoint.display(), "the kubelet cannot call a socket without an @ in its name; Berth can");
    }
    loop {
        let (socket, incoming) = Socket::bind(&path)?;
        let (refused, mut is_refused) = watch::channel(false);
        let service = Registration { name: name.clone(), endpoint: endpoint.display().to_string(), refused };
        let mut ended = end.clone();
        let over = async move {
            // Either sender that is gone ends the service too.
            tokio::select! {
                _ = is_refused.wait_for(|refused| *refused) => {}
                _ = ended.wait_for(|end| *end) => {}
            }
        };
        let served = Server::builder()
            .add_service(registration_server::RegistrationServer::new(service))
            .serve_with_incoming_shutdown(incoming, over)
            .await;
        drop(socket);
        if let Err(error) = served {
            warn!(%error, "the registration is not served");
        }
        tokio::select! {
            _ = end.wait_for(|end| *end) => return Ok(()),
            () = sleep(AGAIN) => {}
        }
    }
}
