//! In-memory node: sources, pods and publications.

use super::World;
use crate::support::{endpoint, key};
use berth_core::{
    ids::{PodKey, PodUid},
    model::{Endpoint, EndpointPort, EndpointSlice, Service},
    shared::{Changes, Keyed, Shared},
};
use berth_services::{
    Cause, DatapathHealth, HealthCheck, Named, Notice, ObservedPod, ServiceInputs, SourceChanges,
};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// Node of a test.
pub(crate) struct FakeNode {
    world: World,
    services: Shared<Service>,
    slices: Shared<EndpointSlice>,
}

impl FakeNode {
    pub(super) fn new(world: &World) -> FakeNode {
        FakeNode { world: world.clone(), services: Shared::default(), slices: Shared::default() }
    }
}

impl ServiceInputs for FakeNode {
    fn changes(&mut self) -> SourceChanges {
        let state = self.world.state();
        let services = changes(&mut self.services, &state.services);
        let slices = changes(&mut self.slices, &state.slices);
        SourceChanges { listed: state.listed, services: vec![(0, services)], slices: vec![(0, slices)] }
    }

    fn wanted_pods(&self) -> Vec<PodUid> {
        self.world.state().wanted.clone()
    }

    fn pods(&self) -> BTreeMap<PodUid, Option<ObservedPod>> {
        self.world.state().pods.clone()
    }

    fn is_kernel_doubted(&mut self) -> bool {
        std::mem::take(&mut self.world.state().doubted)
    }

    fn runtime_answers(&self) -> bool {
        self.world.state().runtime
    }

    /// One slice for each Service, with the addresses of the pods that have all labels of its selector.
    fn endpoints(
        &self,
        services: &[Arc<Service>],
        pods: &[&ObservedPod],
        before: &[Arc<EndpointSlice>],
    ) -> Vec<Arc<EndpointSlice>> {
        self.world.state().made_for.extend(services.iter().map(|s| s.key.clone()));
        let selecting = services.iter().filter(|s| !s.selector.is_empty());
        let made = selecting.map(|service| {
            let selected = |pod: &ObservedPod| {
                service.selector.iter().all(|(k, v)| pod.pod.labels.get(&**k).is_some_and(|l| **l == **v))
            };
            let addresses = pods.iter().filter(|p| selected(p)).flat_map(|p| &p.status.pod_ips);
            let of = |address: &IpAddr| endpoint(&address.to_string(), "n");
            let endpoints: Vec<Endpoint> = addresses.map(of).collect();
            let port = |p: &berth_core::model::ServicePort| EndpointPort {
                name: Arc::clone(&p.name),
                protocol: p.protocol,
                port: p.port,
            };
            EndpointSlice {
                key: key(&format!("{}-made", service.key.name)),
                service: service.key.clone(),
                v6: false,
                ports: service.ports.iter().map(port).collect(),
                endpoints,
                triggered: None,
            }
        });
        let kept = |slice: EndpointSlice| {
            before.iter().find(|old| ***old == slice).map_or_else(|| Arc::new(slice), Arc::clone)
        };
        made.filter(|s| !s.endpoints.is_empty()).map(kept).collect()
    }

    fn publish_names<'a>(
        &mut self,
        services: impl Iterator<Item = &'a Service>,
        _slices: impl Iterator<Item = &'a EndpointSlice>,
    ) -> Result<(), Cause> {
        let count = services.count();
        let mut state = self.world.state();
        state.zones += 1;
        assert_eq!(count, state.services.len());
        Ok(())
    }

    fn publish_ids(
        &mut self,
        _ids: impl Iterator<Item = Named>,
        _next_id: u32,
        notices: impl Iterator<Item = Notice>,
    ) -> Result<(), Cause> {
        let mut state = self.world.state();
        state.files += 1;
        state.notices = notices.collect();
        Ok(())
    }

    fn notify(&mut self, notice: &Notice) {
        self.world.state().told.push(notice.clone());
    }

    fn health_checks(&mut self, checks: &BTreeMap<PodKey, HealthCheck>) {
        self.world.state().health_checks = checks.clone();
    }

    fn health(&mut self, health: &DatapathHealth) {
        self.world.state().health = health.clone();
    }
}

/// The changes from the objects that a source reported before, which are replaced.
fn changes<T: Keyed>(before: &mut Shared<T>, now: &[Arc<T>]) -> Changes<T> {
    let mut all = Shared::default();
    now.iter().for_each(|object| all.put(Arc::clone(object)));
    let changes = all.changes_since(before);
    *before = all;
    changes
}
