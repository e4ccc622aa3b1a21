//! `node vanish`: connections that stop in every state in which a connection can be, and stay there. Whoever runs this
//! takes the network away and ends the program: then the clients have vanished without a word.

use super::client::{Api, As, Client, Tls, head_of, opened};
use anyhow::{Context, Result};
use std::{
    any::Any,
    io::{Read as _, Write as _, stdout},
    thread,
    time::Duration,
};

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Vanish {
    #[command(flatten)]
    api: Api,
    /// Number of connections.
    #[arg(long, default_value_t = 200, value_name = "N")]
    connections: usize,
}

/// A connection that is kept as it is.
type Kept = Box<dyn Any>;

/// A state of a connection: its name, and how a client gets there.
type State = (&'static str, fn(&Client) -> Result<Kept>);

const SPDY: &str = "v4.channel.k8s.io";
const CHANNELS: &str = "v5.channel.k8s.io";

const STATES: [State; 17] = [
    ("connected", |client| Ok(Box::new(client.tcp()?))),
    ("half a handshake", |client| {
        let mut tcp = client.tcp()?;
        tcp.write_all(&[22, 3, 1, 2, 0, 1, 0])?;
        Ok(Box::new(tcp))
    }),
    ("a stranger's handshake", |client| Ok(Box::new(client.connect(As::Stranger)?))),
    ("half a head", |client| asked(client, "GET /pods HTTP/1.1\r\nHost: n\r\nX: ")),
    ("half an upgrade", |client| {
        asked(client, "GET /exec/a/b/c HTTP/1.1\r\nHost: n\r\nUpgrade: SPDY/3.1\r\nConnection: Upgr")
    }),
    ("idle", |client| {
        let mut tls = client.connect(As::Known)?;
        tls.write_all(b"GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n")?;
        head_of(&mut tls)?;
        Ok(Box::new(tls))
    }),
    ("a body that does not come", |client| {
        asked(client, "POST /run/default/none/c HTTP/1.1\r\nHost: n\r\nContent-Length: 1000\r\n\r\nx")
    }),
    ("no streams", |client| Ok(Box::new(client.spdy("exec", "/c?command=cat&input=1&output=1", SPDY)?))),
    ("half a frame", |client| {
        let mut tls = client.spdy("exec", "/c?command=cat&input=1&output=1", SPDY)?;
        tls.write_all(&[0x80, 3, 0, 1, 0, 0, 0, 40, 0, 0])?;
        Ok(Box::new(tls))
    }),
    ("a command that reads", |client| command(client, "exec", "/c?command=cat&input=1&output=1")),
    ("a command that sleeps", |client| {
        command(client, "exec", "/c?command=sleep&command=100000&input=1&output=1")
    }),
    ("a command that writes without end", |client| {
        command(client, "exec", "/c?command=yes&input=1&output=1")
    }),
    ("half a WebSocket frame", |client| {
        let mut tls = client.websocket("exec", "/c?command=cat&input=1&output=1", CHANNELS)?;
        tls.write_all(&[0x82, 0x85, 1])?;
        Ok(Box::new(tls))
    }),
    ("attached", |client| command(client, "attach", "/c?input=1&output=1")),
    ("following", |client| {
        let head = format!("GET /containerLogs/{}/c?follow=true HTTP/1.1\r\nHost: n\r\n\r\n", client.api.pod);
        asked(client, &head)
    }),
    ("forwarding", |client| {
        let mut tls = client.spdy("portForward", "", "portforward.k8s.io")?;
        let of = |kind| [("streamtype", kind), ("port", "80"), ("requestid", "0")];
        tls.write_all(&opened(&[&of("error"), &of("data")]))?;
        Ok(Box::new(tls))
    }),
    ("a run that sleeps", |client| {
        let pod = &client.api.pod;
        asked(client, &format!("POST /run/{pod}/c?cmd=sleep+100000 HTTP/1.1\r\nHost: n\r\n\r\n"))
    }),
];

pub(crate) fn run(options: &Vanish) -> Result<()> {
    let client = Client::new(&options.api)?;
    let mut kept: Vec<Kept> = Vec::new();
    for (name, state) in STATES.iter().cycle().take(options.connections) {
        let reached = state(&client).with_context(|| format!("cannot get to the state {name:?}"))?;
        kept.push(reached);
    }
    let states = STATES.len().min(options.connections);
    writeln!(stdout(), "{{\"connections\":{},\"states\":{states}}}", kept.len())
        .and_then(|()| stdout().flush())
        .context("cannot tell the result")?;
    // The end of standard input ends the program.
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// A request whose answer nobody reads.
fn asked(client: &Client, bytes: &str) -> Result<Kept> {
    let mut tls = client.connect(As::Known)?;
    tls.write_all(bytes.as_bytes())?;
    Ok(Box::new(tls))
}

/// A command or an attachment with its streams.
fn command(client: &Client, verb: &str, rest: &str) -> Result<Kept> {
    let mut tls: Tls = client.spdy(verb, rest, SPDY)?;
    let streams = ["error", "stdin", "stdout"].map(|kind| [("streamtype", kind)]);
    tls.write_all(&opened(&streams.each_ref().map(|headers| &headers[..])))?;
    // The first byte is of the answer to the streams, so the server has taken them.
    tls.read_exact(&mut [0])?;
    Ok(Box::new(tls))
}
