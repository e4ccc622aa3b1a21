//! The world outside the machine: a network namespace and processes that the node's hooks do not cover. The
//! test's outer process creates it. The inner process sends requests over a socket, one line for each request
//! and answer.

use anyhow::{Context, Result, bail, ensure};
use berth_harness::netns::Netns;
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::Weak,
    time::Duration,
};

/// Answers requests on a thread until the namespace is gone.
pub(crate) fn serve(socket: &Path, netns: Weak<Netns>, machine: u32) -> Result<()> {
    let listener = UnixListener::bind(socket).context("listen for the part inside")?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let said = BufReader::new(&stream).lines().next().and_then(Result::ok).unwrap_or_default();
            let Some(netns) = netns.upgrade() else { return };
            let answer = match answer(&netns, machine, &said) {
                Ok(text) => format!("ok {text}\n"),
                Err(error) => format!("no {}\n", format!("{error:#}").replace('\n', " ")),
            };
            // The inner process may have ended.
            let _told = (&stream).write_all(answer.as_bytes());
        }
    });
    Ok(())
}

fn answer(netns: &Netns, machine: u32, said: &str) -> Result<String> {
    match said.split(' ').collect::<Vec<_>>()[..] {
        ["get", at] => netns.enter(|| get(at))?,
        ["join", name, address] => {
            netns.ip(&format!("link add node type veth peer name {name} netns {machine}"))?;
            netns.ip(&format!("address add {address} dev node"))?;
            netns.ip("link set node up").map(|_| String::new())
        }
        _ => bail!("{said:?} is no question"),
    }
}

/// The inner process's access to the outside, by the path of the socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outside<'a>(pub(crate) &'a Path);

impl Outside<'_> {
    fn ask(&self, question: &str) -> Result<String> {
        let mut stream = UnixStream::connect(self.0).context("reach the outside")?;
        stream.write_all(format!("{question}\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        match answer.trim_end().split_once(' ') {
            Some(("ok", text)) => Ok(text.to_owned()),
            _ if answer.trim_end() == "ok" => Ok(String::new()),
            _ => bail!("from outside: {}", answer.trim_end()),
        }
    }

    /// Body of a web server's answer to a client outside.
    pub(crate) fn get(&self, at: &str) -> Result<String> {
        self.ask(&format!("get {at}"))
    }

    /// Creates a device of this name on the machine, joined to the outside. `address` is the address of the
    /// outer end.
    pub(crate) fn join(&self, name: &str, address: &str) -> Result<()> {
        self.ask(&format!("join {name} {address}")).map(drop)
    }
}

pub(crate) fn dial(at: &str) -> Result<TcpStream> {
    let at: SocketAddr = at.parse()?;
    TcpStream::connect_timeout(&at, Duration::from_secs(1)).with_context(|| format!("connect to {at}"))
}

/// Body of a web server's answer.
pub(crate) fn get(at: &str) -> Result<String> {
    let mut stream = dial(at)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.contains(" 200 "), "{head}");
    Ok(body.trim().to_owned())
}
