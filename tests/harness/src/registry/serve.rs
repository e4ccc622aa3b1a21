//! One connection of the registry: requests one after the other, until the client leaves or a fault ends it.

use super::{
    Inner, State,
    auth::Challenge,
    fault::Effect,
    http::{self, Request},
    note,
};
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::atomic::Ordering,
    thread::sleep,
    time::Duration,
};

/// The longest time without a request.
const IDLE: Duration = Duration::from_secs(60);
/// Bytes that are written at once.
const CHUNK: usize = 32 << 10;
/// Bytes that are written at once where the rate is limited.
const SMALL_CHUNK: usize = 4 << 10;
/// The first byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;
/// Pause between two looks at a stall.
const LOOK: Duration = Duration::from_millis(50);

/// A request that the registry got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The method.
    pub method: String,
    /// The path without the query.
    pub path: String,
    /// The first byte of the wanted range.
    pub range: Option<u64>,
    /// Whether it had a credential.
    pub authorized: bool,
    /// The status of the answer.
    pub status: u16,
}

/// An answer's content.
struct Body {
    media_type: String,
    digest: String,
    bytes: std::sync::Arc<Vec<u8>>,
    manifest: bool,
}

/// Serves a connection until its end.
pub(super) fn connection(state: &State, stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    match &state.tls {
        None => requests(state, stream.try_clone()?, stream),
        Some(config) => {
            let tls =
                rustls::ServerConnection::new(std::sync::Arc::clone(config)).map_err(io::Error::other)?;
            let mut stream = rustls::StreamOwned::new(tls, stream);
            // One value reads and writes, so requests are not read ahead.
            loop {
                let mut reader = BufReader::with_capacity(1, &mut stream);
                let Some(request) = http::read(&mut reader)? else { return Ok(()) };
                drop(reader);
                if !answer(state, &request, &mut stream)? {
                    return Ok(());
                }
            }
        }
    }
}

