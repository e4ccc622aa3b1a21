//! The disturbances of `cargo xtask outage`.

use super::{
    load::{CRASHING, Load, OWN, PROBED, STEADY},
    verdict::Verdict,
};
use crate::{
    cluster::{AGENT, API_SERVER, Asked, AuditLog, Cluster, FaultProxy},
    out,
};
use anyhow::{Result, ensure};
use berth_harness::{
    rng::Rng,
    wait::{self, PATIENCE},
};
use std::{
    thread,
    time::{Duration, Instant},
};

/// The daemon that ends without its lease in a real control plane, when the API server is away.
const CONTROLLERS: &str = "kube-controller-manager";

/// Longest time between a start of the agent and its kill, in milliseconds.
const LIFE: u64 = 1_500;

/// Agents that begin while the API server refuses.
const REFUSED_AGENTS: usize = 3;

/// A rule by which the API server has place for one request of the nodes at a time and answers the others with 429.
const REFUSAL: &str = r#"apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: PriorityLevelConfiguration
metadata: {name: nothing}
spec:
  type: Limited
  limited: {nominalConcurrencyShares: 0, lendablePercent: 0, borrowingLimitPercent: 0, limitResponse: {type: Reject}}
---
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: FlowSchema
metadata: {name: nodes-get-nothing}
spec:
  priorityLevelConfiguration: {name: nothing}
  matchingPrecedence: 2
  rules:
  - subjects: [{kind: Group, group: {name: "system:nodes"}}]
    resourceRules: [{verbs: ["*"], apiGroups: ["*"], resources: ["*"], namespaces: ["*"], clusterScope: true}]
    nonResourceRules: [{verbs: ["*"], nonResourceURLs: ["*"]}]
"#;

/// A disturbance.
pub(super) struct Phase {
    pub(super) name: &'static str,
    /// What comes before the first look.
    prepare: fn(&mut Stage) -> Result<()>,
    disturb: fn(&mut Stage) -> Result<()>,
    /// The end of the disturbance. Requests are counted from its beginning on.
    end: fn(&mut Stage) -> Result<()>,
    /// What follows the last look.
    restore: fn(&mut Stage) -> Result<()>,
    /// The parts to which nothing happens.
    unchanged: &'static [&'static str],
}

/// A disturbance without parts of its own, in which nothing happens to the pods that do not come and go.
const NOTHING: Phase = Phase {
    name: "",
    prepare: nothing,
    disturb: nothing,
    end: nothing,
    restore: nothing,
    unchanged: &[STEADY, OWN, PROBED, CRASHING],
};

/// All disturbances, in their order.
pub(super) const PHASES: [Phase; 7] = [
    Phase { name: "kills", disturb: kills, end: |stage| stage.kill_agent(), ..NOTHING },
    Phase { name: "away", disturb: away, end: back, unchanged: &[STEADY, OWN], ..NOTHING },
    Phase {
        name: "goaway",
        prepare: |stage| stage.goaway(0.02),
        disturb: |stage| stage.churn(20),
        restore: |stage| stage.goaway(0.0),
        ..NOTHING
    },
    Phase {
        name: "cuts",
        prepare: |stage| stage.put_proxy(),
        disturb: cuts,
        end: |stage| stage.proxy().map(FaultProxy::cut),
        ..NOTHING
    },
    Phase {
        name: "expired",
        prepare: |stage| stage.put_proxy(),
        disturb: expire,
        end: |stage| stage.proxy().map(|proxy| proxy.refuse(false)),
        ..NOTHING
    },
    Phase {
        name: "refused",
        prepare: |stage| stage.put_proxy(),
        disturb: refuse,
        end: |stage| {
            stage.cluster.kubectl(&["delete", "flowschema", "nodes-get-nothing"])?;
            stage.cluster.kubectl(&["delete", "prioritylevelconfiguration", "nothing"]).map(drop)
        },
        ..NOTHING
    },
    Phase {
        name: "errors",
        prepare: |stage| stage.put_proxy(),
        disturb: errors,
        end: |stage| {
            stage.cluster.start("etcd")?;
            stage.cluster.api_server_ready()
        },
        ..NOTHING
    },
];

