//! The registration service of a plugin for tests, beside its driver or without one.

use super::thread::ServerThread;
use berth_csi_proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
    registration_server::{Registration, RegistrationServer},
};
use std::{
    future::pending,
    io,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tonic::{Request, Response, Status};

/// What the node told the plugin: whether it is registered, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notified {
    /// Whether the plugin is registered.
    pub registered: bool,
    /// Why not.
    pub error: String,
}

/// A registration socket of a plugin. Dropped, it goes with its file, as an orderly plugin's.
#[derive(Debug)]
pub struct TestRegistration {
    socket: PathBuf,
    notified: Arc<Mutex<Vec<Notified>>>,
    thread: Option<ServerThread>,
}

#[derive(Debug)]
struct Service {
    info: PluginInfo,
    silent: bool,
    notified: Arc<Mutex<Vec<Notified>>>,
}

impl TestRegistration {
    /// Serves at `socket` for the plugin of this type ("CSIPlugin"), name, endpoint and versions.
    ///
    /// # Errors
    /// The socket or the thread cannot be made.
    pub fn start(
        socket: &Path,
        kind: &str,
        name: &str,
        endpoint: &Path,
        versions: &[&str],
    ) -> io::Result<TestRegistration> {
        let info = PluginInfo {
            r#type: kind.into(),
            name: name.into(),
            endpoint: endpoint.to_string_lossy().into_owned(),
            supported_versions: versions.iter().map(|v| (*v).to_owned()).collect(),
        };
        TestRegistration::serve(socket, info, false)
    }

    /// Serves at `socket` and answers nothing.
    ///
    /// # Errors
    /// As of [`TestRegistration::start`].
    pub fn start_silent(socket: &Path) -> io::Result<TestRegistration> {
        TestRegistration::serve(socket, PluginInfo::default(), true)
    }

    fn serve(socket: &Path, info: PluginInfo, silent: bool) -> io::Result<TestRegistration> {
        let listener = UnixListener::bind(socket)?;
        let notified = Arc::<Mutex<Vec<Notified>>>::default();
        let service = Service { info, silent, notified: Arc::clone(&notified) };
        let thread = ServerThread::start(listener, |_die| {
            tonic::transport::Server::builder().add_service(RegistrationServer::new(service))
        })?;
        Ok(TestRegistration { socket: socket.to_owned(), notified, thread: Some(thread) })
    }

    /// What the node told the plugin so far.
    pub fn notified(&self) -> Vec<Notified> {
        self.notified.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for TestRegistration {
    fn drop(&mut self) {
        // A test may have removed or replaced it.
        std::fs::remove_file(&self.socket).unwrap_or_default();
        self.thread = None;
    }
}

#[tonic::async_trait]
impl Registration for Service {
    async fn get_info(&self, _request: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        if self.silent {
            return pending().await;
        }
        Ok(Response::new(self.info.clone()))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered: registered, error } = request.into_inner();
        let mut notified = self.notified.lock().unwrap_or_else(PoisonError::into_inner);
        notified.push(Notified { registered, error });
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
