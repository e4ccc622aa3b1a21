//! HTTP probes and hooks: one GET over its own connection.
//!
//! Rules (`pkg/probe/http`): 200 to 399 is success. Redirects are followed on the same host only,
//! at most 10. An answer that stays a redirect (to another host, or without a location) is a
//! success with a warning, which contains the start of its body. At most 10 KiB of the body are
//! read. There is no proxy, no keep-alive and no verification of certificates.

use crate::{
    action::{Host, HttpAction},
    net::{self, ProbeError},
};
use berth_core::probe::ProbeResult;
use http::{HeaderName, HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::{pin::pin, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

const MAX_BODY: usize = 10 * 1024;
const MAX_REDIRECTS: usize = 10;
/// The largest head of an answer in bytes. Go's client accepts 10 MiB, which is too much memory for
/// one probe.
const MAX_HEAD: usize = 1024 * 1024;
/// The most header fields of an answer. Go's client accepts any number, but hyper allocates room
/// for all before it reads them.
const MAX_FIELDS: usize = 1024;
/// Bytes of a redirect's body in the warning. An event has room for about as much.
const WARNING_BODY: usize = 512;

/// `User-Agent` of probes.
pub(crate) const PROBE_AGENT: &str = "kube-probe/1.36";
/// `User-Agent` of lifecycle hooks.
pub(crate) const HOOK_AGENT: &str = "kube-lifecycle/1.36";

/// Result of an httpGet hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HookReply {
    /// The answer's status, which is not evaluated.
    pub status: u16,
    /// The server spoke plain HTTP although HTTPS was specified (event `LifecycleHTTPFallback`).
    pub fell_back_to_http: bool,
}

struct Reply {
    status: u16,
    location: Option<String>,
    /// The start of the body.
    body: Vec<u8>,
}

/// Runs an HTTP probe.
pub(crate) async fn probe(action: &HttpAction, tls: &TlsConnector) -> ProbeResult {
    match follow(action, tls, PROBE_AGENT).await {
        Ok(reply) if (200..300).contains(&reply.status) => ProbeResult::Success,
        Ok(reply) if (300..400).contains(&reply.status) => ProbeResult::Warning(format!(
            "Probe terminated redirects, Response body: {}",
            String::from_utf8_lossy(&reply.body)
        )),
        Ok(reply) => ProbeResult::Failure(format!("HTTP probe failed with statuscode: {}", reply.status)),
        Err(e) => e.into_result(&format!("Get {:?}: ", url(action))),
    }
}

/// What is asked for.
pub(crate) fn url(action: &HttpAction) -> String {
    let scheme = if action.https { "https" } else { "http" };
    format!("{scheme}://{}{}", action.endpoint, request_target(&action.path))
}

/// Sends a hook's GET.
pub(crate) async fn hook(action: &HttpAction, tls: &TlsConnector) -> Result<HookReply, ProbeError> {
    match follow(action, tls, HOOK_AGENT).await {
        Err(ProbeError::Tls { source, .. }) if action.https && net::speaks_plain_http(&source) => {
            let mut plain = HttpAction { https: false, ..action.clone() };
            plain.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
            let reply = follow(&plain, tls, HOOK_AGENT).await?;
            Ok(HookReply { status: reply.status, fell_back_to_http: true })
        }
        answer => answer.map(|r| HookReply { status: r.status, fell_back_to_http: false }),
    }
}

async fn follow(action: &HttpAction, tls: &TlsConnector, agent: &str) -> Result<Reply, ProbeError> {
    let mut action = action.clone();
    let mut target = request_target(&action.path);
    for _ in 0..MAX_REDIRECTS {
        let reply = get(&action, &target, tls, agent).await?;
        let Some(location) = reply.location.as_deref().filter(|_| is_redirect(reply.status)) else {
            return Ok(reply);
        };
        match redirect(&action, &target, location)? {
            None => return Ok(reply),
            Some((next, path)) => (action, target) = (next, path),
        }
    }
    Err(ProbeError::Answer(format!("stopped after {MAX_REDIRECTS} redirects")))
}

fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// Target of a redirect. None if it is another host.
fn redirect(
    from: &HttpAction,
    target: &str,
    location: &str,
) -> Result<Option<(HttpAction, String)>, ProbeError> {
    let bad =
        || ProbeError::Answer(format!("redirect to {:?}", location.chars().take(200).collect::<String>()));
    let location = location.split('#').next().unwrap_or_default();
    let absolute = if location.starts_with("//") {
        format!("{}:{location}", if from.https { "https" } else { "http" })
    } else {
        location.to_owned()
    };
    if let Some((scheme, rest)) = absolute.split_once("://").filter(|(s, _)| !s.contains(['/', '?'])) {
        let https = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(bad()),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end).ok_or_else(bad)?;
        let uri: Uri = authority.parse().map_err(|_invalid| bad())?;
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let same = match &from.endpoint.host {
            Host::Address(ip) => host.parse() == Ok(*ip),
            Host::Name(name) => name.eq_ignore_ascii_case(host),
        };
        if !same {
            return Ok(None);
        }
        let mut next = HttpAction { https, host_header: None, ..from.clone() };
        next.endpoint.port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        return Ok(Some((next, request_target(path))));
    }
    let path = if location.starts_with('/') {
        location.to_owned()
    } else {
        let base = target.split('?').next().unwrap_or_default();
        match (location.starts_with('?'), base.rsplit_once('/')) {
            (true, _) => format!("{base}{location}"),
            (false, Some((dir, _))) => format!("{dir}/{location}"),
            (false, None) => format!("/{location}"),
        }
    };
    Ok(Some((from.clone(), request_target(&path))))
}

