//! The plugin is killed at any moment: DEL and GC remove everything, and the network keeps working.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

mod common;

use common::{Netns, Node, plugin, sandbox};
use std::{
    collections::BTreeSet,
    io::Write,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

fn start(verb: &str, id: &str, netns: &Netns, config: &str) -> Child {
    let mut child = Command::new(plugin())
        .env_clear()
        .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", id), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/")])
        .env("CNI_NETNS", netns.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.as_bytes()).unwrap();
    child
}

fn plugin_config(node: &Node) -> String {
    let data = node.data_dir();
    format!(
        r#"{{"cniVersion":"1.1.0","name":"pods","type":"berth-cni","subnets":["10.77.0.0/28","fd77::/124"],"dataDir":{data:?}}}"#
    )
}

/// The plugin is killed after delays that sweep over a whole ADD and DEL, so that every phase is
/// covered. Half of the rest is removed by DEL, the other half by GC. After each, a complete ADD
/// works, in ranges so small that one leaked address a round would soon fill them.
#[test]
fn a_kill_at_any_moment_leaves_nothing_that_del_or_gc_does_not_take_away() {
    const ROUNDS: u32 = 100;
    let node = Node::with_plugin("kill");
    let a = Netns::unique("a").unwrap();
    let config = plugin_config(&node);
    let (mut killed, mut half_done) = (0, 0);
    node.host
        .enter(|| {
            let whole = (0..5).map(|n| {
                let begin = Instant::now();
                assert!(
                    start("ADD", &format!("time-{n}"), &a, &config)
                        .wait_with_output()
                        .unwrap()
                        .status
                        .success()
                );
                let took = begin.elapsed();
                assert!(start("DEL", &format!("time-{n}"), &a, &config).wait().unwrap().success());
                took
            });
            let whole = whole.min().unwrap();
            for round in 0..ROUNDS {
                let id = format!("sandbox-{round}");
                let verb = if round % 5 == 4 { "DEL" } else { "ADD" };
                if verb == "DEL" {
                    assert!(start("ADD", &id, &a, &config).wait_with_output().unwrap().status.success());
                }
                let mut child = start(verb, &id, &a, &config);
                std::thread::sleep(whole * (round * 7 % ROUNDS) / ROUNDS);
                child.kill().unwrap();
                killed += u32::from(!child.wait_with_output().unwrap().status.success());
                half_done += u32::from(!node.allocated("pods").is_empty() || !node.leftovers().is_empty());
                if round % 2 == 0 {
                    assert!(start("DEL", &id, &a, &config).wait().unwrap().success());
                } else {
                    let gc = config.replacen('{', r#"{"cni.dev/valid-attachments":[],"#, 1);
                    assert!(start("GC", &id, &a, &gc).wait().unwrap().success());
                }
                assert_eq!(
                    (node.lasting_leftovers(), node.allocated("pods")),
                    Default::default(),
                    "round {round}"
                );
                assert!(!a.ip("link").unwrap().contains("eth0"), "round {round}");
            }
        })
        .unwrap();
    println!("{killed} of {ROUNDS} killed before their end, {half_done} left something");
    assert!(killed >= ROUNDS / 2, "only {killed} of {ROUNDS} were killed before their end");
    assert!(half_done >= 10, "only {half_done} of {ROUNDS} left anything to take away");
    let attachment = node.block_on(node.open().add(&sandbox("last", &a.path()))).unwrap();
    assert_eq!(attachment.ips.len(), 2);
    node.block_on(node.open().del("last", None)).unwrap();
    assert_eq!((node.lasting_leftovers(), node.files(), node.allocated("pods")), Default::default());
}

/// The future of an ADD is dropped, as when a pod is deleted while it starts or the agent is
/// stopped. A restarted agent removes everything.
#[test]
fn an_add_dropped_at_any_moment_is_collected_by_the_next_life() {
    let node = Node::with_plugin("drop");
    let a = Netns::unique("a").unwrap();
    let network = node.open();
    let mut dropped = 0;
    for round in 0..30u32 {
        let request = sandbox(&format!("sandbox-{round}"), &a.path());
        let patience = Duration::from_micros(u64::from(round) * 400);
        let cut =
            node.block_on(async { tokio::time::timeout(patience, network.add(&request)).await.is_err() });
        dropped += u32::from(cut);
        let later = node.open();
        if round % 2 == 0 {
            node.block_on(later.del(&request.sandbox_id, Some(&a.path()))).unwrap();
        }
        node.block_on(later.gc(&BTreeSet::new())).unwrap();
        assert_eq!(
            (node.lasting_leftovers(), node.files(), node.allocated("pods")),
            Default::default(),
            "round {round}"
        );
    }
    assert!(dropped >= 5, "only {dropped} of 30 were dropped before their end");
}
