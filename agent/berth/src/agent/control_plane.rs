//! The control plane on the status page.

use crate::agent::certificates::CertificatesHealth;
use berth_api::view::{ControlPlaneView, SetBehind, UnpublishedPod, UnreadObject};
use berth_cluster::{
    ApiPods, SourceHealth,
    publish::{
        node::NewestNode,
        pods::{Unpublished, UnpublishedStatus},
    },
};
use berth_kube::{
    pool::{Pool, View},
    reflector::Health,
};

/// What the agent knows of the control plane and of its own delay behind it. Clones see the same.
#[derive(Clone)]
pub(crate) struct ControlPlaneHealth {
    pub(super) pool: Pool,
    pub(super) source: SourceHealth,
    pub(super) api: ApiPods,
    pub(super) unpublished: Unpublished,
    pub(super) node: NewestNode,
    pub(super) certificates: CertificatesHealth,
}

impl ControlPlaneHealth {
    /// The present state. `listed` says whether the source has all it needs to start and end pods.
    pub(crate) fn view(&self, listed: bool) -> ControlPlaneView {
        let View { server, common_name, connections, last_contact, lease_renewed, problem, .. } =
            self.pool.view();
        let client_ends = self.pool.identity().certificate.as_ref().map(|c| c.not_after);
        let behind = |(resource, health)| match health {
            Health::Ok { .. } => None,
            Health::Behind { since, why, .. } => {
                Some(SetBehind { resource: String::from(resource), since: since.wall, reason: why })
            }
        };
        let unread = self.source.unread().into_iter().map(|((kind, namespace, name), why)| UnreadObject {
            kind: kind.to_string(),
            key: format!("{namespace}/{name}"),
            reason: why.to_string(),
        });
        let unpublished = |UnpublishedStatus { pod, since, reason }| UnpublishedPod { pod, since, reason };
        ControlPlaneView {
            server,
            identity: common_name,
            connections,
            last_contact: last_contact.map(|at| at.wall),
            lease_renewed: lease_renewed.map(|at| at.wall),
            problem,
            listed,
            registered: self.node.get().is_some(),
            pods: self.api.uids().len(),
            behind: self.source.sets().filter_map(behind).collect(),
            unread: unread.collect(),
            unpublished: self.unpublished.all().into_iter().map(unpublished).collect(),
            certificates: self.certificates.view(client_ends),
        }
    }
}
