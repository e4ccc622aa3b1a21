//! The asking side.

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

/// How long the greeting may take: whoever needs longer is taken for away.
const GREETING: Duration = Duration::from_secs(2);

/// A connection to the agent.
#[derive(Debug)]
pub struct Client {
    reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// What the agent said of itself.
    pub agent: Hello,
}

impl Client {
    /// Connects and greets, within two seconds.
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

    /// Sends a request; the answers come by [`Client::next`].
    pub async fn send(&mut self, request: &Request) -> Result<(), Error> {
        frame::send(&mut self.writer, &frame::encode(request, REQUEST_MAX)?).await
    }

    /// The next answer. Waits as long as it takes; may be dropped and called again.
    pub async fn next(&mut self) -> Result<Reply, Error> {
        match self.reader.message().await? {
            Some(Reply::Error { code, message }) => Err(Error::Refused { code, message }),
            Some(reply) => Ok(reply),
            None => Err(Error::Closed),
        }
    }

    /// One question, one answer, within the time given.
    pub async fn ask(&mut self, request: &Request, within: Duration) -> Result<Reply, Error> {
        timeout(within, async {
            self.send(request).await?;
            self.next().await
        })
        .await
        .map_err(|_elapsed| Error::Deadline)?
    }

    /// All pods, by name, within the time given.
    pub async fn pods(&mut self, within: Duration) -> Result<Vec<PodView>, Error> {
        timeout(within, async {
            self.send(&Request::Pods { watch: false }).await?;
            let mut pods = Vec::new();
            loop {
                match self.next().await? {
                    Reply::Pod { pod } => pods.push(*pod),
                    Reply::Synced => break,
                    // What a newer agent says besides.
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
