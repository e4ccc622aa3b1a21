//! One connection, one task. Ends at the client's end, at bytes that are no messages, and with the server.

use crate::{
    Backend, ExecSession, Refusal,
    hub::{Change, Hub, Interest},
};
use berth_api::{
    Error,
    frame::{self, FrameReader, REPLY_MAX, REQUEST_MAX},
    message::{ErrorCode, ExecSpec, Hello, Reply, Request},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

/// How long a client may take for its greeting.
const GREETING: Duration = Duration::from_secs(5);

/// How long a client may take to read what it asked for. A watcher that reads nothing for so long is cut off.
const READING: Duration = Duration::from_secs(60);

/// How long a client may take to open its ends of the FIFOs.
const OPENING: Duration = Duration::from_secs(10);

struct Connection<B> {
    reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    hub: Hub,
    backend: Arc<B>,
}

/// Serves it to its end.
pub(crate) async fn serve<B: Backend>(stream: UnixStream, hub: Hub, backend: Arc<B>) {
    let (reader, writer) = stream.into_split();
    let reader = FrameReader::new(reader, REQUEST_MAX);
    let mut connection = Connection { reader, writer, hub, backend };
    if let Err(error) = connection.run().await {
        // The client's doing, or its end in the middle of something.
        tracing::debug!(error = error.chain(), "a connection to the local socket ended");
    }
}

impl<B: Backend> Connection<B> {
    async fn run(&mut self) -> Result<(), Error> {
        let greeting = timeout(GREETING, self.reader.message::<Hello>());
        let Some(theirs) = greeting.await.map_err(|_elapsed| Error::Deadline)?? else { return Ok(()) };
        let ours = Hello::ours();
        // Also to one that cannot be understood: it learns why.
        self.write(&frame::encode(&ours, REPLY_MAX)?).await?;
        if ours.common(&theirs).is_none() {
            return Ok(());
        }
        while let Some(bytes) = self.reader.bytes().await? {
            match serde_json::from_slice::<Request>(&bytes) {
                Ok(request) => self.answer(request).await?,
                Err(e) => {
                    self.refuse(Refusal::new(ErrorCode::Invalid, format!("not a request: {e}"))).await?
                }
            }
        }
        Ok(())
    }

    async fn answer(&mut self, request: Request) -> Result<(), Error> {
        match request {
            Request::Status => {
                let view = self.backend.status().await;
                self.reply(&Reply::Status(Box::new(view))).await
            }
            Request::Pods { watch } => self.pods(watch).await,
            Request::Pod { uid } => match self.hub.pod(&uid).and_then(|p| p.frame()) {
                Some(frame) => self.write(&frame?).await,
                None => {
                    self.refuse(Refusal::new(ErrorCode::NotFound, format!("no pod has the UID {uid}"))).await
                }
            },
            Request::Events { pod } => {
                let events = self.hub.events(pod.as_ref());
                self.reply(&Reply::Events { events }).await
            }
            Request::Exec(spec) => self.exec(spec).await,
            Request::ImportImage { path } => match self.backend.import(path).await {
                Ok(names) => self.reply(&Reply::Imported { names }).await,
                Err(refusal) => self.refuse(refusal).await,
            },
            Request::Images => match self.backend.images().await {
                Ok(images) => self.reply(&Reply::Images { images }).await,
                Err(refusal) => self.refuse(refusal).await,
            },
            Request::Shutdown { grace } => match self.backend.shutdown(grace).await {
                Ok(()) => self.reply(&Reply::ShuttingDown).await,
                Err(refusal) => self.refuse(refusal).await,
            },
            Request::ExecGo | Request::Resize(_) | Request::CloseStdin => {
                self.refuse(Refusal::new(ErrorCode::Invalid, "no command is running")).await
            }
            Request::Unknown => {
                let message = "this agent does not know the request; the client is newer";
                self.refuse(Refusal::new(ErrorCode::Unsupported, message)).await
            }
        }
    }

    async fn pods(&mut self, watch: bool) -> Result<(), Error> {
        // Before the list: a change in between is told twice, never missed.
        let changes = watch.then(|| self.hub.subscribe(Interest::Pods));
        self.list().await?;
        let Some(changes) = changes else { return Ok(()) };
        loop {
            tokio::select! {
                () = changes.changed() => {}
                // A watcher has nothing more to say but its end.
                heard = self.reader.bytes() => match heard? {
                    Some(_) => {
                        let message = "a watch takes no further requests";
                        return self.refuse(Refusal::new(ErrorCode::Invalid, message)).await;
                    }
                    None => return Ok(()),
                },
            }
            while let Some(change) = changes.take() {
                match change {
                    Change::Pod(pod) => {
                        if let Some(frame) = pod.frame() {
                            self.write(&frame?).await?;
                        }
                    }
                    Change::Removed(uid, key) => self.reply(&Reply::Removed { uid, key }).await?,
                    Change::Resync => {
                        self.reply(&Reply::Resync).await?;
                        self.list().await?;
                    }
                    Change::Events(_) => {}
                }
            }
        }
    }

    async fn list(&mut self) -> Result<(), Error> {
        for pod in self.hub.pods() {
            if let Some(frame) = pod.frame() {
                self.write(&frame?).await?;
            }
        }
        self.reply(&Reply::Synced).await
    }

    async fn exec(&mut self, spec: ExecSpec) -> Result<(), Error> {
        let mut session = match self.backend.prepare_exec(spec).await {
            Ok(session) => session,
            Err(refusal) => return self.refuse(refusal).await,
        };
        self.reply(&Reply::ExecReady(session.paths())).await?;
        let go = timeout(OPENING, self.reader.message::<Request>());
        match go.await.map_err(|_elapsed| Error::Deadline)?? {
            Some(Request::ExecGo) => {}
            Some(_) => return self.refuse(Refusal::new(ErrorCode::Invalid, "expected exec-go")).await,
            None => return Ok(()),
        }
        match session.start().await {
            Ok(pid) => self.reply(&Reply::ExecStarted { pid }).await?,
            Err(refusal) => return self.refuse(refusal).await,
        }
        loop {
            tokio::select! {
                ended = session.wait() => {
                    return match ended {
                        Ok(code) => self.reply(&Reply::ExecExited { code }).await,
                        Err(refusal) => self.refuse(refusal).await,
                    };
                }
                heard = self.reader.message::<Request>() => {
                    let done = match heard? {
                        Some(Request::Resize(size)) => session.resize(size).await,
                        Some(Request::CloseStdin) => session.close_stdin().await,
                        Some(_) => Ok(()),
                        // The client is gone: dropping the session ends the command.
                        None => return Ok(()),
                    };
                    if let Err(refusal) = done {
                        tracing::debug!(why = refusal.message, "a running command was not told");
                    }
                }
            }
        }
    }

    async fn refuse(&mut self, refusal: Refusal) -> Result<(), Error> {
        self.reply(&Reply::error(refusal.code, refusal.message)).await
    }

    async fn reply(&mut self, reply: &Reply) -> Result<(), Error> {
        match frame::encode(reply, REPLY_MAX) {
            Ok(frame) => self.write(&frame).await,
            Err(e) => {
                let told =
                    Reply::error(ErrorCode::Failed, format!("the answer cannot be sent: {}", e.chain()));
                self.write(&frame::encode(&told, REPLY_MAX)?).await
            }
        }
    }

    async fn write(&mut self, frame: &[u8]) -> Result<(), Error> {
        timeout(READING, frame::send(&mut self.writer, frame)).await.map_err(|_elapsed| Error::Deadline)?
    }
}
