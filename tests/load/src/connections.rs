//! `connections`: new connections and datagrams to many addresses, each at a fixed rate; and what failed, to the last one.

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(3);

/// An answer that takes longer counts as slow: something was sent twice.
const SLOW: Duration = Duration::from_millis(500);

/// A query of the root's name servers, which any server of names answers in some way.
const QUERY: [u8; 17] = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];

/// What is asked, and where.
#[derive(Debug, Clone)]
enum Target {
    /// `http:ADDRESS:PORT`: a connection with one request.
    Http(SocketAddr),
    /// `dns:ADDRESS:PORT`: a datagram of a socket of its own.
    Dns(SocketAddr),
    /// `dns-kept:ADDRESS:PORT`: datagrams of one connected socket.
    DnsKept(SocketAddr),
    /// `dns-stream:ADDRESS:PORT`: queries over one connection, which is made anew only where it fails.
    DnsStream(SocketAddr),
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Target> {
        let (kind, address) = text.split_once(':').context("must be KIND:ADDRESS:PORT")?;
        let address = address.parse().context("must end in ADDRESS:PORT")?;
        Ok(match kind {
            "http" => Target::Http(address),
            "dns" => Target::Dns(address),
            "dns-kept" => Target::DnsKept(address),
            "dns-stream" => Target::DnsStream(address),
            _ => bail!("there is no kind {kind}"),
        })
    }
}

/// Options of `connections`.
#[derive(Debug, Args)]
pub(crate) struct Connections {
    /// Where to; `http:`, `dns:`, `dns-kept:` or `dns-stream:` before an address and a port.
    #[arg(long = "to", value_name = "TARGET", required = true)]
    targets: Vec<Target>,
    /// Connections or datagrams a second to each.
    #[arg(long, default_value_t = 50)]
    per_second: u32,
    /// How long.
    #[arg(long)]
    seconds: u64,
}

/// What became of the requests to one target.
#[derive(Debug, Default, Serialize)]
struct Done {
    sent: u64,
    /// Answers that took long.
    slow: Failures,
    /// Failures, by what failed.
    failed: BTreeMap<String, Failures>,
}

/// Requests with one kind of end.
#[derive(Debug, Default, Serialize)]
struct Failures {
    count: u64,
    /// Seconds from the start to the begin of the first that failed, and of the last.
    first: f32,
    last: f32,
}

impl Failures {
    fn add(&mut self, at: Duration) {
        self.last = at.as_secs_f32();
        if self.count == 0 {
            self.first = self.last;
        }
        self.count += 1;
    }
}

pub(crate) fn run(args: &Connections) -> Result<()> {
    let of = |target: &Target| {
        let (target, pace) = (target.clone(), Duration::from_secs(1) / args.per_second.max(1));
        let end = Instant::now() + Duration::from_secs(args.seconds);
        thread::spawn(move || load(&target, pace, end))
    };
    let running: Vec<_> = args.targets.iter().map(|target| (format!("{target:?}"), of(target))).collect();
    let mut all = BTreeMap::new();
    for (name, thread) in running {
        let done = thread.join().map_err(|_panic| anyhow::anyhow!("{name} panicked"))??;
        all.insert(name, done);
    }
    writeln!(io::stdout(), "{}", serde_json::to_string(&all)?).context("cannot write the result")
}

fn load(target: &Target, pace: Duration, end: Instant) -> Result<Done> {
    let kept = match target {
        Target::DnsKept(address) => Some(socket(address)?),
        _ => None,
    };
    let mut stream = None;
    let start = Instant::now();
    let (mut done, mut next) = (Done::default(), start);
    while next < end {
        let begun = Instant::now();
        done.sent += 1;
        let asked = match (target, &kept) {
            (Target::Http(address), _) => http(address),
            (Target::DnsStream(address), _) => over_stream(&mut stream, address),
            (Target::Dns(address) | Target::DnsKept(address), None) => {
                socket(address).and_then(|s| query(&s))
            }
            (_, Some(socket)) => query(socket),
        };
        if let Err(error) = asked {
            done.failed.entry(error.to_string()).or_default().add(begun - start);
        }
        if begun.elapsed() > SLOW {
            done.slow.add(begun - start);
        }
        next += pace;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(done)
}

fn http(address: &SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer.starts_with(b"HTTP/1.") { Ok(()) } else { Err(io::Error::other("the answer is cut")) }
}

fn socket(address: &SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.connect(address)?;
    Ok(socket)
}

fn query(socket: &UdpSocket) -> io::Result<()> {
    socket.send(&QUERY)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    if answer[..length].starts_with(&QUERY[..2]) { Ok(()) } else { Err(io::Error::other("another answer")) }
}

/// Asks over a connection, which is made first where there is none. A connection that fails is given up.
fn over_stream(kept: &mut Option<TcpStream>, address: &SocketAddr) -> io::Result<()> {
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect_timeout(address, ANSWER)?;
            stream.set_read_timeout(Some(ANSWER))?;
            stream
        }
    };
    let length = u16::try_from(QUERY.len()).map_err(io::Error::other)?.to_be_bytes();
    stream.write_all(&[&length, QUERY.as_slice()].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    if !answer.starts_with(&QUERY[..2]) {
        return Err(io::Error::other("another answer"));
    }
    *kept = Some(stream);
    Ok(())
}