/// A path and query for a request line: other characters are escaped, and the fragment is removed.
/// A path with an invalid escape is escaped as a whole.
fn request_target(path: &str) -> String {
    let bytes = path.as_bytes();
    let broken = bytes.iter().enumerate().any(|(i, b)| {
        let hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
        *b == b'%' && !(hex(i + 1) && hex(i + 2))
    });
    let text = if broken { path } else { path.split('#').next().unwrap_or_default() };
    let mut out = String::with_capacity(text.len() + 1);
    if !text.starts_with('/') {
        out.push('/');
    }
    for b in text.bytes() {
        let escape = match b {
            b'%' | b'?' | b'#' => broken,
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => true,
            _ => !b.is_ascii_graphic(),
        };
        if escape {
            out.push_str(&format!("%{b:02X}"));
        } else {
            out.push(char::from(b));
        }
    }
    out
}

fn request(action: &HttpAction, target: &str, agent: &str) -> Result<Request<Empty<Bytes>>, ProbeError> {
    let bad = |what: &str, e: &dyn std::error::Error| ProbeError::Request(format!("{what}: {e}"));
    let uri: Uri = target.parse().map_err(|e| bad("path", &e))?;
    let default_port = if action.https { 443 } else { 80 };
    let host = match (&action.host_header, action.endpoint.port == default_port) {
        (Some(host), _) => host.clone(),
        (None, false) => action.endpoint.to_string(),
        (None, true) => {
            let full = action.endpoint.to_string();
            full.rsplit_once(':').map_or(full.clone(), |(host, _)| host.to_owned())
        }
    };
    let mut request = Request::get(uri).body(Empty::new()).map_err(|e| bad("request", &e))?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::try_from(host).map_err(|e| bad("host", &e))?);
    let mut own = Vec::with_capacity(action.headers.len());
    for (name, value) in &action.headers {
        let key = HeaderName::try_from(name.as_str()).map_err(|e| bad("header", &e))?;
        // The pod may not control how the message is framed and ended.
        if matches!(
            key,
            header::CONTENT_LENGTH | header::TRANSFER_ENCODING | header::TRAILER | header::CONNECTION
        ) {
            continue;
        }
        own.push((key, HeaderValue::from_str(value).map_err(|e| bad(name, &e))?));
    }
    // These two come first, as in the kubelet's requests.
    for (key, default) in [(header::USER_AGENT, agent), (header::ACCEPT, "*/*")] {
        match own.iter().find(|(own, _)| own == key) {
            None => {
                headers.insert(key, HeaderValue::from_str(default).map_err(|e| bad("header", &e))?);
            }
            // An empty value means that the header is not sent.
            Some((_, value)) if value.is_empty() => own.retain(|(own, _)| own != key),
            Some(_) => {
                for (key, value) in own.extract_if(.., |(own, _)| *own == key) {
                    headers.append(key, value);
                }
            }
        }
    }
    for (key, value) in own {
        headers.append(key, value);
    }
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

async fn get(
    action: &HttpAction,
    target: &str,
    tls: &TlsConnector,
    agent: &str,
) -> Result<Reply, ProbeError> {
    let request = request(action, target, agent)?;
    let endpoint = action.endpoint.to_string();
    let mut stream = net::connect(&action.endpoint).await?;
    if !action.https {
        let reply = exchange(&mut stream, request, endpoint).await?;
        net::end(&mut stream).await;
        return Ok(reply);
    }
    let name = match &action.endpoint.host {
        Host::Address(ip) => ServerName::IpAddress((*ip).into()),
        Host::Name(name) => ServerName::try_from(name.clone())
            .map_err(|e| ProbeError::Request(format!("host {name}: {e}")))?,
    };
    let failed = |source| ProbeError::Tls { endpoint: endpoint.clone(), source };
    let mut secured = tls.connect(name, stream).await.map_err(failed)?;
    let reply = exchange(&mut secured, request, endpoint).await?;
    net::end(&mut secured).await;
    Ok(reply)
}

/// Sends the request and reads the answer, driving the connection within this task.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send>(
    stream: &mut S,
    request: Request<Empty<Bytes>>,
    endpoint: String,
) -> Result<Reply, ProbeError> {
    let failed = |source| ProbeError::Http { endpoint: endpoint.clone(), source };
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .title_case_headers(true)
        .max_buf_size(MAX_HEAD)
        // An invalid header name does not make a server unhealthy.
        .ignore_invalid_headers_in_responses(true)
        .max_headers(MAX_FIELDS)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let mut connection = pin!(connection);
    let answer = async {
        let response = sender.send_request(request).await?;
        read(response).await
    };
    let mut answer = pin!(answer);
    tokio::select! {
        biased;
        reply = &mut answer => reply.map_err(failed),
        ended = &mut connection => {
            ended.map_err(failed)?;
            // The answer may already be complete, though the connection has ended.
            match tokio::time::timeout(Duration::ZERO, answer).await {
                Ok(reply) => reply.map_err(failed),
                Err(_) => Err(ProbeError::Answer(format!("{endpoint} closed the connection without an answer"))),
            }
        }
    }
}

async fn read(response: Response<Incoming>) -> Result<Reply, hyper::Error> {
    let status = response.status().as_u16();
    let location =
        response.headers().get(header::LOCATION).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    let mut body = response.into_body();
    let (mut seen, mut begin) = (0, Vec::new());
    while seen < MAX_BODY {
        let Some(frame) = body.frame().await.transpose()? else { break };
        let Some(data) = frame.data_ref() else { continue };
        seen += data.len();
        let room = WARNING_BODY.saturating_sub(begin.len()).min(data.len());
        begin.extend_from_slice(data.get(..room).unwrap_or_default());
    }
    Ok(Reply { status, location, body: begin })
}

#[cfg(test)]
mod tests;
