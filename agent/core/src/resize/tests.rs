//! Allocation, order and steps of resizes.

use super::*;
use crate::{
    ids::{ContainerId, PodKey},
    resources::PodCgroup,
    time::Wall,
};

fn resources(cpu: &str) -> Resources {
    Resources { requests: [("cpu".to_owned(), cpu.parse().unwrap())].into(), ..Resources::default() }
}

fn pod(generation: i64, cpu: &str) -> Arc<Pod> {
    let key = PodKey { namespace: "ns".parse().unwrap(), name: "p".parse().unwrap() };
    let container = Container::new("c".parse().unwrap(), "i");
    Arc::new(Pod {
        generation: Some(generation),
        containers: vec![Container { resources: resources(cpu), ..container }],
        ..Pod::new("u".parse().unwrap(), key, "n".parse().unwrap())
    })
}

fn deferred(generation: i64) -> PendingResize {
    PendingResize {
        reason: PendingReason::Deferred,
        message: "full & <so>".into(),
        generation: Some(generation),
    }
}

#[test]
fn a_pod_keeps_its_allocation_and_takes_the_rest_of_the_new_spec() {
    let (first, wanted) = (pod(1, "1"), pod(2, "2"));
    let run = with_allocated_resources(&wanted, &first, Some(deferred(2)));
    assert_eq!(run.containers, first.containers);
    assert_eq!((run.pending_resize.clone(), run.generation), (Some(deferred(2)), Some(2)));
    // A resize that is taken back leaves nothing; another spelling of an amount is no resize.
    let back = pod(4, "1000m");
    assert!(Arc::ptr_eq(&with_allocated_resources(&back, &run, Some(deferred(2))), &back));
    assert!(same_resources(&pod(1, "1"), &pod(1, "1000m")) && !same_resources(&first, &wanted));
    // What cannot run here has no resources that anyone knows.
    let unknown = Pod { unsupported: Some("why".into()), ..(*pod(3, "5")).clone() };
    assert!(same_resources(&unknown, &first) && same_resources(&first, &unknown));
}

#[test]
fn events_have_the_kubelets_texts() {
    let pod = pod(7, "0.5");
    let resources = r#"{"containers":[{"name":"c","resources":{"requests":{"cpu":"500m"}}}],"generation":7"#;
    let started = started(&pod);
    assert_eq!(
        (started.reason.as_str(), started.message),
        ("ResizeStarted", format!("Pod resize started: {resources}}}"))
    );
    let told = pending(&pod, &deferred(7));
    let text = format!(r#"Pod resize Deferred: {resources},"error":"full \u0026 \u003cso\u003e"}}"#);
    assert_eq!((told.reason.as_str(), told.message), ("ResizeDeferred", text));
    let mut bare = (*pod).clone();
    bare.containers[0].resources = Resources::default();
    let text = r#"Pod resize completed: {"containers":[{"name":"c","resources":{}}],"generation":6}"#;
    assert_eq!(completed(&bare, Some(6)).message, text);
}

#[test]
fn resizes_that_take_nothing_come_first_then_priority_class_and_wait() {
    let (small, big, important) = (pod(1, "1"), pod(1, "2"), Pod { priority: 5, ..(*pod(1, "2")).clone() });
    let mut list = vec![
        ("late", &*big, &*small, Some(Wall(9))),
        ("early", &*big, &*small, Some(Wall(3))),
        ("important", &important, &*small, Some(Wall(9))),
        ("gives", &*small, &*big, Some(Wall(10))),
    ];
    by_priority(&mut list);
    assert_eq!(list.iter().map(|l| l.0).collect::<Vec<_>>(), ["gives", "important", "early", "late"]);
}

fn id(letter: &str) -> ContainerId {
    letter.repeat(64).parse().unwrap()
}

/// An update of memory limit and CPU limit.
fn update(letter: &str, now: (i64, i64), wanted: (i64, i64)) -> ContainerUpdate {
    let of = |(memory_limit, cpu_limit)| CpuMemory { memory_limit, cpu_limit, ..CpuMemory::default() };
    ContainerUpdate {
        id: id(letter),
        container: format!("c{letter}").parse().unwrap(),
        now: of(now),
        wanted: of(wanted),
    }
}

fn group(shares: u64, quota: Option<i64>, memory: Option<i64>) -> PodCgroup {
    PodCgroup {
        cpu_shares: shares,
        cpu_quota: quota,
        memory_limit: memory,
        hugepages: BTreeMap::new(),
        pids_limit: None,
    }
}

fn limits(shares: u64, quota: Option<i64>, memory: Option<i64>) -> PodLimits {
    PodLimits { cpu_shares: shares, cpu_quota: quota, memory_limit: memory }
}

#[test]
fn a_pod_grows_before_its_containers_and_shrinks_after_them() {
    use ResizeStep::{ContainerCpu, ContainerMemory, PodMemory, PodQuota, PodShares};
    let updates = [update("a", (10, 100), (30, 300)), update("b", (20, 200), (5, 50))];
    let grown = steps(limits(2, Some(300), Some(30)), &group(4, Some(350), Some(35)), &updates);
    assert_eq!(
        grown,
        [
            PodMemory(35),
            ContainerMemory(id("b")),
            ContainerMemory(id("a")),
            PodQuota(350),
            PodShares(4),
            ContainerCpu(id("b")),
            ContainerCpu(id("a")),
        ]
    );
    let shrunk = steps(limits(4, None, None), &group(2, Some(300), Some(30)), &updates[1..]);
    let of_b = [ContainerMemory(id("b")), PodMemory(30), ContainerCpu(id("b")), PodShares(2), PodQuota(300)];
    assert_eq!(shrunk, of_b);
    // What is set already takes no step, and a limit that is not wanted stays.
    let now = limits(4, Some(5), Some(6));
    assert_eq!(steps(now, &group(4, None, None), &[]), []);
    let cpu = [update("a", (10, 100), (10, 300))];
    assert_eq!(steps(now, &group(4, Some(5), Some(6)), &cpu), [ContainerCpu(id("a"))]);
}

#[test]
fn no_memory_limit_goes_below_what_is_in_use() {
    let shrinks = [update("a", (100, 0), (50, 0))];
    let (now, wanted) = (limits(2, None, Some(100)), group(2, None, Some(50)));
    let fault = |pod, run| shrink_fault(now, &wanted, &shrinks, |id| if id.is_some() { run } else { pod });
    assert_eq!(fault(Some(49), Some(49)), None);
    let pod = "attempting to set pod memory limit (50) below current usage (60)";
    assert_eq!(fault(Some(60), Some(1)), Some(format!("cannot decrease memory limits: {pod}")));
    let run = "attempting to set container \"ca\" memory limit (50) below current usage (50)";
    assert_eq!(fault(Some(60), Some(50)), Some(format!("cannot decrease memory limits: [{pod}, {run}]")));
    let missing = "[missing pod memory usage, missing container \"ca\" memory usage]";
    assert_eq!(fault(None, None), Some(format!("cannot decrease memory limits: {missing}")));
    // Growing asks for nothing.
    let grows = [update("a", (100, 0), (200, 0))];
    assert_eq!(shrink_fault(now, &group(2, None, Some(200)), &grows, |_| None), None);
}
