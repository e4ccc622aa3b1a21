//! Streams of a port-forward whose partner is not there yet: each connection of the client is two streams, which come
//! one after the other.
//!
//! A half whose partner does not come in time is reset. One that the client has reset is forgotten once there are many,
//! so that a client that opens and resets streams without end costs no more than its open ones.

use crate::streams::{connection::CREATION, outlet::Chunk, spdy::NewStream};
use std::{collections::HashMap, future::Future};
use tokio::{
    sync::oneshot::error::TryRecvError,
    time::{Instant, sleep_until},
};

/// Halves at which those are looked for that were reset.
const PRUNE: usize = 64;

/// One stream, or both at the moment in which the second comes.
#[derive(Debug, Default)]
struct Half {
    data: Option<NewStream>,
    error: Option<NewStream>,
}

impl Half {
    /// Whether the client has reset what is there.
    fn is_reset(&mut self) -> bool {
        let mut streams = self.data.iter_mut().chain(&mut self.error);
        streams.all(|stream| matches!(stream.reset.try_recv(), Err(TryRecvError::Closed)))
    }
}

/// The halves, each with the time until which it waits.
#[derive(Debug)]
pub(super) struct Halves {
    by_id: HashMap<String, (Instant, Half)>,
    prune_at: usize,
}

impl Default for Halves {
    fn default() -> Halves {
        Halves { by_id: HashMap::new(), prune_at: PRUNE }
    }
}

/// Names the connection that a stream belongs to. Clients before Kubernetes 1.3 name none, and open the error stream
/// right before the data stream.
fn request_id(stream: &NewStream, is_data: bool) -> String {
    match stream.headers.get("requestid") {
        Some(id) => id.to_owned(),
        None if is_data => stream.id.saturating_sub(2).to_string(),
        None => stream.id.to_string(),
    }
}

impl Halves {
    /// Adds a stream, and takes the pair out that it completes: data and error.
    pub(super) async fn add(&mut self, stream: NewStream) -> Option<(NewStream, NewStream)> {
        if self.by_id.len() >= self.prune_at {
            self.by_id.retain(|_, (_, half)| !half.is_reset());
            self.prune_at = self.by_id.len().saturating_mul(2).max(PRUNE);
        }
        let is_data = stream.headers.get("streamtype") == Some("data");
        let id = request_id(&stream, is_data);
        let begun = || (Instant::now() + CREATION, Half::default());
        let (_, half) = self.by_id.entry(id.clone()).or_insert_with(begun);
        let place = if is_data { &mut half.data } else { &mut half.error };
        if place.is_some() {
            // Fails where the client is gone, which ends the session.
            let _sent = stream.outlet.reset().await;
            return None;
        }
        *place = Some(stream);
        if half.data.is_none() || half.error.is_none() {
            return None;
        }
        let (_, half) = self.by_id.remove(&id)?;
        half.data.zip(half.error)
    }

    /// Waits until a half has waited too long.
    pub(super) fn late(&self) -> impl Future<Output = ()> + use<> {
        let next = self.by_id.values().map(|(until, _)| *until).min();
        async move {
            match next {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Resets the streams that have waited too long for their partner.
    pub(super) async fn expire(&mut self) {
        let now = Instant::now();
        let late: Vec<_> = self.by_id.extract_if(|_, (until, _)| *until <= now).collect();
        for (id, (_, half)) in late {
            // Failures mean that the client is gone, which ends the session.
            if let Some(error) = &half.error {
                let text = format!("(request={id}) timed out waiting for streams");
                let _sent = error.outlet.send(Chunk::of(text.as_bytes())).await;
            }
            for stream in half.data.iter().chain(&half.error) {
                let _sent = stream.outlet.reset().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::{connection::Protocol as _, port_forward::admit, spdy};
    use berth_spdy::{Headers, ResetStatus, encode};
    use bytes::BytesMut;

    #[tokio::test]
    async fn streams_that_are_opened_and_reset_without_end_leave_nothing() {
        let (mut reader, mut queues, mut streams) = spdy::connection(admit, false);
        let (mut halves, mut writer) = (Halves::default(), encode::HeaderWriter::default());
        for number in 0..2000_u32 {
            let (id, stream) = (number.to_string(), 2 * number + 1);
            let headers = Headers::of(&[("streamtype", "data"), ("port", "80"), ("requestid", &id)]);
            let mut frames = Vec::new();
            writer.syn_stream(&mut frames, stream, false, &headers);
            encode::reset(&mut frames, stream, ResetStatus::Cancel);
            reader.read(&mut BytesMut::from(&frames[..])).await.unwrap();
            queues.answers.recv().await.unwrap();
            assert!(halves.add(streams.recv().await.unwrap()).await.is_none());
            assert!(halves.by_id.len() <= PRUNE, "{} halves", halves.by_id.len());
        }
    }
}
