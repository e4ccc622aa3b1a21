//! One followed claim, persistent volume or attachment. A node may get these one by one, and neither list nor watch them,
//! so they are asked for again: soon while others have to do something (bind the claim, attach the volume), and seldom
//! once nothing more is to come.

use super::Answer;
use crate::wait::{backoff, jittered};
use berth_core::{
    error::Chain,
    model::{ObjectKind, ObjectName, StorageObject},
    value::Why,
};
use berth_kube::{pool::Pool, request::Request, status::is_about_request};
use berth_source::cluster;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

/// First and longest wait for something that others have to do.
const WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// The wait once nothing more is to come but a change of mind, such as an expansion.
const SETTLED: Duration = Duration::from_secs(60);
/// Time after the first question within which a refusal is no failure: the API server's authorizer learns of a pod on a
/// node some time after the node does.
const GRAPH_LAG: Duration = Duration::from_secs(3);

/// Follows the object of that name, until the task ends.
pub(super) async fn run(name: ObjectName, pool: Pool, answers: mpsc::Sender<(ObjectName, Answer)>) {
    let Some(path) = path(&name) else { return };
    let begun = Instant::now();
    let mut tries: u32 = 0;
    loop {
        let answer = ask(&name, &path, &pool).await;
        let settled = matches!(&answer, Answer::Storage(object) if is_settled(object));
        let early = matches!(answer, Answer::Behind(Why::Refused(_))) && begun.elapsed() < GRAPH_LAG;
        if !early && answers.send((name.clone(), answer)).await.is_err() {
            return;
        }
        tries = if settled { 0 } else { tries.saturating_add(1) };
        let wait = if settled { SETTLED } else { backoff(tries, WAITS.0, WAITS.1) };
        sleep(jittered(wait, 0.1, rand::random())).await;
    }
}

/// Where the API server has the object.
fn path((kind, namespace, name): &ObjectName) -> Option<String> {
    Some(match kind {
        ObjectKind::PersistentVolumeClaim => {
            format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}")
        }
        ObjectKind::PersistentVolume => format!("/api/v1/persistentvolumes/{name}"),
        ObjectKind::VolumeAttachment => format!("/apis/storage.k8s.io/v1/volumeattachments/{name}"),
        ObjectKind::ConfigMap | ObjectKind::Secret | ObjectKind::ServiceAccount | ObjectKind::CsiDriver => {
            return None;
        }
    })
}

async fn ask(name: &ObjectName, path: &str, pool: &Pool) -> Answer {
    match pool.send(&Request::get(path)).await {
        Ok(answer) => match read(name.0, &answer.body) {
            Ok(object) => Answer::Storage(object),
            Err(error) => Answer::Behind(Why::Refused(error.to_string())),
        },
        Err(error) => match error.refusal() {
            Some(refusal) => refused(name.0, refusal.code, &refusal.message),
            None => Answer::Behind(Why::Unreachable(Chain(&error).to_string())),
        },
    }
}

fn refused(kind: ObjectKind, code: u16, message: &str) -> Answer {
    match code {
        404 => Answer::Absent,
        // The authorizer knows of no attachment of this node by that name: it is not made yet.
        403 if kind == ObjectKind::VolumeAttachment => Answer::Absent,
        code if is_about_request(code) => Answer::Behind(Why::Refused(message.to_owned())),
        _ => Answer::Behind(Why::Unreachable(message.to_owned())),
    }
}

fn read(kind: ObjectKind, json: &[u8]) -> Result<StorageObject, cluster::ObjectError> {
    Ok(match kind {
        ObjectKind::PersistentVolume => StorageObject::Volume(Arc::new(cluster::persistent_volume(json)?)),
        ObjectKind::VolumeAttachment => {
            StorageObject::Attachment(Arc::new(cluster::volume_attachment(json)?))
        }
        _ => StorageObject::Claim(Arc::new(cluster::claim(json)?)),
    })
}

/// Whether the object is as pods need it.
fn is_settled(object: &StorageObject) -> bool {
    match object {
        StorageObject::Claim(claim) => claim.bound && !claim.deleting,
        StorageObject::Volume(volume) => volume.claim.is_some(),
        StorageObject::Attachment(attachment) => attachment.attached && !attachment.deleting,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_settled_once_it_is_bound() {
        let json = |phase: &str| {
            format!(
                r#"{{"metadata":{{"namespace":"default","name":"c","uid":"u"}},"spec":{{"volumeName":"v"}},"status":{{"phase":"{phase}"}}}}"#
            )
        };
        let settled =
            |json: &str| is_settled(&read(ObjectKind::PersistentVolumeClaim, json.as_bytes()).unwrap());
        assert!(settled(&json("Bound")));
        assert!(!settled(&json("Pending")));
    }

    #[test]
    fn only_an_attachment_is_absent_by_a_refusal() {
        let code = |kind, code| matches!(refused(kind, code, "m"), Answer::Absent);
        assert!(code(ObjectKind::VolumeAttachment, 403) && code(ObjectKind::PersistentVolume, 404));
        assert!(!code(ObjectKind::PersistentVolume, 403) && !code(ObjectKind::VolumeAttachment, 503));
        assert!(matches!(
            refused(ObjectKind::PersistentVolume, 503, "m"),
            Answer::Behind(Why::Unreachable(_))
        ));
    }
}
