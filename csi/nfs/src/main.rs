//! `berth-csi-nfs`: the Container Storage Interface for NFS. Needs no agent, no control plane and no mount.nfs.
//!
//! One process serves one socket. Its tasks: the server of that socket, which ends with the process; the registration
//! with the node agent, if wanted; a wait for SIGTERM. Blocking work is on threads of its own (`threads`).
//!
//! Invariants:
//! - The state is on the shares and in the mount table. A driver that dies leaves nothing that the next one does not
//!   find.
//! - Nothing outside a share is read or changed through the share: all work on it goes by descriptors.
//! - A server that hangs holds up the calls about it, and no others.

mod args;
#[cfg(test)]
mod attacks;
mod capability;
mod controller;
mod copy;
mod error;
mod handle;
mod identity;
mod location;
mod mounter;
mod mountinfo;
mod node;
mod operations;
mod options;
mod parameters;
mod registration;
mod share;
mod socket;
mod threads;

use args::Args;
use berth_csi_proto::csi::{
    controller_server::ControllerServer, identity_server::IdentityServer, node_server::NodeServer,
};
use clap::Parser;
use controller::Controller;
use error::{Error, Result};
use identity::Identity;
use mounter::Mounter;
use node::Node;
use operations::Operations;
use socket::Socket;
use std::{process::ExitCode, sync::Arc, time::Duration};
use threads::Threads;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{sleep, timeout},
};
use tonic::transport::Server;
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

/// Calls of one connection that are worked on at a time.
const MOST_CALLS: usize = 1024;

/// How long calls and copies may take to end after SIGTERM.
const END: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let done = runtime.map_err(|e| Error::file("start", "the runtime", e)).and_then(|runtime| {
        let done = runtime.block_on(run(args));
        // Threads that wait for a server that is gone end with the process.
        runtime.shutdown_background();
        done
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(%error, "the driver ends");
            ExitCode::FAILURE
        }
    }
}

#[cfg(debug_assertions)]
fn mounter(args: &Args) -> Arc<dyn Mounter> {
    match &args.test_shares {
        Some(root) => {
            tracing::warn!(root = %root.display(), "a local directory stands in for the server: tests alone may do this");
            Arc::new(mounter::Local { root: root.clone() })
        }
        None => Arc::new(mounter::Nfs),
    }
}

#[cfg(not(debug_assertions))]
fn mounter(_: &Args) -> Arc<dyn Mounter> {
    Arc::new(mounter::Nfs)
}

async fn run(args: Args) -> Result<()> {
    let path = args.socket()?;
    let mounter = mounter(&args);
    let threads = Arc::new(Threads::default());
    let operations = Operations::default();
    let (tell_end, end) = watch::channel(false);
    let (socket, incoming) = Socket::bind(&path)?;

    let identity = Identity { name: args.driver_name.clone(), mode: args.mode };
    let controller = args.mode.has_controller().then(|| {
        let defaults = args.defaults()?;
        let parts = (Arc::clone(&mounter), Arc::clone(&threads), operations.clone());
        Ok::<_, Error>(ControllerServer::new(Controller::new(parts.0, parts.1, parts.2, defaults)))
    });
    let node =
        args.mode.has_node().then(|| NodeServer::new(Node::new(args.node_id.clone(), mounter, threads)));
    let mut ended = end.clone();
    let server = Server::builder()
        .concurrency_limit_per_connection(MOST_CALLS)
        .add_service(IdentityServer::new(identity))
        .add_optional_service(controller.transpose()?)
        .add_optional_service(node)
        .serve_with_incoming_shutdown(incoming, async move {
            // A sender that is gone is the end too.
            _ = ended.wait_for(|end| *end).await;
        });
    let mut server = tokio::spawn(server);
    info!(driver = args.driver_name, socket = %path.display(), "serving");

    let mut registration = tokio::spawn({
        let (name, mut end) = (args.driver_name.clone(), end.clone());
        let endpoint = args.kubelet_registration_path.clone().unwrap_or_else(|| path.clone());
        async move {
            match args.register_in.filter(|_| args.mode.has_node()) {
                Some(dir) => registration::serve(dir, name, endpoint, end).await,
                None => {
                    _ = end.wait_for(|end| *end).await;
                    Ok(())
                }
            }
        }
    });

    let failed = |e: std::io::Error| Error::file("wait for", "SIGTERM", e);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let done = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        served = &mut server => Err(Error::file("serve", path.display().to_string(), reason(served))),
        registered = &mut registration => match registered {
            Ok(Err(error)) => Err(error),
            _ => Err(Error::Cancelled("the registration")),
        },
    };
    tell_end.send_replace(true);
    // Copies that are ended here are begun anew by the next call.
    let running = operations.cancel_all();
    info!(operations = running, "ending");
    let over = async {
        while operations.cancel_all() > 0 {
            sleep(Duration::from_millis(20)).await;
        }
        if !server.is_finished() {
            _ = server.await;
        }
    };
    // What is not over by then is found by the next driver.
    _ = timeout(END, over).await;
    if !registration.is_finished() {
        // The registration removes its socket.
        _ = timeout(Duration::from_secs(1), &mut registration).await;
        registration.abort();
    }
    drop(socket);
    done
}

fn reason(
    served: std::result::Result<Result<(), tonic::transport::Error>, tokio::task::JoinError>,
) -> std::io::Error {
    match served {
        Ok(Ok(())) => std::io::Error::other("it ended"),
        Ok(Err(error)) => std::io::Error::other(error),
        Err(error) => std::io::Error::other(error),
    }
}
