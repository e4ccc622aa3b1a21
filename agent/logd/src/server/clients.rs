//! Clients of logd: their connections and requests.

use super::{
    LISTENER, Logd,
    conn::{Conn, Incoming},
    container::{self, Container},
    handover::{OLD_WAITS, receive, reply},
    removal, table, take_events,
};
use crate::error::Error;
use berth_api::logd::{FinishReport, Hello, Reply, Request, StreamPaths, StreamSpec};
use berth_core::{
    error::Chain,
    ids::{ContainerId, PodKey, PodUid},
};
use berth_helper::{handover::Peer, spawn::truncate_own_output};
use rustix::{event::epoll, fd::AsFd};
use std::io;

/// State of a connection after its requests were served.
enum ClientState {
    Open,
    Replaced,
}

impl Logd {
    /// Serves clients. True if one of them was a new logd, which is active now.
    pub(super) fn serve_clients(&mut self) -> Result<bool, Error> {
        for event in take_events(&self.clients)? {
            let token = event.data.u64();
            if token == LISTENER {
                self.accept();
                continue;
            }
            let Some(mut conn) = self.conns.remove(&token) else { continue };
            match self.serve_client(&mut conn, token) {
                Ok(ClientState::Open) => {
                    self.conns.insert(token, conn);
                }
                Ok(ClientState::Replaced) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(error) => tracing::warn!(%error, "connection of a client closed after an error"),
            }
        }
        self.gzip.add(&mut self.scratch.batch.rotated);
        Ok(false)
    }

