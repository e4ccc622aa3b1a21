//! Routes with streams: exec, attach, run and port-forward, by SPDY/3.1 and by WebSockets.
//!
//! [`Streams::serve`] answers a request that is authenticated and authorised. A request that can be served becomes a
//! connection of its own: one task that owns the socket, the streams and the process or the pod's sockets behind them
//! (`connection`). The tasks belong to [`Streams`] and end with it.
//!
//! Pure modules: `parameters`, `upgrade`, `status`, `resize`, `websocket`; SPDY's framing is a crate of its own. Rules
//! and texts are those of `k8s.io/cri-streaming` and `k8s.io/streaming` 0.36.
//!
//! Invariants: a client that is gone, or that is silent for four hours, costs nothing any more: its process and all
//! processes that it started are killed, its sockets are closed. No queue grows beyond its bound; a client that does
//! not read holds its process, and a process that does not read holds its client.

mod backend;
mod channel_reader;
mod connection;
mod outlet;
mod parameters;
mod port_forward;
mod remote_command;
mod resize;
mod spdy;
mod status;
#[cfg(test)]
mod tests;
mod upgrade;
mod websocket;

pub use backend::{
    Process, ProcessControl, RunningContainer, StreamBackend, StreamRefusal, TerminalSize, WantedStreams,
};

use crate::{
    Caller, Connection, NodeBackend, PodState, ResponseBody,
    metrics::InFlight,
    response,
    routes::{Handler, Target},
};
use berth_core::sync::lock;
use channel_reader::ChannelMaker;
use http::{Request, Response, StatusCode};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use parameters::Query;
use port_forward::Forwarder;
use remote_command::CommandStreams;
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::AsyncReadExt as _,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use upgrade::Asked;

/// The most connections with streams at once.
const CONNECTIONS: usize = 1000;

/// Longest wait for the connection after its upgrade was answered.
const UPGRADE: Duration = Duration::from_secs(30);

/// The most output of a run that is kept, of each of the two streams.
const RUN_OUTPUT: u64 = 4 * 1024 * 1024;

/// What serves a connection once it is upgraded.
type Session = Box<dyn FnOnce(TokioIo<hyper::upgrade::Upgraded>) -> Served + Send>;

type Served = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// A connection that is about to be upgraded, and its request, which is counted until the streams have ended.
struct Upgrading {
    upgraded: OnUpgrade,
    in_flight: Option<Arc<InFlight>>,
}

impl Upgrading {
    fn of(request: &mut Request<Incoming>) -> Upgrading {
        let in_flight = InFlight::of(request);
        Upgrading { upgraded: hyper::upgrade::on(request), in_flight }
    }
}

/// The server of streams.
pub struct Streams {
    backend: Arc<dyn StreamBackend>,
    slots: Arc<Semaphore>,
    connections: Mutex<JoinSet<()>>,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").field("free", &self.slots.available_permits()).finish_non_exhaustive()
    }
}

impl Streams {
    /// A server of this node's streams.
    pub fn new(backend: Arc<dyn StreamBackend>) -> Streams {
        Streams {
            backend,
            slots: Arc::new(Semaphore::new(CONNECTIONS)),
            connections: Mutex::new(JoinSet::new()),
        }
    }

    /// Serves a request for a stream.
    pub(crate) async fn serve(
        &self,
        node: &Arc<dyn NodeBackend>,
        (caller, client): (&Caller, &Arc<Connection>),
        handler: Handler,
        target: Target<'_>,
        request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        let answered = match handler {
            Handler::Exec | Handler::Attach => self.command(node, client, handler, target, request),
            Handler::PortForward => self.port_forward(node, client, target, request),
            Handler::Run => self.run(node, target, &request).await,
            _ => return response::not_found(),
        };
        let Target { namespace, pod, container, .. } = target;
        tracing::info!(
            user = caller.name,
            namespace,
            pod,
            container,
            served = answered.is_ok(),
            "{handler:?} was asked for"
        );
        answered.unwrap_or_else(|refused| *refused)
    }