fn requests(state: &State, reader: impl Read, mut writer: impl Write) -> io::Result<()> {
    let mut reader = BufReader::new(reader);
    // A client that begins with TLS learns from an answer in plain HTTP that there is none.
    if reader.fill_buf()?.first() == Some(&TLS_HANDSHAKE) {
        return http::head(&mut writer, 400, &[], 0);
    }
    while let Some(request) = http::read(&mut reader)? {
        if state.ended.load(Ordering::Relaxed) || !answer(state, &request, &mut writer)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Answers a request; false ends the connection.
fn answer(state: &State, request: &Request, writer: &mut impl Write) -> io::Result<bool> {
    let mut inner = state.lock();
    let asked = |status| Asked {
        method: request.method.clone(),
        path: request.path.clone(),
        range: request.range(),
        authorized: request.header("authorization").is_some(),
        status,
    };
    let mut plain = |mut inner: std::sync::MutexGuard<'_, Inner>,
                     status: u16,
                     headers: &[(&str, String)],
                     body: &str|
     -> io::Result<bool> {
        note(&mut inner, asked(status));
        drop(inner);
        http::head(writer, status, headers, body.len() as u64)?;
        if request.method != "HEAD" {
            writer.write_all(body.as_bytes())?;
        }
        writer.flush()?;
        Ok(true)
    };
    if request.path == "/token" {
        return match inner.auth.token(request) {
            Some(token) => plain(inner, 200, &[("Content-Type", "application/json".to_owned())], &token),
            None => {
                plain(inner, 401, &[], r#"{"errors":[{"code":"UNAUTHORIZED","message":"no such user"}]}"#)
            }
        };
    }
    if let Err(Challenge(challenge)) = inner.auth.check(request, state.address, state.tls.is_some()) {
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        return plain(inner, 401, &[("Www-Authenticate", challenge)], body);
    }
    if request.path == "/v2/" {
        return plain(inner, 200, &[], "{}");
    }
    let Some(body) = find(&inner, &request.path) else {
        let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        return plain(inner, 404, &[], body);
    };
    let effect = if request.method == "GET" || body.manifest {
        inner.faults.take(body.manifest, body.bytes.len() as u64)
    } else {
        None
    };
    if let Some(Effect::Status(status)) = effect {
        let retry = if status == 429 { vec![("Retry-After", "1".to_owned())] } else { Vec::new() };
        let body = format!(r#"{{"errors":[{{"code":"TEST","message":"fault {status}"}}]}}"#);
        return plain(inner, status, &retry, &body);
    }
    let from = request.range().filter(|from| *from < body.bytes.len() as u64);
    note(&mut inner, asked(if from.is_some() { 206 } else { 200 }));
    drop(inner);
    content(state, request, writer, &body, from, effect)
}

fn find(inner: &Inner, path: &str) -> Option<Body> {
    let rest = path.strip_prefix("/v2/")?;
    if let Some((repository, reference)) = rest.split_once("/manifests/") {
        let (digest, manifest) = inner.content.manifest(repository, reference)?;
        let bytes = std::sync::Arc::clone(&manifest.bytes);
        return Some(Body { media_type: manifest.media_type.clone(), digest, bytes, manifest: true });
    }
    let (_, digest) = rest.split_once("/blobs/")?;
    let bytes = inner.content.blob(digest)?;
    let media_type = "application/octet-stream".to_owned();
    Some(Body { media_type, digest: digest.to_owned(), bytes, manifest: false })
}

/// Sends content, with the fault's effect; false ends the connection.
fn content(
    state: &State,
    request: &Request,
    writer: &mut impl Write,
    body: &Body,
    from: Option<u64>,
    effect: Option<Effect>,
) -> io::Result<bool> {
    let start = usize::try_from(from.unwrap_or(0)).unwrap_or(0);
    let mut bytes = body.bytes.get(start..).unwrap_or_default().to_vec();
    if effect == Some(Effect::Corrupt)
        && let Some(byte) = bytes.last_mut()
    {
        *byte ^= 1;
    }
    let mut headers = vec![
        ("Content-Type", body.media_type.clone()),
        ("Docker-Content-Digest", body.digest.clone()),
        ("Accept-Ranges", "bytes".to_owned()),
    ];
    if from.is_some() {
        let all = body.bytes.len();
        headers.push(("Content-Range", format!("bytes {start}-{}/{all}", all.saturating_sub(1))));
    }
    http::head(writer, if from.is_some() { 206 } else { 200 }, &headers, bytes.len() as u64)?;
    if request.method == "HEAD" {
        writer.flush()?;
        return Ok(true);
    }
    let end = match effect {
        Some(Effect::Cut(after) | Effect::Stall(after)) => {
            usize::try_from(after).unwrap_or(0).min(bytes.len())
        }
        _ => bytes.len(),
    };
    send(state, writer, bytes.get(..end).unwrap_or_default(), body)?;
    match effect {
        Some(Effect::Cut(_)) => return Ok(false),
        Some(Effect::Stall(_)) => {
            writer.flush()?;
            while state.lock().faults.stalls() && !state.ended.load(Ordering::Relaxed) {
                sleep(LOOK);
            }
            send(state, writer, bytes.get(end..).unwrap_or_default(), body)?;
        }
        _ => {}
    }
    writer.flush()?;
    Ok(true)
}

/// Sends bytes of a manifest or a blob, and counts a blob among those that are being sent.
fn send(state: &State, writer: &mut impl Write, bytes: &[u8], body: &Body) -> io::Result<()> {
    if body.manifest {
        return send_chunks(state, writer, bytes, body);
    }
    state.lock().sending += 1;
    let result = send_chunks(state, writer, bytes, body);
    state.lock().sending -= 1;
    result
}

/// Sends bytes within the rate, and counts those of a blob.
fn send_chunks(state: &State, writer: &mut impl Write, mut bytes: &[u8], body: &Body) -> io::Result<()> {
    while !bytes.is_empty() {
        let rate = state.lock().rate.filter(|_| !body.manifest);
        let (chunk, rest) = bytes.split_at(bytes.len().min(if rate.is_some() { SMALL_CHUNK } else { CHUNK }));
        writer.write_all(chunk)?;
        if !body.manifest {
            *state.lock().sent.entry(body.digest.clone()).or_default() += chunk.len() as u64;
        }
        if let Some(rate) = rate {
            writer.flush()?;
            sleep(Duration::from_secs_f64(chunk.len() as f64 / rate.max(1) as f64));
        }
        if state.ended.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        bytes = rest;
    }
    Ok(())
}
