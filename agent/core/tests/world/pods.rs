//! Pods of the histories: every restart policy, with and without init containers, sidecars, ephemeral
//! containers, probes and hooks.

use berth_core::{ids::*, model::*, plan::Desired};
use std::sync::Arc;

fn container(name: &str) -> Container {
    Container::new(ContainerName::new(name).expect("a label"), "img")
}

fn probe() -> Probe {
    Probe {
        action: ProbeAction::Tcp { host: None, port: PortRef::Number(80) },
        initial_delay_seconds: 0,
        timeout_seconds: 1,
        period_seconds: 10,
        success_threshold: 1,
        failure_threshold: 3,
        grace_seconds: None,
    }
}

fn pod(policy: RestartPolicy, init: Vec<Container>, mains: Vec<Container>, deadline: Option<u32>) -> Desired {
    let key = PodKey {
        namespace: Namespace::new("default").expect("a label"),
        name: PodName::new("p").expect("a name"),
    };
    let pod = Pod {
        restart_policy: policy,
        active_deadline_seconds: deadline,
        init_containers: init,
        containers: mains,
        ..Pod::new(PodUid::new("u-1").expect("a uid"), key, NodeName::new("n").expect("a name"))
    };
    Desired::new(Arc::new(pod), None)
}

/// All pods.
pub fn specs() -> Vec<Desired> {
    let mut all = Vec::new();
    let with_probes =
        |name: &str| Container { liveness: Some(probe()), readiness: Some(probe()), ..container(name) };
    let with_all = |name: &str| Container {
        startup: Some(probe()),
        post_start: Some(Hook::Sleep(1)),
        pre_stop: Some(Hook::Sleep(1)),
        ..with_probes(name)
    };
    let sidecar = |name: &str| Container { sidecar: true, ..with_probes(name) };
    for policy in [RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::Never] {
        all.push(pod(policy, vec![], vec![container("a")], None));
        all.push(pod(policy, vec![], vec![with_probes("a")], None));
        all.push(pod(policy, vec![], vec![with_all("a"), container("b")], None));
        all.push(pod(policy, vec![container("i")], vec![with_probes("a")], None));
        all.push(pod(
            policy,
            vec![container("i"), container("j")],
            vec![with_all("a"), with_probes("b")],
            None,
        ));
        all.push(pod(
            policy,
            vec![container("i"), sidecar("s"), container("j")],
            vec![with_probes("a")],
            None,
        ));
        all.push(pod(policy, vec![sidecar("s"), sidecar("t")], vec![container("a"), with_all("b")], None));
        all.push(pod(policy, vec![], vec![with_probes("a")], Some(600)));
        let mut debugged = pod(policy, vec![container("i"), sidecar("s")], vec![with_probes("a")], None);
        Arc::make_mut(&mut debugged.pod).ephemeral_containers = vec![container("e0"), container("e1")];
        all.push(debugged);
    }
    all
}
