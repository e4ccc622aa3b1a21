//! Bidirectional streams of containerd's streaming service, under ids that are never reused. A transfer names them in
//! its request, so they are opened first.

use crate::{
    client::{Client, QUERY, call, from_status},
    error::Error,
};
use berth_sys::clock;
use containerd_client::{services::v1::StreamInit, to_any};
use prost_types::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Messages that wait to be sent.
const QUEUE: usize = 4;

/// One bidirectional stream of the streaming service.
pub(crate) struct Stream {
    pub(crate) id: String,
    pub(crate) send: mpsc::Sender<Any>,
    pub(crate) receive: Streaming<Any>,
}

/// An id that no other stream or lease of this boot has.
pub(crate) fn unique(what: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("berth-{what}-{}-{:x}-{n}", std::process::id(), clock::wall().0)
}

/// Opens a stream, which the lease holds.
pub(crate) async fn open(client: &Client, what: &str, lease: &str) -> Result<Stream, Error> {
    let id = unique(what);
    let (send, requests) = mpsc::channel(QUEUE);
    let init = to_any(&StreamInit { id: id.clone() });
    // The new channel has free capacity, so the send neither fails nor waits.
    if send.send(init).await.is_err() {
        return Err(Error::Answer { operation: "open stream", subject: id, missing: "a sending side" });
    }
    let mut streaming = client.streaming();
    let stream = streaming.stream(client.with_lease(client.endless(ReceiverStream::new(requests)), lease));
    let mut receive = call("open stream", &id, QUERY, stream).await?;
    // The first message acknowledges that the daemon registered the id.
    let ack = tokio::time::timeout(QUERY, receive.message()).await.map_err(|_elapsed| Error::Deadline {
        operation: "open stream",
        subject: id.clone(),
        after: QUERY,
    })?;
    ack.map_err(|status| from_status("open stream", &id, QUERY, status))?;
    Ok(Stream { id, send, receive })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_ids_never_repeat() {
        assert_ne!(unique("x"), unique("x"));
    }
}
