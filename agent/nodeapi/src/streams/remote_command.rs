//! Exec and attach: the streams of a client, and the bytes between them and a process.
//!
//! Each direction is read only when its other side has taken what was read before, so a slow client holds the process
//! and a slow process holds the client. When the process has ended, what its pipes hold is sent, then the outcome, then
//! the ends of the streams. A session that is dropped, because its client is gone, drops the process with it.

use super::{
    Process, ProcessControl, TerminalSize, WantedStreams,
    channel_reader::ChannelMaker,
    connection::{CREATION, Inbox},
    outlet::{CHUNK, Chunk, Gone, Outlet},
    resize::Sizes,
    spdy::NewStream,
    status::{Outcome, StatusForm},
    websocket::channels::Codec,
};
use std::{io, time::Duration};
use tokio::{
    io::AsyncWriteExt as _,
    net::unix::pipe,
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

/// Versions of the protocol that are spoken on SPDY, the newest first (`k8s.io/cri-streaming`, `remotecommand`).
pub(super) const SPDY_VERSIONS: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// Protocols that are spoken on a WebSocket, where a client that names none gets the first.
pub(super) const WEBSOCKET_PROTOCOLS: [(&str, Codec, StatusForm); 6] = [
    ("", Codec::Binary, StatusForm::Text),
    ("v5.channel.k8s.io", Codec::BinaryWithEnd, StatusForm::Json),
    ("v4.channel.k8s.io", Codec::Binary, StatusForm::Json),
    ("v4.base64.channel.k8s.io", Codec::Base64, StatusForm::Json),
    ("channel.k8s.io", Codec::Binary, StatusForm::Text),
    ("base64.channel.k8s.io", Codec::Base64, StatusForm::Text),
];

/// Numbers of the channels on a WebSocket.
mod channel {
    pub(super) const STDIN: u8 = 0;
    pub(super) const STDOUT: u8 = 1;
    pub(super) const STDERR: u8 = 2;
    pub(super) const ERROR: u8 = 3;
    pub(super) const RESIZE: u8 = 4;
}

/// Longest silence of a pipe after the end of its process. A child that goes on may hold the pipe open for ever.
pub(super) const DRAIN: Duration = Duration::from_secs(2);

/// The streams of a client.
#[derive(Debug)]
pub(super) struct CommandStreams {
    stdin: Option<Inbox>,
    stdout: Option<Outlet>,
    stderr: Option<Outlet>,
    error: Outlet,
    resize: ResizeSource,
    form: StatusForm,
}

/// Where the sizes of the client's terminal come from.
#[derive(Debug)]
enum ResizeSource {
    /// A stream or channel that is there.
    Open(Inbox),
    /// A stream that the client may still open.
    Later(mpsc::Receiver<NewStream>),
}

impl CommandStreams {
    /// The channels of a WebSocket.
    pub(super) fn channels(
        maker: &mut ChannelMaker,
        wanted: WantedStreams,
        form: StatusForm,
    ) -> CommandStreams {
        CommandStreams {
            stdin: wanted.stdin.then(|| maker.inbox(channel::STDIN)),
            stdout: wanted.stdout.then(|| maker.outlet(channel::STDOUT)),
            stderr: wanted.stderr.then(|| maker.outlet(channel::STDERR)),
            error: maker.outlet(channel::ERROR),
            resize: ResizeSource::Open(maker.inbox(channel::RESIZE)),
            form,
        }
    }

    /// Sends an empty message on the first channel that the client reads: clients wait for it.
    pub(super) async fn greet(&self) -> Result<(), Gone> {
        let first = self.stdout.as_ref().or(self.stderr.as_ref()).unwrap_or(&self.error);
        first.send(Chunk::of(&[])).await
    }

    /// Waits for the streams that a client of this version opens on SPDY. An error where it does not in time. The stream
    /// of sizes may come later: a client without a terminal of its own opens none.
    pub(super) async fn opened(
        mut streams: mpsc::Receiver<NewStream>,
        wanted: WantedStreams,
        version: &str,
    ) -> Result<CommandStreams, Gone> {
        let mut waiting = Waiting::default();
        let all = async {
            while !waiting.complete(wanted) {
                waiting.add(streams.recv().await.ok_or(Gone)?).await;
            }
            Ok(())
        };
        timeout(CREATION, all).await.map_err(|_elapsed| Gone)??;
        // The first version ends the node's side of the input at once.
        if let Some(stdin) = waiting.stdin.as_ref().filter(|_| version == "channel.k8s.io") {
            stdin.outlet.finish().await?;
        }
        Ok(CommandStreams {
            stdin: waiting.stdin.map(|stream| stream.inbox),
            stdout: waiting.stdout.map(|stream| stream.outlet),
            stderr: waiting.stderr.map(|stream| stream.outlet),
            error: waiting.error.ok_or(Gone)?.outlet,
            resize: match waiting.resize {
                Some(stream) => ResizeSource::Open(stream.inbox),
                None => ResizeSource::Later(streams),
            },
            form: if version == SPDY_VERSIONS[0] { StatusForm::Json } else { StatusForm::Text },
        })
    }

    /// Carries bytes until the process has ended, and tells the client how. An error of the start is told likewise.
    pub(super) async fn serve(
        self,
        start: impl Future<Output = Result<Process, String>>,
    ) -> Result<(), Gone> {
        let outcome = match start.await {
            Ok(process) => {
                let outputs = (self.stdout.as_ref(), self.stderr.as_ref());
                carry(process, outputs, self.stdin, self.resize).await
            }
            Err(why) => Outcome::Failed(why),
        };
        let status = outcome.bytes(self.form);
        for stream in self.stdout.iter().chain(&self.stderr) {
            stream.finish().await?;
        }
        if !status.is_empty() {
            self.error.send(Chunk::of(&status)).await?;
        }
        self.error.finish().await?;
        self.error.end_connection().await
    }
}

/// Streams that have been opened so far.
#[derive(Debug, Default)]
struct Waiting {
    stdin: Option<NewStream>,
    stdout: Option<NewStream>,
    stderr: Option<NewStream>,
    error: Option<NewStream>,
    resize: Option<NewStream>,
}

impl Waiting {
    fn complete(&self, wanted: WantedStreams) -> bool {
        self.error.is_some()
            && (!wanted.stdin || self.stdin.is_some())
            && (!wanted.stdout || self.stdout.is_some())
            && (!wanted.stderr || self.stderr.is_some())
    }

    /// Keeps a stream by its type. A second one of a type takes the place of the first.
    async fn add(&mut self, stream: NewStream) {
        let place = match stream.headers.get("streamtype") {
            Some("stdin") => &mut self.stdin,
            Some("stdout") => &mut self.stdout,
            Some("stderr") => &mut self.stderr,
            Some("error") => &mut self.error,
            Some("resize") => &mut self.resize,
            _ => return,
        };
        if let Some(former) = place.replace(stream) {
            // Fails where the client is gone, which ends the session.
            let _sent = former.outlet.reset().await;
        }
    }
}

/// Whether a stream is of a type that a command has.
pub(super) fn admit(headers: &berth_spdy::Headers) -> bool {
    matches!(headers.get("streamtype"), Some("stdin" | "stdout" | "stderr" | "error" | "resize"))
}

/// What the client asks of a running process.
#[derive(Debug)]
enum Ask {
    Resize(TerminalSize),
    CloseStdin,
}

async fn carry(
    process: Process,
    (stdout, stderr): (Option<&Outlet>, Option<&Outlet>),
    stdin: Option<Inbox>,
    resize: ResizeSource,
) -> Outcome {
    let Process { stdin: stdin_to, stdout: stdout_from, stderr: stderr_from, control, ends_with_output } =
        process;
    let (ask, asked) = mpsc::channel(4);
    let (end, ended) = watch::channel(false);
    let pumps = async {
        tokio::join!(pump(stdout_from, stdout, ended.clone()), pump(stderr_from, stderr, ended.clone()),);
        if ends_with_output && timeout(DRAIN, ended.clone().wait_for(|ended| *ended)).await.is_err() {
            return Err("the output is not followed any more: the client was too slow for it".to_owned());
        }
        Ok(())
    };
    let output = async { tokio::try_join!(run(control, asked, end), pumps).map(|(code, ())| code) };
    let input = async {
        tokio::join!(feed(stdin, stdin_to, &ask), follow_sizes(resize, &ask));
        std::future::pending::<()>().await;
    };
    let code = tokio::select! {
        code = output => code,
        () = input => Err("the input has ended".to_owned()),
    };
    match code {
        Ok(code) => Outcome::Exited(code),
        Err(why) => Outcome::Failed(format!("error executing command in container: {why}")),
    }
}

/// Waits for the process's end and does what the client asks meanwhile.
async fn run(
    mut control: Box<dyn ProcessControl>,
    mut asked: mpsc::Receiver<Ask>,
    end: watch::Sender<bool>,
) -> Result<i32, String> {
    let code = loop {
        let ask = tokio::select! {
            code = control.wait() => break code,
            Some(ask) = asked.recv() => ask,
        };
        // A process that has just ended cannot do either; its end is reported by the wait.
        match ask {
            Ask::Resize(size) => drop(control.resize(size).await),
            Ask::CloseStdin => drop(control.close_stdin().await),
        }
    };
    end.send_replace(true);
    code
}

/// Sends a pipe's bytes to the client until its last writer is gone. Without a client for it they are dropped.
async fn pump(from: Option<pipe::Receiver>, to: Option<&Outlet>, mut ended: watch::Receiver<bool>) {
    let Some(from) = from else { return };
    loop {
        let readable = tokio::select! {
            readable = from.readable() => readable,
            () = silence(&mut ended) => return,
        };
        if readable.is_err() {
            return;
        }
        let mut chunk = Chunk::with_capacity(CHUNK);
        match from.try_read_buf(chunk.buffer()) {
            Ok(0) => return,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        }
        // A client that is gone ends the session; one that has given up this stream only gets no more of it.
        if let Some(to) = to
            && to.send(chunk).await.is_err()
        {
            return;
        }
    }
}

/// Ends after a while of waiting in which the process had ended.
async fn silence(ended: &mut watch::Receiver<bool>) {
    if ended.wait_for(|ended| *ended).await.is_err() {
        return std::future::pending().await;
    }
    sleep(DRAIN).await;
}

/// Writes what the client sends to the process, and passes on its end.
async fn feed(from: Option<Inbox>, to: Option<pipe::Sender>, ask: &mpsc::Sender<Ask>) {
    let (Some(mut from), Some(mut to)) = (from, to) else { return };
    while let Some(bytes) = from.recv().await {
        // A process that has closed its input gets no more of it; what the client sends then is dropped.
        if to.write_all(&bytes).await.is_err() {
            break;
        }
    }
    drop(to);
    // A failure means that the process has ended.
    let _asked = ask.send(Ask::CloseStdin).await;
}

/// Passes the sizes of the client's terminal on.
async fn follow_sizes(from: ResizeSource, ask: &mpsc::Sender<Ask>) {
    let mut from = match from {
        ResizeSource::Open(inbox) => inbox,
        ResizeSource::Later(mut streams) => loop {
            let Some(stream) = streams.recv().await else { return };
            if stream.headers.get("streamtype") == Some("resize") {
                break stream.inbox;
            }
        },
    };
    let mut sizes = Sizes::default();
    while let Some(bytes) = from.recv().await {
        if let Some(size) = sizes.add(&bytes)
            && ask.send(Ask::Resize(size)).await.is_err()
        {
            return;
        }
    }
}