/// The cluster with its pods, and how much is done to it.
pub(super) struct Stage<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) load: &'a Load<'a>,
    /// The proxy between the agent and the API server, once there is one.
    pub(super) proxy: Option<FaultProxy>,
    pub(super) rng: Rng,
    pub(super) kills: u64,
    pub(super) away: Duration,
    pub(super) cuts: Duration,
}

impl Stage<'_> {
    /// Disturbs the cluster and judges what became of its pods.
    pub(super) fn judge(&mut self, phase: &Phase, name: &str) -> Result<Verdict> {
        let cluster = self.cluster;
        (phase.prepare)(self)?;
        self.load.ready()?;
        let mut log = cluster.audit()?;
        cluster.quiet(&mut log)?;
        let before = cluster.look()?;
        out::timed("disturb", || (phase.disturb)(self))?;
        log.news()?;
        (phase.end)(self)?;
        self.load.ready()?;
        let asked = cluster.quiet(&mut log)?;
        let after = cluster.look()?;
        let found = before.until(&after, phase.unchanged);
        let unchanged = |name: &str| phase.unchanged.iter().any(|part| name.starts_with(part));
        let mut verdict = Verdict::of(name, found, &asked, after.pods.len(), unchanged);
        for restarted in after.restarts_but_of(&[CRASHING]) {
            verdict.restarts += 1;
            verdict.told.push(restarted);
        }
        (phase.restore)(self)?;
        Ok(verdict)
    }

    fn proxy(&self) -> Result<&FaultProxy> {
        self.proxy.as_ref().ok_or_else(|| anyhow::anyhow!("there is no proxy"))
    }

    fn put_proxy(&mut self) -> Result<()> {
        if self.proxy.is_none() {
            self.proxy = Some(self.cluster.put_proxy_before_agent()?);
        }
        Ok(())
    }

    fn kill_agent(&mut self) -> Result<()> {
        self.cluster.kill(AGENT)?;
        self.cluster.start(AGENT)
    }

    /// Starts the API server anew with this chance of GOAWAY.
    fn goaway(&mut self, chance: f64) -> Result<()> {
        self.cluster.kill(API_SERVER)?;
        self.cluster.start_api_server_with_goaway(chance)?;
        self.cluster.api_server_ready()
    }

    /// Deletes pods one by one, and waits until all are there again.
    fn churn(&mut self, times: usize) -> Result<()> {
        for _ in 0..times {
            self.load.churn(&mut self.rng)?;
            pause(self.rng.below(1_000));
        }
        self.load.ready()
    }
}

fn nothing(_: &mut Stage) -> Result<()> {
    Ok(())
}

/// Waits until the node was answered so for as often as this since the last reading of the log.
fn answered(log: &mut AuditLog, what: &str, times: usize, is: impl Fn(&Asked) -> bool) -> Result<()> {
    let mut count = 0;
    wait::ok(what, PATIENCE, || {
        count += log.news()?.iter().filter(|asked| is(asked)).count();
        ensure!(count >= times, "{count} of {times} answers");
        Ok(())
    })
}

fn pause(millis: u64) {
    thread::sleep(Duration::from_millis(millis));
}

/// Kills the agent at random moments while pods come and go.
fn kills(stage: &mut Stage) -> Result<()> {
    for n in 1..stage.kills {
        if stage.rng.below(2) == 0 {
            stage.load.churn(&mut stage.rng)?;
        }
        pause(stage.rng.below(LIFE));
        stage.kill_agent()?;
        if n % 25 == 0 {
            out::line(&format!("  {n} kills"));
        }
    }
    stage.load.ready()
}

