//! Streams of a client over a socket in memory, with a process of the test behind them.

mod forwarding;

use super::{
    Process, ProcessControl, TerminalSize, WantedStreams,
    channel_reader::ChannelMaker,
    connection::{CREATION, serve},
    port_forward::{self, Forwarder},
    remote_command::{self, CommandStreams},
    spdy,
    status::StatusForm,
    websocket::{self, Opcode, channels::Codec},
};
use crate::{Boxed, PodState};
use berth_core::{
    ids::*,
    model::Pod,
    model::QosClass,
    status::{Phase, PodStatus},
};
use berth_spdy::{Decoder, Frame, Headers, Limits, encode};
use bytes::{Buf, BytesMut};
use std::{collections::BTreeMap, io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    net::{TcpListener, unix::pipe},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

/// What the process was asked for.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Resized(u16, u16),
    StdinClosed,
    Dropped,
}

/// A process that ends when the test says so.
struct FakeProcess {
    code: Option<oneshot::Receiver<i32>>,
    told: mpsc::UnboundedSender<Told>,
}

impl ProcessControl for FakeProcess {
    fn wait(&mut self) -> Boxed<'_, Result<i32, String>> {
        Box::pin(async {
            let code = self.code.as_mut().unwrap().await.map_err(|e| e.to_string());
            self.code = None;
            code
        })
    }

    fn resize(&mut self, size: TerminalSize) -> Boxed<'_, Result<(), String>> {
        self.told.send(Told::Resized(size.width, size.height)).unwrap();
        Box::pin(async { Ok(()) })
    }

    fn close_stdin(&mut self) -> Boxed<'_, Result<(), String>> {
        self.told.send(Told::StdinClosed).unwrap();
        Box::pin(async { Ok(()) })
    }
}

impl Drop for FakeProcess {
    fn drop(&mut self) {
        self.told.send(Told::Dropped).ok();
    }
}

/// The test's side of the process.
struct Inside {
    stdin: pipe::Receiver,
    stdout: Option<pipe::Sender>,
    exit: oneshot::Sender<i32>,
    told: mpsc::UnboundedReceiver<Told>,
}

fn process() -> (Process, Inside) {
    let (stdin, inside_stdin) = pipe::pipe().unwrap();
    let (inside_stdout, stdout) = pipe::pipe().unwrap();
    let (exit, code) = oneshot::channel();
    let (told_to, told) = mpsc::unbounded_channel();
    let control = Box::new(FakeProcess { code: Some(code), told: told_to });
    let process =
        Process { stdin: Some(stdin), stdout: Some(stdout), stderr: None, ends_with_output: false, control };
    (process, Inside { stdin: inside_stdin, stdout: Some(inside_stdout), exit, told })
}

const WANTED: WantedStreams = WantedStreams { stdin: true, stdout: true, stderr: false, tty: true };

/// A client that speaks SPDY, on its own or in a WebSocket.
struct Client {
    socket: DuplexStream,
    tunnelled: bool,
    writer: encode::HeaderWriter,
    decoder: Decoder,
    raw: BytesMut,
    received: BytesMut,
}

