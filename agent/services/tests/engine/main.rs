//! Tests of the engine with an in-memory node and kernel.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod changes;
mod cost;
mod devices;
mod failures;
mod notices;
mod pods;
mod stale;
#[path = "../support/mod.rs"]
mod support;
mod world;

use berth_core::{
    model::{EndpointSlice, Protocol, Service, ServiceType, TrafficPolicy},
    status::{Condition, ConditionType, Truth},
    time::Wall,
};
use berth_ebpf_abi::{client, local_pod};
use berth_ebpf_loader::{DeviceRole, Frontend, StalePeer};
use berth_services::{Config, Device, Engine, Net as _, NoticeReason, ObservedPod};
use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use support::{endpoint, key, service, slice};
use world::{FakeKernel, FakeNode, HOST, State, World, network, pod, uid};

fn engine(world: &World) -> Engine<FakeKernel, FakeNode> {
    reconciling(world, Duration::from_secs(3600))
}

/// Engine that compares the maps with the written entries at that interval.
fn reconciling(world: &World, reconcile: Duration) -> Engine<FakeKernel, FakeNode> {
    let networks = vec![(ip("10.96.0.0"), 16)];
    let config =
        Config { node: "n".into(), zone: "".into(), networks, reconcile, next_id: 1, self_test: None };
    Engine::new(config, world.kernel(), world.node())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn web(name: &str, address: &str) -> Arc<Service> {
    Arc::new(service(name, address, &[("", Protocol::Tcp, 80, None)]))
}

fn selecting(name: &str, address: &str, app: &str) -> Arc<Service> {
    let mut service = service(name, address, &[("", Protocol::Udp, 80, None)]);
    service.selector = vec![("app".into(), app.into())];
    Arc::new(service)
}

fn behind(name: &str, addresses: &[&str]) -> Arc<EndpointSlice> {
    let endpoints = addresses.iter().map(|a| endpoint(a, "")).collect();
    Arc::new(slice(&format!("{name}-x"), name, &[("", Protocol::Tcp, 80)], endpoints))
}

/// World whose sources have listed and that has no pod to wait for.
fn listed() -> World {
    let world = World::default();
    world.state().listed = true;
    world
}

/// Runs rounds, as the engine's thread does, until the condition holds.
fn rounds(engine: &mut Engine<FakeKernel, FakeNode>, world: &World, holds: impl Fn(&World) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds(world) {
        assert!(Instant::now() < deadline, "{:?}", world);
        let due = engine.round().unwrap_or(Duration::from_millis(10));
        std::thread::park_timeout(due.min(Duration::from_millis(10)));
    }
}

fn lost(backend: &str, frontend: Option<Frontend>) -> StalePeer {
    StalePeer { backend: backend.parse().unwrap(), frontend }
}

fn backends(world: &World, address: &str) -> Option<u16> {
    world.state().frontends.get(&(ip(address), 80)).copied()
}

fn published(world: &World) -> (usize, usize) {
    let state = world.state();
    (state.zones, state.files)
}
