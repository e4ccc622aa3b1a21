//! One connection of the local socket: a task that ends when the client leaves, sends malformed
//! bytes, or the server ends.

use super::watch_cache::{Change, Interest, WatchCache};
use crate::{ApiError, Backend, ExecSession, PullSession};
use berth_api::{
    Error,
    frame::{self, FrameReader, REPLY_MAX, REQUEST_MAX},
    message::{ErrorCode, ExecSpec, Hello, Reply, Request},
};
use berth_core::error::Chain;
use std::{sync::Arc, time::Duration};
use tokio::{
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

/// Deadline for a client's greeting.
const GREETING: Duration = Duration::from_secs(5);

/// Deadline for a client to read a message. A watcher that reads nothing for so long is
/// disconnected.
const READING: Duration = Duration::from_secs(60);

/// Deadline for a client to open its ends of the FIFOs.
const OPENING: Duration = Duration::from_secs(10);

struct Connection<B> {
    reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    cache: WatchCache,
    backend: Arc<B>,
}

/// Serves a connection until it ends.
pub(crate) async fn serve<B: Backend>(stream: UnixStream, cache: WatchCache, backend: Arc<B>) {
    let (reader, writer) = stream.into_split();
    let reader = FrameReader::new(reader, REQUEST_MAX);
    let mut connection = Connection { reader, writer, cache, backend };
    if let Err(error) = connection.run().await {
        // Clients cause these: malformed bytes, or a disconnect in the middle of a message.
        tracing::debug!(error = %Chain(&error), "a connection to the local socket ended");
    }
}

impl<B: Backend> Connection<B> {
    async fn run(&mut self) -> Result<(), Error> {
        let greeting = timeout(GREETING, self.reader.message::<Hello>());
        let Some(theirs) = greeting.await.map_err(|_elapsed| Error::Deadline)?? else { return Ok(()) };
        let ours = Hello::ours();
        // Sent to incompatible clients too, so that they can name both versions.
        self.write(&frame::encode(&ours, REPLY_MAX)?).await?;
        if ours.common(&theirs).is_none() {
            return Ok(());
        }
        while let Some(bytes) = self.reader.bytes().await? {
            match serde_json::from_slice::<Request>(&bytes) {
                Ok(request) => self.answer(request).await?,
                Err(e) => {
                    self.fail(ApiError::new(ErrorCode::Invalid, format!("cannot read the request: {e}")))
                        .await?
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
            Request::Pod { uid } => match self.cache.pod(&uid).and_then(|p| p.frame()) {
                Some(frame) => self.write(&frame?).await,
                None => {
                    self.fail(ApiError::new(ErrorCode::NotFound, format!("no pod has the UID {uid}"))).await
                }
            },
            Request::Events { pod } => {
                let events = self.cache.events(pod.as_ref());
                self.reply(&Reply::Events { events }).await
            }
            Request::Exec(spec) => self.exec(spec).await,
            Request::ImportImage { path } => {
                let names = self.backend.import(path).await;
                self.outcome(names.map(|names| Reply::Imported { names })).await
            }
            Request::Images => {
                let images = self.backend.images().await;
                self.outcome(images.map(|images| Reply::Images { images })).await
            }
            Request::PullImage { image } => self.pull(image).await,
            Request::Pulls => {
                let pulls = self.backend.pulls();
                self.reply(&Reply::Pulls { pulls }).await
            }
            Request::RemoveImage { image, force } => {
                let names = self.backend.remove_image(image, force).await;
                self.outcome(names.map(|names| Reply::RemovedImages { names })).await
            }
            Request::TagImage { image, name } => {
                let name = self.backend.tag_image(image, name).await;
                self.outcome(name.map(|name| Reply::Tagged { name })).await
            }
            Request::InspectImage { image } => {
                let image = self.backend.inspect_image(image).await;
                self.outcome(image.map(|image| Reply::Image { image: Box::new(image) })).await
            }
            Request::PruneImages { all } => {
                let pruned = self.backend.prune_images(all).await;
                self.outcome(pruned.map(|view| Reply::PrunedImages(Box::new(view)))).await
            }
            Request::VerifyImage { image } => {
                let verified = self.backend.verify_image(image).await;
                self.outcome(verified.map(|image| Reply::VerifiedImage { image: Box::new(image) })).await
            }
            Request::Shutdown { grace } => {
                let begun = self.backend.shutdown(grace).await;
                self.outcome(begun.map(|()| Reply::ShuttingDown)).await
            }
            Request::ExecGo | Request::Resize(_) | Request::CloseStdin => {
                self.fail(ApiError::new(ErrorCode::Invalid, "no command is running")).await
            }
            Request::Unknown => {
                let message =
                    "this agent does not know the request: the command line is newer than the agent";
                self.fail(ApiError::new(ErrorCode::Unsupported, message)).await
            }
        }
    }

    async fn pods(&mut self, watch: bool) -> Result<(), Error> {
        // Subscribed before the list is read: a change in between is sent twice, never missed.
        let changes = watch.then(|| self.cache.subscribe(Interest::Pods));
        self.list().await?;
        let Some(changes) = changes else { return Ok(()) };
        loop {
            tokio::select! {
                () = changes.changed() => {}
                // A watching client sends no further requests; this notices when it leaves.
                received = self.reader.bytes() => match received? {
                    Some(_) => {
                        let message = "a watch takes no further requests";
                        return self.fail(ApiError::new(ErrorCode::Invalid, message)).await;
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
        for pod in self.cache.pods() {
            if let Some(frame) = pod.frame() {
                self.write(&frame?).await?;
            }
        }
        self.reply(&Reply::Synced).await
    }

    /// Pulls an image and tells each step. The pull goes on where the client leaves.
    async fn pull(&mut self, image: String) -> Result<(), Error> {
        let mut session = match self.backend.pull(image).await {
            Ok(session) => session,
            Err(error) => return self.fail(error).await,
        };
        loop {
            tokio::select! {
                progress = session.progress() => match progress {
                    Some(progress) => self.reply(&Reply::Pulling { progress }).await?,
                    None => break,
                },
                received = self.reader.bytes() => match received? {
                    Some(_) => {
                        let message = "a pull takes no further requests";
                        return self.fail(ApiError::new(ErrorCode::Invalid, message)).await;
                    }
                    None => return Ok(()),
                },
            }
        }
        let pulled = session.end().await;
        self.outcome(pulled.map(|image| Reply::Pulled { image })).await
    }

    async fn exec(&mut self, spec: ExecSpec) -> Result<(), Error> {
        let mut session = match self.backend.prepare_exec(spec).await {
            Ok(session) => session,
            Err(error) => return self.fail(error).await,
        };
        self.reply(&Reply::ExecReady(session.paths())).await?;
        let go = timeout(OPENING, self.reader.message::<Request>());
        match go.await.map_err(|_elapsed| Error::Deadline)?? {
            Some(Request::ExecGo) => {}
            Some(_) => return self.fail(ApiError::new(ErrorCode::Invalid, "expected exec-go")).await,
            None => return Ok(()),
        }
        match session.start().await {
            Ok(pid) => self.reply(&Reply::ExecStarted { pid }).await?,
            Err(error) => return self.fail(error).await,
        }
        loop {
            tokio::select! {
                ended = session.wait() => {
                    return match ended {
                        Ok(code) => self.reply(&Reply::ExecExited { code }).await,
                        Err(error) => self.fail(error).await,
                    };
                }
                received = self.reader.message::<Request>() => {
                    let done = match received? {
                        Some(Request::Resize(size)) => session.resize(size).await,
                        Some(Request::CloseStdin) => session.close_stdin().await,
                        Some(_) => Ok(()),
                        // The client has left; dropping the session kills the command.
                        None => return Ok(()),
                    };
                    if let Err(error) = done {
                        tracing::debug!(error = %error.message, "cannot pass the request on to the command");
                    }
                }
            }
        }
    }

    /// Sends the reply of a request that may have failed.
    async fn outcome(&mut self, outcome: Result<Reply, ApiError>) -> Result<(), Error> {
        match outcome {
            Ok(reply) => self.reply(&reply).await,
            Err(error) => self.fail(error).await,
        }
    }

    async fn fail(&mut self, error: ApiError) -> Result<(), Error> {
        self.reply(&Reply::error(error.code, error.message)).await
    }

    async fn reply(&mut self, reply: &Reply) -> Result<(), Error> {
        match frame::encode(reply, REPLY_MAX) {
            Ok(frame) => self.write(&frame).await,
            Err(e) => {
                let error = Reply::error(ErrorCode::Failed, format!("cannot send the answer: {}", Chain(&e)));
                self.write(&frame::encode(&error, REPLY_MAX)?).await
            }
        }
    }

    async fn write(&mut self, frame: &[u8]) -> Result<(), Error> {
        timeout(READING, frame::send(&mut self.writer, frame)).await.map_err(|_elapsed| Error::Deadline)?
    }
}
