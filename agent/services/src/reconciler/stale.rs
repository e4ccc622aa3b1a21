//! Stale backends: the backends of UDP ports that clients may still use, and those that no longer serve.

use super::{StaleBackend, port::Port};
use crate::{Net, WantedPort, compile::shown};
use berth_ebpf_abi::{Backend, ServiceKey};
use berth_ebpf_loader::Frontend;
use std::collections::HashSet;

/// A stale backend, once for each frontend through which clients reached it.
pub(super) fn stale_backends<A: Net>(
    id: u32,
    backend: &Backend<A>,
    client_frontends: &[ServiceKey<A>],
) -> impl Iterator<Item = StaleBackend> {
    let (address, port) = (backend.addr.ip(), u16::from_be(backend.port));
    client_frontends.iter().map(move |key| {
        let (dialled, front_port) = shown(key);
        let frontend = Frontend { address: (key.addr != A::ANY).then_some(dialled), port: front_port };
        StaleBackend { address, port, service: id, frontend }
    })
}

/// Frontends through which clients may have come after a change; clients never come through a bare address. A
/// removed frontend stays in the list, because its clients are not notified. At worst the next holder of that
/// frontend loses sockets, and these connect again.
pub(super) fn client_frontends_after<A: Net>(
    before: &[ServiceKey<A>],
    wanted: &WantedPort<A>,
) -> Vec<ServiceKey<A>> {
    let mut client_frontends = before.to_vec();
    let now = wanted.frontends.iter().map(|(key, _)| *key).filter(|key| key.port != 0);
    client_frontends.extend(now.filter(|key| !before.contains(key)));
    client_frontends
}

/// Backends that clients may still use after a change. The others become stale.
pub(super) fn flows_after<A: Net>(
    id: u32,
    (before, client_frontends): (&[Backend<A>], &[ServiceKey<A>]),
    wanted: &WantedPort<A>,
    stale: &mut Vec<StaleBackend>,
) -> Vec<Backend<A>> {
    let place = |b: &Backend<A>| (b.addr, b.port);
    let mut now: Vec<Backend<A>> = wanted.cluster.iter().chain(&wanted.local).copied().collect();
    now.sort_unstable_by_key(place);
    now.dedup_by_key(|b| place(b));
    let chosen = now.len();
    for b in before {
        if now.get(..chosen).is_some_and(|c| c.binary_search_by_key(&place(b), place).is_ok()) {
            continue;
        }
        if wanted.serving.iter().any(|s| place(s) == place(b)) {
            now.push(*b);
        } else {
            stale.extend(stale_backends(id, b, client_frontends));
        }
    }
    now
}

/// Returns the backends that are stale for `port`. Backends that still serve without being in a set are added
/// to the port's flows.
pub(super) fn flows_of_key<A: Net>(port: Option<&mut Port<A>>, backends: &[Backend<A>]) -> Vec<Backend<A>> {
    let Some(port) = port else { return backends.to_vec() };
    let place = |b: &Backend<A>| (b.addr, b.port);
    let flows: HashSet<_> = port.flows.iter().map(place).collect();
    let serving: HashSet<_> = port.wanted.serving.iter().map(place).collect();
    let (on, gone) = backends
        .iter()
        .filter(|b| !flows.contains(&place(b)))
        .partition::<Vec<Backend<A>>, _>(|b| serving.contains(&place(b)));
    port.flows.extend(on);
    gone
}
