//! The event stream: exits and OOM kills of this containerd namespace.
//!
//! One task owns the stream. containerd has no replay. After a loss the task opens the stream again first,
//! and then [`RuntimeEvent::Reestablished`] makes all receivers list. The shims re-send exits of the gap for
//! up to about 21 s, so a receiver must tolerate the same exit twice.
//!
//! The Go server answers a subscription only with its first event, so the task publishes a topic of its own
//! until the stream opens. The received event also proves that the stream delivers.

use crate::{
    client::{Client, RECORD, call},
    wire,
};
use berth_core::{error::Chain, ids::ContainerId, time::Wall};
use containerd_client::{
    events::{TaskExit, TaskOom},
    services::v1::{PublishRequest, SubscribeRequest},
    types::Envelope,
};
use prost::Message;
use prost_types::Any;
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tonic::Streaming;

#[cfg(test)]
mod mutations;

/// An event of the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A process ended: the container's first process, or one started by exec.
    Exit {
        /// The container.
        id: ContainerId,
        /// The exec, `None` for the container's own process.
        exec_id: Option<String>,
        /// The process id, in the host's PID namespace.
        pid: u32,
        /// The exit code.
        code: i32,
        /// The time of the end.
        at: Wall,
    },
    /// The kernel killed a process in the container because of its memory limit. Precedes the exit.
    Oom {
        /// The container.
        id: ContainerId,
    },
    /// The stream ended: events are missed from here on.
    Lost,
    /// The stream is open (again): receivers must list, since events may have been missed before.
    Reestablished,
}

/// Capacity of a receiver's queue. A receiver that is further behind gets `Lagged` and must list.
pub(crate) const BEHIND: usize = 4096;

const TOPIC_EXIT: &str = "/tasks/exit";
const TOPIC_OOM: &str = "/tasks/oom";
const TOPIC_HELLO: &str = "/berth/hello";

/// Pause between two published events while the stream is opening.
const POKE: Duration = Duration::from_millis(5);
/// Longest time for a stream to open.
const OPEN: Duration = Duration::from_secs(10);
/// Pauses between attempts to open the stream: the first and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The event of an envelope; `None` for topics without meaning here, and for containers of other clients.
pub(crate) fn translate(envelope: &Envelope) -> Option<RuntimeEvent> {
    let any = envelope.event.as_ref()?;
    match envelope.topic.as_str() {
        TOPIC_EXIT => {
            let exit = TaskExit::decode(any.value.as_slice()).ok()?;
            let exec_id = (exit.id != exit.container_id).then_some(exit.id);
            Some(RuntimeEvent::Exit {
                id: ContainerId::new(exit.container_id).ok()?,
                exec_id,
                pid: exit.pid,
                code: wire::exit_code(exit.exit_status),
                at: wire::wall(exit.exited_at.as_ref())
                    .or_else(|| wire::wall(envelope.timestamp.as_ref()))
                    .unwrap_or_default(),
            })
        }
        TOPIC_OOM => {
            let oom = TaskOom::decode(any.value.as_slice()).ok()?;
            Some(RuntimeEvent::Oom { id: ContainerId::new(oom.container_id).ok()? })
        }
        _ => None,
    }
}

fn filters(namespace: &str) -> Vec<String> {
    [TOPIC_EXIT, TOPIC_OOM, TOPIC_HELLO]
        .iter()
        .map(|topic| format!("namespace=={namespace},topic==\"{topic}\""))
        .collect()
}

/// Opens the stream: subscribes, and publishes until the first message shows that the stream is open.
async fn open(client: &Client, namespace: &str) -> Option<Streaming<Envelope>> {
    let mut events = client.events();
    let subscription = events.subscribe(client.endless(SubscribeRequest { filters: filters(namespace) }));
    let poke = async {
        let mut publisher = client.events();
        loop {
            let hello = PublishRequest {
                topic: TOPIC_HELLO.to_owned(),
                event: Some(Any { type_url: "berth.dev/v1/Hello".to_owned(), value: Vec::new() }),
            };
            let sent =
                call("publish", TOPIC_HELLO, RECORD, publisher.publish(client.request(hello, RECORD))).await;
            if let Err(e) = sent {
                tracing::debug!(error = %Chain(&e), "containerd takes no event");
                return;
            }
            tokio::time::sleep(POKE).await;
        }
    };
    let opened = async {
        tokio::select! {
            stream = subscription => stream.map(tonic::Response::into_inner).ok(),
            () = poke => None,
        }
    };
    tokio::time::timeout(OPEN, opened).await.ok().flatten()
}

/// Runs the stream until the stop signal. Sends [`RuntimeEvent::Reestablished`] after each opening and
/// [`RuntimeEvent::Lost`] after each end.
pub(crate) async fn run(
    client: Client,
    namespace: String,
    out: broadcast::Sender<RuntimeEvent>,
    live: watch::Sender<bool>,
    mut stop: watch::Receiver<bool>,
) {
    let mut pause = RETRY.0;
    loop {
        let stream = tokio::select! {
            stream = open(&client, &namespace) => stream,
            _stopped = stop.wait_for(|s| *s) => return,
        };
        let Some(mut stream) = stream else {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _stopped = stop.wait_for(|s| *s) => return,
            }
            pause = (pause * 2).min(RETRY.1);
            continue;
        };
        pause = RETRY.0;
        tracing::info!("event stream open");
        // An event without receivers is no failure: receivers list when they subscribe.
        drop(out.send(RuntimeEvent::Reestablished));
        live.send_replace(true);
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                _stopped = stop.wait_for(|s| *s) => return,
            };
            match message {
                Ok(Some(envelope)) => {
                    if let Some(event) = translate(&envelope) {
                        drop(out.send(event));
                    }
                }
                Ok(None) | Err(_) => break,
            }
        }
        live.send_replace(false);
        tracing::warn!("event stream lost");
        drop(out.send(RuntimeEvent::Lost));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_client::to_any;
    use prost_types::Timestamp;

    fn envelope(topic: &str, event: Any) -> Envelope {
        Envelope { topic: topic.into(), event: Some(event), ..Envelope::default() }
    }

    #[test]
    fn exits_of_containers_and_execs_are_told_apart() {
        let id = "c".repeat(64);
        let exit = |exec: &str| {
            to_any(&TaskExit {
                container_id: id.clone(),
                id: exec.into(),
                pid: 4,
                exit_status: 137,
                exited_at: Some(Timestamp { seconds: 1, nanos: 2 }),
            })
        };
        let event = |exec: Option<&str>| {
            Some(RuntimeEvent::Exit {
                id: ContainerId::new(id.clone()).unwrap(),
                exec_id: exec.map(Into::into),
                pid: 4,
                code: 137,
                at: Wall(1_000_000_002),
            })
        };
        assert_eq!(translate(&envelope(TOPIC_EXIT, exit(&id))), event(None));
        assert_eq!(translate(&envelope(TOPIC_EXIT, exit("e1"))), event(Some("e1")));
    }

    #[test]
    fn foreign_and_broken_envelopes_are_nothing() {
        let foreign = to_any(&TaskOom { container_id: "redis".into() });
        assert_eq!(translate(&envelope(TOPIC_OOM, foreign.clone())), None);
        assert_eq!(translate(&envelope(TOPIC_HELLO, foreign)), None);
        assert_eq!(
            translate(&envelope(TOPIC_EXIT, Any { type_url: String::new(), value: vec![7; 3] })),
            None
        );
        assert_eq!(translate(&Envelope::default()), None);
    }
}
