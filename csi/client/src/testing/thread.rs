//! The thread of a server for tests. Its end breaks every connection.

use std::{
    io,
    os::unix::net::UnixListener,
    sync::Arc,
    thread::{self, JoinHandle},
};
use tokio::sync::Notify;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{body::Body, transport::server::Router};
use tower::{Layer, Service};

/// A server with a runtime of its own.
#[derive(Debug)]
pub(super) struct ServerThread {
    die: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl ServerThread {
    /// Serves what `router` makes on the listener. The router may end the server by the notification that it gets.
    pub(super) fn start<L>(
        listener: UnixListener,
        router: impl FnOnce(Arc<Notify>) -> Router<L> + Send + 'static,
    ) -> io::Result<ServerThread>
    where
        L: Layer<tonic::service::Routes> + 'static,
        L::Service: Service<http::Request<Body>, Response = http::Response<Body>, Error = std::convert::Infallible>
            + Clone
            + Send
            + 'static,
        <L::Service as Service<http::Request<Body>>>::Future: Send,
    {
        listener.set_nonblocking(true)?;
        let die = Arc::new(Notify::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let end = Arc::clone(&die);
        let thread = thread::Builder::new().name("test-driver".into()).spawn(move || {
            // Dropped at the end of the thread, the runtime drops every connection.
            runtime.block_on(async {
                let Ok(listener) = tokio::net::UnixListener::from_std(listener) else { return };
                let server = router(Arc::clone(&end)).serve_with_incoming(UnixListenerStream::new(listener));
                tokio::select! {
                    // The next call of a client finds a server that ended by itself.
                    _ended = server => {}
                    () = end.notified() => {}
                }
            });
        })?;
        Ok(ServerThread { die, thread: Some(thread) })
    }
}

impl Drop for ServerThread {
    fn drop(&mut self) {
        self.die.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic of the server was printed, and its clients had no answers.
            thread.join().unwrap_or_default();
        }
    }
}