/// The control plane is away. Meanwhile containers fail and probes fail; one of the probed pods is well again before the
/// end, and one fails its probe beyond the end.
fn away(stage: &mut Stage) -> Result<()> {
    let begun = Instant::now();
    // Kubernetes' controllers lose their lease without an API server, and end.
    for name in [API_SERVER, CONTROLLERS] {
        stage.cluster.kill(name)?;
    }
    for n in [0, 1] {
        stage.load.touch(PROBED, n, false)?;
        stage.load.touch(CRASHING, n, false)?;
    }
    // As long as two runs of a container that fails: its back-off stays short.
    pause(12_000);
    for (part, n) in [(CRASHING, 0), (CRASHING, 1), (PROBED, 1)] {
        stage.load.touch(part, n, true)?;
    }
    pause(u64::try_from(stage.away.saturating_sub(begun.elapsed()).as_millis())?);
    Ok(())
}

fn back(stage: &mut Stage) -> Result<()> {
    let cluster = stage.cluster;
    cluster.start(API_SERVER)?;
    cluster.api_server_ready()?;
    cluster.start(CONTROLLERS)?;
    wait::ok("the API server has what happened meanwhile", PATIENCE, || {
        let look = cluster.look()?;
        let named =
            |name: String| look.pods.values().find(|pod| pod.name == name).cloned().unwrap_or_default();
        ensure!(!named(format!("{PROBED}-0")).ready, "{PROBED}-0 is ready");
        for n in [0, 1] {
            ensure!(named(format!("{CRASHING}-{n}")).restarts > 0, "{CRASHING}-{n} has no restart");
        }
        Ok(())
    })?;
    stage.load.touch(PROBED, 0, true)
}

/// All connections are cut each second while pods come and go.
fn cuts(stage: &mut Stage) -> Result<()> {
    let begun = Instant::now();
    let mut round = 0;
    while begun.elapsed() < stage.cuts {
        stage.proxy()?.cut();
        round += 1;
        if round % 5 == 0 {
            stage.load.churn(&mut stage.rng)?;
        }
        pause(1_000);
    }
    Ok(())
}

/// While the node is cut off, objects of each kind change, and an API server that began after that remembers no earlier
/// version: each watch is answered 410.
fn expire(stage: &mut Stage) -> Result<()> {
    let cluster = stage.cluster;
    stage.proxy()?.refuse(true);
    stage.proxy()?.cut();
    stage.load.churn(&mut stage.rng)?;
    stage.load.churn(&mut stage.rng)?;
    for object in ["configmap/own-0", "service/churn", "pod/own-1", "node/berth-node"] {
        cluster.kubectl(&["annotate", "--overwrite", object, "changed=yes"])?;
    }
    cluster.kill(API_SERVER)?;
    cluster.start(API_SERVER)?;
    cluster.api_server_ready()
}

/// The API server answers 429 to what the node asks while another request of it is answered: to most of what an agent
/// asks that has just started.
fn refuse(stage: &mut Stage) -> Result<()> {
    let cluster = stage.cluster;
    cluster.apply("refusal", REFUSAL)?;
    let mut log = cluster.audit()?;
    stage.proxy()?.cut();
    stage.load.churn(&mut stage.rng)?;
    for _ in 0..REFUSED_AGENTS {
        stage.kill_agent()?;
        answered(&mut log, "the agent is refused", 10, |asked| asked.code == 429)?;
    }
    Ok(())
}

/// The API server has no etcd and answers 5xx.
fn errors(stage: &mut Stage) -> Result<()> {
    let cluster = stage.cluster;
    let mut log = cluster.audit()?;
    stage.load.churn(&mut stage.rng)?;
    cluster.kill("etcd")?;
    answered(&mut log, "the node gets errors", 1, |asked| asked.code >= 500)?;
    stage.proxy()?.cut();
    stage.kill_agent()?;
    answered(&mut log, "the new agent gets errors", 1, |asked| asked.code >= 500)
}

#[cfg(test)]
mod tests {
    use super::{super::load::CHURN, *};

    #[test]
    fn pods_that_come_and_go_are_judged_in_no_phase() {
        assert!(PHASES.iter().all(|phase| !phase.unchanged.contains(&CHURN)));
    }
}
