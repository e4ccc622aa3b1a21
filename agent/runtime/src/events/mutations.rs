//! Mutations of the event stream's envelopes.

use super::*;
use berth_harness::{
    mutate::{Bytes, Reached, run, wire},
    rng::Rng,
};
use containerd_client::to_any;
use prost_types::Timestamp;

#[test]
fn mutated_events() {
    let id = "c".repeat(64);
    let time = Some(Timestamp { seconds: 1_700_000_000, nanos: 7 });
    let exit = |exec: &str| {
        to_any(&TaskExit {
            container_id: id.clone(),
            id: exec.into(),
            pid: 4,
            exit_status: 137,
            exited_at: time,
        })
    };
    let envelope = |topic: &str, event: Any| {
        let envelope =
            Envelope { timestamp: time, namespace: "k8s.io".into(), topic: topic.into(), event: Some(event) };
        assert!(translate(&envelope).is_some());
        envelope.encode_to_vec()
    };
    let corpus = [
        envelope(TOPIC_EXIT, exit(&id)),
        envelope(TOPIC_EXIT, exit("e1")),
        envelope(TOPIC_OOM, to_any(&TaskOom { container_id: id.clone() })),
    ];
    let make = |rng: &mut Rng| {
        let mut raw = rng.pick(&corpus).clone();
        wire::message(rng, &mut raw);
        Bytes(raw)
    };
    run("events", make, |raw| {
        let Ok(envelope) = Envelope::decode(&raw[..]) else { return Reached::Syntax };
        match translate(&envelope) {
            None => Reached::Checks,
            Some(RuntimeEvent::Exit { id, exec_id, code, .. }) => {
                assert!(code >= 0 && exec_id.as_deref() != Some(id.as_str()));
                Reached::Taken
            }
            Some(RuntimeEvent::Oom { .. }) => Reached::Taken,
            Some(other) => panic!("{other:?} is no event of containerd's"),
        }
    });
}
