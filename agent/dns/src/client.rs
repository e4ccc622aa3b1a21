//! The client of `berth dns`: asks for its status, and keeps it running as a helper of the agent.

use crate::error::Error;
use berth_api::{
    dns::{MESSAGE_MAX, Reply, Request, Status, encode},
    frame,
};
use berth_helper::{Helper, Unanswered};
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{io::AsyncWriteExt as _, net::UnixStream, time::timeout};

/// Deadline of a request. A helper that needs longer counts as silent.
const SILENT: Duration = Duration::from_secs(2);

/// Client of `berth dns`.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Returns a client of the helper that listens on `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client { socket: socket.into() }
    }

    /// Asks for the helper's status.
    ///
    /// # Errors
    /// Nothing listens on the socket, or the helper does not answer within 2 s.
    pub async fn status(&self) -> Result<Status, Error> {
        match self.ask("status", Request::Status).await? {
            Reply::Status(status) => Ok(*status),
            _ => Err(Error::Unexpected { op: "status" }),
        }
    }

    /// Asks the helper to finish the questions in flight and to end. The addresses on `lo` stay.
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn end(&self) -> Result<(), Error> {
        match self.ask("end", Request::End).await? {
            Reply::Ending => Ok(()),
            _ => Err(Error::Unexpected { op: "end" }),
        }
    }

    async fn ask(&self, op: &'static str, request: Request) -> Result<Reply, Error> {
        let exchange = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            stream.write_all(&encode(&request)?).await?;
            Ok(frame::decode::<Reply>(&frame::read(&mut stream, MESSAGE_MAX).await?)?)
        };
        match timeout(SILENT, exchange).await {
            Ok(answer) => {
                answer.map_err(|source: io::Error| Error::Socket { path: self.socket.clone(), source })
            }
            Err(_elapsed) => Err(Error::Deadline { op, after: SILENT }),
        }
    }
}

impl Helper for Client {
    const NAME: &'static str = "berth dns";
    const LISTENS_WITHIN: Duration = Duration::from_secs(1);

    fn socket(&self) -> &Path {
        &self.socket
    }

    async fn ping(&self) -> Result<(), Unanswered> {
        match self.status().await {
            Ok(_) => Ok(()),
            Err(Error::Socket { .. }) => Err(Unanswered::Unreachable),
            Err(_) => Err(Unanswered::Silent),
        }
    }
}