    fn accept(&mut self) {
        let accepted = self.listener.accept().and_then(|(stream, _)| {
            let peer = rustix::net::sockopt::socket_peercred(&stream)?.uid;
            if !peer.is_root() && peer != rustix::process::geteuid() {
                return Err(io::Error::from(io::ErrorKind::PermissionDenied));
            }
            let token = self.token();
            let conn = Conn::new(stream)?;
            epoll::add(&self.clients, &conn.stream, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?;
            self.conns.insert(token, conn);
            Ok(())
        });
        match accepted {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => {
                tracing::warn!(error = %e, "cannot accept a client");
            }
            _ => truncate_own_output(&self.cfg.roots.logd_output()),
        }
    }

    fn serve_client(&mut self, conn: &mut Conn, token: u64) -> io::Result<ClientState> {
        let waited = conn.waits_for_room();
        conn.flush()?;
        let filled = conn.fill();
        while let Some(incoming) = conn.next()? {
            let (seq, reply) = match incoming {
                Incoming::Unknown(seq, message) => (seq, Reply::Unsupported { message }),
                Incoming::Request(seq, Request::Takeover) => match self.hand_over(conn, seq) {
                    Ok(()) => return Ok(ClientState::Replaced),
                    Err(error) => {
                        tracing::warn!(%error, "the new logd did not take over; this one stays active");
                        return Err(error);
                    }
                },
                Incoming::Request(seq, request) => {
                    let op = request.name();
                    let reply = self.answer(request).unwrap_or_else(|error| {
                        let message = Chain(&error).to_string();
                        tracing::warn!(op, error = %message, "request failed");
                        Reply::Failed { message }
                    });
                    (seq, reply)
                }
            };
            conn.send(seq, reply)?;
        }
        filled?;
        if waited != conn.waits_for_room() {
            let flags =
                if waited { epoll::EventFlags::IN } else { epoll::EventFlags::IN | epoll::EventFlags::OUT };
            epoll::modify(&self.clients, &conn.stream, epoll::EventData::new_u64(token), flags)?;
        }
        Ok(ClientState::Open)
    }

    fn answer(&mut self, request: Request) -> Result<Reply, Error> {
        match request {
            Request::Hello => Ok(Reply::Hello(Hello {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                streams: self.containers.len(),
            })),
            Request::Register { spec } => Ok(Reply::Paths(self.register(spec)?)),
            Request::Finish { id } => Ok(Reply::Finished(self.finish(&id)?)),
            Request::RemoveAttempt { spec } => {
                self.finish(&spec.id)?;
                removal::remove_attempt(&self.cfg.roots, &spec)?;
                Ok(Reply::Done)
            }
            Request::RemovePod { key, uid } => self.remove_pod(&key, &uid),
            Request::Attach { id, session } => {
                self.attach(&id, &session)?;
                Ok(Reply::Done)
            }
            Request::CloseStdin { id } => {
                self.close_stdin(&id);
                Ok(Reply::Done)
            }
            Request::List => {
                Ok(Reply::Streams { streams: self.containers.values().map(Container::status).collect() })
            }
            Request::Takeover | Request::Commit => {
                Ok(Reply::Failed { message: "no takeover is in progress".to_owned() })
            }
        }
    }

    /// The row in the table is written last: everything that it names exists and can be opened
    /// again.
    fn register(&mut self, spec: StreamSpec) -> Result<StreamPaths, Error> {
        let paths = spec.paths(&self.cfg.roots);
        match self.containers.get(&spec.id) {
            Some(known) if known.spec == spec => return Ok(paths),
            Some(_) => return Err(Error::Conflict { id: spec.id }),
            None => {}
        }
        let container = Container::register(&self.cfg.roots, spec.clone(), self.limits)?;
        removal::link(&self.cfg.roots, &spec)?;
        table::save(&self.cfg.roots, &spec)?;
        self.watch(container)?;
        tracing::info!(pod = %spec.key, container = %spec.container, id = spec.id.short(), "container output registered");
        Ok(paths)
    }

    fn finish(&mut self, id: &ContainerId) -> Result<FinishReport, Error> {
        let Some(container) = self.containers.get_mut(id) else {
            return Ok(FinishReport { known: false, bytes: 0, lost: 0 });
        };
        container.end(&mut self.scratch);
        // The container is known as long as its row exists, because a restarted logd reads the
        // rows.
        table::remove(&self.cfg.roots, id)?;
        let Some(container) = self.containers.remove(id) else {
            return Ok(FinishReport { known: false, bytes: 0, lost: 0 });
        };
        self.tokens.retain(|_, (owner, _)| owner != id);
        container::remove_state(&self.cfg.roots, &container);
        let (spec, bytes, lost) = (&container.spec, container.bytes(), container.lost().0);
        tracing::info!(pod = %spec.key, container = %spec.container, id = id.short(), bytes, lost, "container output finished");
        Ok(FinishReport { known: true, bytes, lost })
    }

    fn remove_pod(&mut self, key: &PodKey, uid: &PodUid) -> Result<Reply, Error> {
        let of_pod = |c: &&Container| c.spec.uid == *uid && c.spec.key == *key;
        let ids: Vec<_> = self.containers.values().filter(of_pod).map(|c| c.spec.id.clone()).collect();
        for id in ids {
            self.finish(&id)?;
        }
        removal::remove_pod(&self.cfg.roots, key, uid)?;
        Ok(Reply::Done)
    }

    /// The old logd's side of a replacement. An error means that this logd stays active.
    fn hand_over(&mut self, conn: &Conn, seq: u64) -> io::Result<()> {
        let new = Peer::new(&conn.stream, Some(OLD_WAITS))?;
        let containers = self.containers.len();
        reply(&new, seq, Reply::Handover { containers }, &[self.lock.as_fd(), self.listener.as_fd()])?;
        for container in self.containers.values() {
            let fds: Vec<_> =
                container.fifos.iter().map(|f| &f.fd).chain(&container.stdin).map(AsFd::as_fd).collect();
            let (bytes, (_, lost)) = (container.bytes(), container.lost());
            reply(&new, seq, Reply::Handed { spec: container.spec.clone(), bytes, lost }, &fds)?;
        }
        match receive::<Request>(&new)? {
            (Request::Commit, _) => reply(&new, seq, Reply::Released, &[])?,
            (other, _) => {
                return Err(io::Error::other(format!(
                    "the new logd sent {} instead of commit",
                    other.name()
                )));
            }
        }
        tracing::info!(containers, "another logd is active now");
        Ok(())
    }
}
