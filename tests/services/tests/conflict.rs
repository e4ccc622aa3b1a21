//! Two Services claim the same address: the younger one gets an event that `berth events` shows.

mod support;

use anyhow::{Context, Result, ensure};
use berth_harness::wait;
use serde_json::Value;
use std::{net::Ipv4Addr, time::Duration};
use support::{Guest, plain, service};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn the_loser_of_an_address_gets_an_event() -> Result<()> {
    let guest = Guest::new("conflict", plain()?)?;
    let address = Ipv4Addr::new(10, 96, 3, 1);
    let created = |name: &str, at: &str| {
        service(name, address, 80)
            .replace("namespace: default", &format!("namespace: default, creationTimestamp: '{at}'"))
    };
    guest.node.apply("older.yaml", &created("older", "2020-01-01T00:00:00Z"))?;
    guest.node.apply("younger.yaml", &created("younger", "2021-01-01T00:00:00Z"))?;
    guest.agent()?;
    let event = wait::ok("the event is shown", PATIENCE, || {
        let shown = guest.node.berth(&["events", "-o", "json"])?;
        let all: Value = serde_json::from_slice(&shown.stdout)?;
        let items = all["items"].as_array().context("a list")?;
        items.iter().find(|e| e["involvedObject"]["kind"] == "Service").cloned().context("no Service's event")
    })?;
    ensure!(event["involvedObject"]["name"] == "younger", "{event}");
    ensure!(event["reason"] == "ClusterIPAlreadyAllocated" && event["type"] == "Warning", "{event}");
    ensure!(
        event["message"].as_str().is_some_and(|m| m.ends_with("held by the older Service default/older")),
        "{event}"
    );
    ensure!(event["count"] == 1, "{event}");
    guest.end()
}
