//! The client of the local socket.

use crate::{
    Error,
    frame::{self, FrameReader, REPLY_MAX, REQUEST_MAX},
    message::{Hello, PROTOCOL, Reply, Request},
    view::PodView,
};
use std::{path::Path, time::Duration};
use tokio::{
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

/// Deadline of connect and greeting; a slower agent counts as unreachable.
const GREETING: Duration = Duration::from_secs(2);

/// A connection to the agent.
#[derive(Debug)]
pub struct Client {
    reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// The agent's greeting.
    pub agent: Hello,
}

impl Client {
    /// Connects and exchanges greetings, within two seconds.
    pub async fn connect(socket: &Path) -> Result<Client, Error> {
        timeout(GREETING, Client::greet(socket)).await.map_err(|_elapsed| Error::Deadline)?
    }

    async fn greet(socket: &Path) -> Result<Client, Error> {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|source| Error::Connect { path: socket.to_owned(), source })?;
        let (reader, mut writer) = stream.into_split();
        let mut reader = FrameReader::new(reader, REPLY_MAX);
        let ours = Hello::ours();
        frame::send(&mut writer, &frame::encode(&ours, REQUEST_MAX)?).await?;
        let agent: Hello = reader.message().await?.ok_or(Error::Closed)?;
        if ours.common(&agent).is_none() {
            return Err(Error::Protocol { oldest: agent.oldest, newest: agent.protocol, ours: PROTOCOL });
        }
        Ok(Client { reader, writer, agent })
    }

    /// Sends a request; [`Client::next`] returns the replies.
    pub async fn send(&mut self, request: &Request) -> Result<(), Error> {
        frame::send(&mut self.writer, &frame::encode(request, REQUEST_MAX)?).await
    }

    /// The next reply. Waits without a deadline; may be dropped and called again.
    pub async fn next(&mut self) -> Result<Reply, Error> {
        match self.reader.message().await? {
            Some(Reply::Error { code, message }) => Err(Error::Agent { code, message }),
            Some(reply) => Ok(reply),
            None => Err(Error::Closed),
        }
    }

    /// Sends a request and returns its reply, within `within`.
    pub async fn ask(&mut self, request: &Request, within: Duration) -> Result<Reply, Error> {
        timeout(within, async {
            self.send(request).await?;
            self.next().await
        })
        .await
        .map_err(|_elapsed| Error::Deadline)?
    }

    /// All pods, sorted by name, within `within`.
    pub async fn pods(&mut self, within: Duration) -> Result<Vec<PodView>, Error> {
        timeout(within, async {
            self.send(&Request::Pods { watch: false }).await?;
            let mut pods = Vec::new();
            loop {
                match self.next().await? {
                    Reply::Pod { pod } => pods.push(*pod),
                    Reply::Synced => break,
                    // Replies of a newer agent are skipped.
                    _ => {}
                }
            }
            pods.sort_by(|a, b| (&a.key, &a.uid).cmp(&(&b.key, &b.uid)));
            Ok(pods)
        })
        .await
        .map_err(|_elapsed| Error::Deadline)?
    }
}