    fn command(
        &self,
        node: &Arc<dyn NodeBackend>,
        client: &Arc<Connection>,
        handler: Handler,
        target: Target<'_>,
        mut request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, upgrade::Refused> {
        let query = Query::parse(request.uri().query());
        let mut wanted = query.streams().map_err(|why| refused(StatusCode::BAD_REQUEST, why))?;
        let container = self.container(&pod(node, target)?, target)?;
        if handler == Handler::Attach {
            // Whether there is a terminal was decided when the container started.
            wanted = WantedStreams { tty: container.tty, stderr: wanted.stderr && !container.tty, ..wanted };
        }
        let start = self.start(handler, container, query.command(), wanted);
        let upgraded = Upgrading::of(&mut request);
        let (response, session): (_, Session) = match upgrade::asked(request.headers()) {
            None => return Err(upgrade_required()),
            Some(Asked::Spdy) => {
                let (version, response) = upgrade::spdy(request.headers(), &remote_command::SPDY_VERSIONS)?;
                let session = move |socket| -> Served {
                    let (reader, queues, streams) = spdy::connection(remote_command::admit, false);
                    let session = async move {
                        CommandStreams::opened(streams, wanted, version).await?.serve(start).await
                    };
                    Box::pin(connection::serve(socket, reader, queues, session))
                };
                (response, Box::new(session))
            }
            Some(Asked::WebSocket) => {
                let protocols = remote_command::WEBSOCKET_PROTOCOLS;
                let (name, response) = upgrade::websocket(
                    request.method(),
                    request.headers(),
                    &protocols.map(|(name, ..)| name),
                )?;
                let known = protocols.into_iter().find(|(known, ..)| *known == name);
                let (_, codec, form) = known.ok_or_else(upgrade_required)?;
                let session = move |socket| -> Served {
                    let mut maker = ChannelMaker::new(codec);
                    let streams = CommandStreams::channels(&mut maker, wanted, form);
                    let (reader, queues) = maker.connection();
                    let session = async move {
                        streams.greet().await?;
                        streams.serve(start).await
                    };
                    Box::pin(connection::serve(socket, reader, queues, session))
                };
                (response, Box::new(session))
            }
        };
        self.accept(client, upgraded, session)?;
        Ok(response)
    }

    /// The start of a command, or of an attachment, once its streams are there.
    fn start(
        &self,
        handler: Handler,
        container: RunningContainer,
        command: Vec<String>,
        wanted: WantedStreams,
    ) -> impl Future<Output = Result<Process, String>> + Send + 'static {
        let backend = self.backend.clone();
        async move {
            let (started, what) = match handler {
                Handler::Attach => (backend.attach(container, wanted).await, "attaching to container"),
                _ => (backend.exec(container, command, wanted).await, "executing command in container"),
            };
            started.map_err(|why| format!("error {what}: {why}"))
        }
    }

