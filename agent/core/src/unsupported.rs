//! Unsupported parts of a pod's specification: parts that this node does not enforce although it runs the
//! pod. A pure function yields an event for each part when the pod is accepted, so that the user learns of
//! the gap.

use crate::{
    event::Event,
    model::{Medium, Pod, VolumeSource},
};

/// The events about unsupported parts, in the order of the pod's volumes and containers. A pod that this node cannot run
/// at all has one event.
pub fn unsupported(pod: &Pod) -> Vec<Event> {
    if let Some(why) = &pod.unsupported {
        return vec![Event::warning("NotSupported", format!("this node does not run the pod: {why}"))];
    }
    let sizes = pod.volumes.iter().filter_map(|v| match &v.source {
        // Only a disk volume: the size of a tmpfs limits a memory one.
        VolumeSource::EmptyDir { medium: Medium::Disk, size_limit: Some(limit) } => Some(format!(
            "sizeLimit {} of volume {} is not enforced: this node does not evict pods",
            limit.as_str(),
            v.name
        )),
        _ => None,
    });
    let storage = pod.lasting_containers().filter_map(|c| {
        let limit = c.resources.limits.get("ephemeral-storage")?;
        Some(format!(
            "ephemeral-storage limit {} of container {} is not enforced: this node does not evict pods",
            limit.as_str(),
            c.name
        ))
    });
    sizes.chain(storage).map(|text| Event::warning("NotEnforced", text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::PodKey,
        model::{Container, Volume},
    };

    #[test]
    fn a_pod_that_cannot_run_here_has_one_event() {
        let key = PodKey { namespace: "default".parse().unwrap(), name: "p".parse().unwrap() };
        let pod = Pod {
            containers: vec![Container::new("c".parse().unwrap(), "busybox")],
            unsupported: Some("spec.hostUsers: is not supported yet".into()),
            ..Pod::new("u".parse().unwrap(), key, "n".parse().unwrap())
        };
        let texts: Vec<String> = unsupported(&pod).into_iter().map(|e| e.message).collect();
        assert_eq!(texts, ["this node does not run the pod: spec.hostUsers: is not supported yet"]);
    }

    #[test]
    fn each_unsupported_field_has_an_event() {
        let empty = |name: &str, medium, limit: Option<&str>| Volume {
            name: name.parse().unwrap(),
            source: VolumeSource::EmptyDir { medium, size_limit: limit.map(|l| l.parse().unwrap()) },
        };
        let mut limited = Container::new("c".parse().unwrap(), "busybox:1");
        limited.resources.limits = [("ephemeral-storage".to_owned(), "1Mi".parse().unwrap())].into();
        let key = PodKey { namespace: "ns".parse().unwrap(), name: "p".parse().unwrap() };
        let pod = Pod {
            volumes: vec![
                empty("disk", Medium::Disk, Some("1Mi")),
                empty("memory", Medium::Memory, Some("1Mi")),
                empty("free", Medium::Disk, None),
            ],
            containers: vec![limited],
            ..Pod::new("u".parse().unwrap(), key, "n".parse().unwrap())
        };
        let events: Vec<(String, String)> =
            unsupported(&pod).into_iter().map(|e| (e.reason, e.message)).collect();
        let reasons: Vec<&str> = events.iter().map(|(reason, _)| reason.as_str()).collect();
        assert_eq!(reasons, ["NotEnforced", "NotEnforced"]);
        for (n, part) in ["sizeLimit 1Mi of volume disk", "limit 1Mi of container c"].iter().enumerate() {
            assert!(events[n].1.contains(part), "{events:?}");
        }
    }
}