/// A client's WebSocket frame.
fn masked(payload: &[u8]) -> Vec<u8> {
    let (head, length) = websocket::head(Opcode::Binary, payload.len());
    let mut frame = head[..length].to_vec();
    frame[1] |= 0x80;
    frame.extend([1, 2, 3, 4]);
    frame.extend(payload.iter().zip([1, 2, 3, 4].iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// Takes a server's frame off the bytes.
fn unframed(raw: &mut BytesMut) -> Option<(u8, BytesMut)> {
    let (opcode, mark) = (raw.first()? & 0x0f, *raw.get(1)?);
    let (length, head) = match mark {
        126 => (usize::from(u16::from_be_bytes([*raw.get(2)?, *raw.get(3)?])), 4),
        127 => (usize::try_from(u64::from_be_bytes(raw.get(2..10)?.try_into().unwrap())).unwrap(), 10),
        short => (usize::from(short), 2),
    };
    if raw.len() < head + length {
        return None;
    }
    raw.advance(head);
    Some((opcode, raw.split_to(length)))
}

impl Client {
    fn new(socket: DuplexStream, tunnelled: bool) -> Client {
        let (raw, received) = (BytesMut::new(), BytesMut::new());
        let decoder = Decoder::new(Limits::DEFAULT);
        Client { socket, tunnelled, writer: encode::HeaderWriter::default(), decoder, raw, received }
    }

    async fn write(&mut self, frames: &[u8]) {
        let bytes = if self.tunnelled { masked(frames) } else { frames.to_vec() };
        self.socket.write_all(&bytes).await.unwrap();
    }

    async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
        let mut frame = Vec::new();
        self.writer.syn_stream(&mut frame, stream, false, &Headers::of(headers));
        self.write(&frame).await;
    }

    async fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        let frame = [&encode::data_head(stream, bytes.len(), fin)[..], bytes].concat();
        self.write(&frame).await;
    }

    /// The next frame; `None` at the end of the connection.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next(&mut self.received).unwrap() {
                return Some(frame);
            }
            let into = if self.tunnelled { &mut self.raw } else { &mut self.received };
            if timeout(Duration::from_secs(60), self.socket.read_buf(into)).await.unwrap().unwrap() == 0 {
                return None;
            }
            while let Some((opcode, payload)) = self.tunnelled.then(|| unframed(&mut self.raw)).flatten() {
                if opcode == Opcode::Binary as u8 {
                    self.received.extend_from_slice(&payload);
                }
            }
        }
    }

    /// Reads to the end: the bytes of each stream, and the streams that were reset.
    async fn rest(&mut self) -> (BTreeMap<u32, Vec<u8>>, Vec<u32>) {
        let (mut bytes, mut resets) = (BTreeMap::<u32, Vec<u8>>::new(), Vec::new());
        while let Some(frame) = self.next().await {
            match frame {
                Frame::Data { stream, payload, .. } => bytes.entry(stream).or_default().extend(payload),
                Frame::RstStream { stream, .. } => resets.push(stream),
                _ => {}
            }
        }
        (bytes, resets)
    }
}

/// Serves a command on SPDY; the client has opened its streams: error 1, stdin 3, stdout 5, resize 7.
async fn command(version: &'static str, process: Process) -> (Client, JoinHandle<io::Result<()>>) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let served = tokio::spawn(async move {
        let (reader, queues, streams) = spdy::connection(remote_command::admit, false);
        let session = async move {
            let streams = CommandStreams::opened(streams, WANTED, version).await?;
            streams.serve(async { Ok(process) }).await
        };
        serve(theirs, reader, queues, session).await
    });
    let mut client = Client::new(ours, false);
    for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "resize")] {
        client.open(stream, &[("streamtype", kind)]).await;
    }
    (client, served)
}

#[tokio::test]
async fn a_command_on_spdy_gets_its_input_and_tells_its_output_and_code() {
    let (process, mut inside) = process();
    let (mut client, served) = command("v4.channel.k8s.io", process).await;
    client.data(7, b"{\"Width\":80,\"Height\":24}", false).await;
    assert_eq!(inside.told.recv().await, Some(Told::Resized(80, 24)));
    client.data(3, b"question", false).await;
    let mut input = [0; 8];
    inside.stdin.read_exact(&mut input).await.unwrap();
    assert_eq!(&input, b"question");
    client.data(3, b"", true).await;
    assert_eq!(inside.told.recv().await, Some(Told::StdinClosed));
    assert_eq!(inside.stdin.read(&mut input).await.unwrap(), 0, "the end of the input reaches the process");

    inside.exit.send(42).unwrap();
    // The pipe's last bytes are sent although the process has ended.
    let mut stdout = inside.stdout.take().unwrap();
    stdout.write_all(b"answer").await.unwrap();
    drop(stdout);
    let (bytes, resets) = client.rest().await;
    assert_eq!(bytes[&5], b"answer");
    let status: serde_json::Value = serde_json::from_slice(&bytes[&1]).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "42");
    assert!(resets.is_empty(), "{resets:?}");
    drop(client);
    served.await.unwrap().unwrap();
    assert_eq!(inside.told.recv().await, Some(Told::Dropped));
}