    fn port_forward(
        &self,
        node: &Arc<dyn NodeBackend>,
        client: &Arc<Connection>,
        target: Target<'_>,
        mut request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, upgrade::Refused> {
        let asked = upgrade::asked(request.headers());
        let tunnelled = asked == Some(Asked::WebSocket)
            && upgrade::websocket_protocols(request.headers()).contains(&port_forward::TUNNEL_PROTOCOL);
        let mut ports = Vec::new();
        if asked == Some(Asked::WebSocket) && !tunnelled {
            let query = Query::parse(request.uri().query());
            ports = query.ports().map_err(|why| refused(StatusCode::BAD_REQUEST, why))?;
            if ports.len() > port_forward::PORTS {
                return Err(refused(StatusCode::BAD_REQUEST, "too many ports".to_owned()));
            }
        }
        let pod = pod(node, target)?;
        if target.uid.is_some_and(|uid| uid != pod.pod.uid.as_str()) {
            return Err(refused(StatusCode::NOT_FOUND, "pod not found".to_owned()));
        }
        let forwarder = Forwarder::new(self.backend.clone(), pod);
        let upgraded = Upgrading::of(&mut request);
        let (method, headers) = (request.method(), request.headers());
        let (response, session): (_, Session) = match asked {
            None => return Err(upgrade_required()),
            Some(Asked::WebSocket) if !tunnelled => {
                let protocols = port_forward::WEBSOCKET_PROTOCOLS;
                let (name, response) = upgrade::websocket(method, headers, &protocols.map(|(name, _)| name))?;
                let known = protocols.into_iter().find(|(known, _)| *known == name);
                let (_, codec) = known.ok_or_else(upgrade_required)?;
                let session = move |socket| -> Served {
                    let mut maker = ChannelMaker::new(codec);
                    let channels = port_forward::channels(&mut maker, &ports);
                    let end = maker.outlet(0);
                    let (reader, queues) = maker.connection();
                    let session = forwarder.serve_channels(channels, end);
                    Box::pin(connection::serve(socket, reader, queues, session))
                };
                (response, Box::new(session))
            }
            Some(asked) => {
                let (_, response) = match asked {
                    Asked::WebSocket => {
                        upgrade::websocket(method, headers, &[port_forward::TUNNEL_PROTOCOL])?
                    }
                    Asked::Spdy => upgrade::spdy(headers, &[port_forward::SPDY_PROTOCOL])?,
                };
                let session = move |socket| -> Served {
                    let (reader, queues, streams) = spdy::connection(port_forward::admit, tunnelled);
                    Box::pin(connection::serve(socket, reader, queues, forwarder.serve(streams)))
                };
                (response, Box::new(session))
            }
        };
        self.accept(client, upgraded, session)?;
        Ok(response)
    }

    async fn run(
        &self,
        node: &Arc<dyn NodeBackend>,
        target: Target<'_>,
        request: &Request<Incoming>,
    ) -> Result<Response<ResponseBody>, upgrade::Refused> {
        let query = Query::parse(request.uri().query());
        let container = self.container(&pod(node, target)?, target)?;
        let failed = |why: String| refused(StatusCode::INTERNAL_SERVER_ERROR, why);
        let wanted = WantedStreams { stdout: true, stderr: true, ..WantedStreams::default() };
        let command = query.run_command();
        let words = command.join(" ");
        let mut process = self.backend.exec(container, command, wanted).await.map_err(failed)?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (out, err) = (process.stdout.take(), process.stderr.take());
        let (end, ended) = watch::channel(false);
        let wait = async {
            let code = process.control.wait().await;
            end.send_replace(true);
            code
        };
        let (code, (), ()) = tokio::join!(
            wait,
            collect(out, &mut stdout, ended.clone()),
            collect(err, &mut stderr, ended.clone())
        );
        stdout.append(&mut stderr);
        match code.map_err(failed)? {
            0 => Ok(response::json(stdout.into())),
            code => {
                let output = String::from_utf8_lossy(&stdout);
                Err(failed(format!("command '{words}' exited with {code}: {output}")))
            }
        }
    }

    fn container(&self, pod: &PodState, target: Target<'_>) -> Result<RunningContainer, upgrade::Refused> {
        if target.uid.is_some_and(|uid| uid != pod.pod.uid.as_str()) {
            let why = format!("container not found ({:?})", target.container);
            return Err(refused(StatusCode::INTERNAL_SERVER_ERROR, why));
        }
        self.backend.container(pod, target.container).map_err(|why| {
            let code = match &why {
                StreamRefusal::NotFound(_) => StatusCode::NOT_FOUND,
                StreamRefusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            refused(code, why.to_string())
        })
    }

    /// Serves the connection once it is upgraded, in a task of its own, until the server stops.
    fn accept(
        &self,
        client: &Arc<Connection>,
        Upgrading { upgraded, in_flight }: Upgrading,
        session: Session,
    ) -> Result<(), upgrade::Refused> {
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            let why = "maximum number of in-flight requests exceeded".to_owned();
            return Err(refused(StatusCode::TOO_MANY_REQUESTS, why));
        };
        let mut stopped = client.stopped.clone();
        let mut connections = lock(&self.connections);
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            let _held = (slot, in_flight);
            // Otherwise the client is gone.
            let Ok(Ok(socket)) = timeout(UPGRADE, upgraded).await else { return };
            tokio::select! {
                ended = session(TokioIo::new(socket)) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection with streams has ended");
                    }
                }
                _ = stopped.changed() => {}
            }
        });
        Ok(())
    }
}

/// Reads a pipe to its end and keeps the first bytes. A child that goes on may hold the pipe open for ever, so what it
/// writes later than [`remote_command::DRAIN`] after the end of the process is left out.
async fn collect(
    from: Option<tokio::net::unix::pipe::Receiver>,
    into: &mut Vec<u8>,
    mut ended: watch::Receiver<bool>,
) {
    let Some(mut from) = from else { return };
    let read = async {
        // The output so far is the answer where the rest cannot be read.
        let _read = (&mut from).take(RUN_OUTPUT).read_to_end(into).await;
        let _dropped = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    };
    tokio::select! {
        () = read => {}
        () = async {
            // The sender is there until both pipes are read.
            drop(ended.wait_for(|ended| *ended).await);
            sleep(remote_command::DRAIN).await;
        } => {}
    }
}

fn refused(code: StatusCode, why: String) -> upgrade::Refused {
    Box::new(response::text(code, why))
}

/// The answer to a request without an upgrade, which the kubelet counts as an error of its own.
fn upgrade_required() -> upgrade::Refused {
    refused(StatusCode::INTERNAL_SERVER_ERROR, "Upgrade request required\n".to_owned())
}

fn pod(node: &Arc<dyn NodeBackend>, target: Target<'_>) -> Result<PodState, upgrade::Refused> {
    node.pod(target.namespace, target.pod)
        .ok_or_else(|| refused(StatusCode::NOT_FOUND, "pod does not exist".to_owned()))
}