#[tokio::test]
async fn earlier_versions_get_a_text_and_a_success_says_nothing() {
    for (version, code, text) in [
        ("v3.channel.k8s.io", 1, "command terminated with non-zero exit code: exit code 1"),
        ("v2.channel.k8s.io", 0, ""),
        ("channel.k8s.io", 3, "command terminated with non-zero exit code: exit code 3"),
    ] {
        let (process, mut inside) = process();
        let (mut client, served) = command(version, process).await;
        drop(inside.stdout.take());
        inside.exit.send(code).unwrap();
        let (bytes, _) = client.rest().await;
        assert_eq!(bytes[&1], text.as_bytes(), "{version}");
        drop(client);
        served.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_client_that_is_gone_ends_the_process_also_while_it_does_not_read() {
    let (process, mut inside) = process();
    let (mut client, served) = command("v4.channel.k8s.io", process).await;
    // The process writes without end, and the client reads nothing of it.
    let mut stdout = inside.stdout.take().unwrap();
    let writing = tokio::spawn(async move { while stdout.write_all(&[0; 4096]).await.is_ok() {} });
    client.data(3, b"x", false).await;
    inside.stdin.read_exact(&mut [0]).await.unwrap();
    drop(client);
    assert_eq!(inside.told.recv().await, Some(Told::Dropped));
    assert!(served.await.unwrap().is_err());
    writing.await.unwrap();
}

#[tokio::test]
async fn a_process_that_does_not_read_holds_its_client_and_ends_in_order() {
    let (process, mut inside) = process();
    let (mut client, served) = command("v4.channel.k8s.io", process).await;
    let mut sent = 0_usize;
    while timeout(Duration::from_millis(300), client.data(3, &[7; 8192], false)).await.is_ok() {
        sent += 8192;
        assert!(sent < 4 << 20, "the client is not held");
    }
    drop(inside.stdout.take());
    inside.exit.send(0).unwrap();
    // The rest of a frame that was cut above is of no matter: the connection ends.
    let (bytes, _) = client.rest().await;
    assert!(String::from_utf8_lossy(&bytes[&1]).contains("Success"));
    drop(client);
    // The cut frame may count as an end of the client.
    let _ended = served.await.unwrap();
    assert_eq!(inside.told.recv().await, Some(Told::Dropped));
}

#[tokio::test]
async fn any_number_of_questions_is_answered() {
    let (process, _inside) = process();
    let (mut client, _served) = command("v4.channel.k8s.io", process).await;
    const PINGS: u32 = 1000;
    let mut pings = Vec::new();
    (0..PINGS).for_each(|ping| encode::ping(&mut pings, 2 * ping + 1));
    // More than the answers that may wait, in one piece.
    client.write(&pings).await;
    let mut answered = 0;
    while answered < PINGS {
        match client.next().await.expect("the connection has ended") {
            Frame::Ping { id } => {
                assert_eq!(id, 2 * answered + 1);
                answered += 1;
            }
            other => assert!(matches!(other, Frame::SynReply { .. }), "{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_output_of_a_run_ends_with_its_process_also_while_a_child_holds_the_pipe() {
    let (mut child, pipe) = pipe::pipe().unwrap();
    let (end, ended) = tokio::sync::watch::channel(false);
    child.write_all(b"before").await.unwrap();
    let mut output = Vec::new();
    {
        let mut collecting = std::pin::pin!(super::collect(Some(pipe), &mut output, ended));
        assert!(timeout(Duration::from_secs(60), &mut collecting).await.is_err(), "the process runs");
        end.send_replace(true);
        timeout(Duration::from_secs(60), collecting).await.expect("the answer waits for the child");
    }
    assert_eq!(output, b"before");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_opens_no_streams_has_half_a_minute() {
    let (ours, theirs) = tokio::io::duplex(1024);
    let began = tokio::time::Instant::now();
    let (reader, queues, streams) = spdy::connection(remote_command::admit, false);
    let session =
        async move { CommandStreams::opened(streams, WANTED, "v4.channel.k8s.io").await.map(|_streams| ()) };
    let mut client = Client::new(ours, false);
    client.open(1, &[("streamtype", "error")]).await;
    let served = tokio::spawn(async move { serve(theirs, reader, queues, session).await });
    client.rest().await;
    assert!(began.elapsed() >= CREATION);
    assert!(served.await.unwrap().is_err());
}

/// Serves a command by channels.
fn channels(codec: Codec, form: StatusForm, process: Process) -> (DuplexStream, JoinHandle<io::Result<()>>) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let served = tokio::spawn(async move {
        let mut maker = ChannelMaker::new(codec);
        let streams = CommandStreams::channels(&mut maker, WANTED, form);
        let (reader, queues) = maker.connection();
        let session = async move {
            streams.greet().await?;
            streams.serve(async { Ok(process) }).await
        };
        serve(theirs, reader, queues, session).await
    });
    (ours, served)
}

/// The messages of the server to its end.
async fn messages(socket: &mut DuplexStream) -> Vec<(u8, Vec<u8>)> {
    let (mut raw, mut messages) = (BytesMut::new(), Vec::new());
    while timeout(Duration::from_secs(20), socket.read_buf(&mut raw)).await.unwrap().unwrap() > 0 {
        while let Some((opcode, payload)) = unframed(&mut raw) {
            messages.push((opcode, payload.to_vec()));
        }
    }
    messages
}

#[tokio::test]
async fn a_command_on_a_websocket_ends_its_input_by_a_message() {
    let (process, mut inside) = process();
    let (mut socket, served) = channels(Codec::BinaryWithEnd, StatusForm::Json, process);
    socket.write_all(&masked(b"\x04{\"Width\":1,\"Height\":2}")).await.unwrap();
    assert_eq!(inside.told.recv().await, Some(Told::Resized(1, 2)));
    socket.write_all(&masked(b"\0hello")).await.unwrap();
    socket.write_all(&masked(b"\xff\0")).await.unwrap();
    let mut input = Vec::new();
    inside.stdin.read_to_end(&mut input).await.unwrap();
    assert_eq!(input, b"hello");
    assert_eq!(inside.told.recv().await, Some(Told::StdinClosed));
    inside.stdout.take().unwrap().write_all(b"out").await.unwrap();
    inside.exit.send(0).unwrap();
    let messages = messages(&mut socket).await;
    assert_eq!(messages[0], (2, vec![1]), "clients wait for an empty message");
    assert_eq!(messages[1], (2, b"\x01out".to_vec()));
    assert!(messages[2].1.starts_with(b"\x03{"), "{messages:?}");
    assert_eq!(messages[3], (8, vec![3, 232]));
    drop(socket);
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_command_by_base64_and_a_client_that_closes() {
    let (process, mut inside) = process();
    let (mut socket, served) = channels(Codec::Base64, StatusForm::Text, process);
    socket.write_all(&masked(b"0aGVsbG8=")).await.unwrap();
    let mut input = [0; 5];
    inside.stdin.read_exact(&mut input).await.unwrap();
    assert_eq!(&input, b"hello");
    let mut close = masked(&[]);
    close[0] = 0x88;
    socket.write_all(&close).await.unwrap();
    assert!(served.await.unwrap().is_err());
    assert_eq!(inside.told.recv().await, Some(Told::Dropped));
}
