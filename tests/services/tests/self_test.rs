//! The self-test of a data plane in the kernel: it names the hook that is missing, the device without programs and the
//! programs that find no entry, and nothing where all is well.

use anyhow::{Context, Result, ensure};
use berth_core::{ids::NodeName, roots::Roots, shared::Changes, time::Boottime};
use berth_ebpf_abi::ServiceKey;
use berth_ebpf_loader::{DeviceRole, OBJECT, Pins, attach_device, ensure_bpffs};
use berth_harness::{netns::Netns, wait};
use berth_services::{NodeFacts, SelfTest, SelfTestService, TableReconciler};
use berth_tests_services::{
    group::{Group, root},
    plane::Plane,
};
use std::{fs, path::PathBuf, sync::Arc};

/// Hooks of the self-test over IPv4, each with the words that begin its failure.
const HOOKS: [(&str, &str); 4] = [
    ("connect4", "a connection of the node is not answered (through connect4)"),
    ("getpeername4", "the question for a connection's peer is not answered (through getpeername4)"),
    ("sendmsg4", "a datagram of the node is not answered (through sendmsg4)"),
    ("recvmsg4", "the question for a datagram's sender is not answered (through recvmsg4)"),
];

#[test]
fn what_is_missing_is_named_and_nothing_where_all_is_well() {
    if let Err(error) = missing() {
        panic!("{error:?}");
    }
}

/// This process in a cgroup of the test; it goes back where it was when the value is dropped.
struct Inside {
    before: PathBuf,
}

impl Inside {
    fn new(group: &Group) -> Result<Inside> {
        let groups = fs::read_to_string("/proc/self/cgroup").context("read the process's cgroup")?;
        let own = groups.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup2")?;
        let before = root()?.join(own).join("cgroup.procs");
        fs::write(group.path().join("cgroup.procs"), "0").context("enter the group")?;
        Ok(Inside { before })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // The group of the test is removed next, which fails where this has.
        fs::write(&self.before, "0").ok();
    }
}

fn missing() -> Result<()> {
    let name = format!("berth-self-test-{}", std::process::id());
    let dir = tempfile::tempdir()?;
    let roots = Roots {
        bpf_pins: dir.path().join("bpf"),
        cgroup_hooks: PathBuf::from(&name),
        ..Roots::below(dir.path(), NodeName::new("n")?, &name)
    };
    ensure_bpffs(&Pins::new(&roots.bpf_pins))?;
    let mut plane = Plane::new(&roots.bpf_pins, OBJECT)?;
    let group = Group::new(&name)?;
    let _inside = Inside::new(&group)?;
    let netns = Netns::unique("self-test")?;
    netns.ip("link set lo up")?;
    netns.ip("link add up0 type veth peer name far0")?;
    netns.ip("link set up0 up")?;
    let (index, _) = netns.device("up0")?;
    netns.enter(|| {
        let test = SelfTest::open(&roots)?;
        let SelfTestService { service, slices } = test.service().context("no Service")?;
        let mut reconciler = TableReconciler::new(NodeFacts::default(), 1);
        reconciler.change_services(Changes { now: vec![service], ..Changes::default() });
        reconciler.change_slices(Changes { now: slices, ..Changes::default() });
        reconciler.listed();
        reconciler.sync(&mut plane.maps, Boottime::default)?;
        let attach = |plane: &Plane| {
            plane.hook(group.path())?;
            wait::ok("the programs are attached to the device", wait::PATIENCE, || {
                attach_device(&plane.pins, index, DeviceRole::Uplink).context("attach")
            })
        };
        attach(&plane)?;
        let uplinks: [(u32, Arc<str>); 1] = [(index, "up0".into())];
        let fails = || test.run(&uplinks);
        // The kernel detaches a link some time after its last pin is gone.
        let soon = || {
            wait::some("the self-test fails", wait::PATIENCE, || {
                Some(fails()).filter(|failures| !failures.is_empty())
            })
        };
        let well = |when: &str| {
            let failures = fails();
            ensure!(failures.is_empty(), "{when}: {failures:?}");
            Ok(())
        };
        well("at first")?;
        well("a second time, by the same connection")?;
        for (hook, begins) in HOOKS {
            fs::remove_file(plane.pins.links().join(hook)).with_context(|| format!("detach {hook}"))?;
            let failures = soon()?;
            ensure!(failures.len() == 1 && failures[0].starts_with(begins), "{hook}: {failures:?}");
            attach(&plane)?;
            well(hook)?;
        }
        for (place, program) in [("uplink", "tc_uplink"), ("out", "tc_out")] {
            fs::remove_file(plane.pins.links().join(format!("tcx-{index}-{place}")))?;
            let failures = fails();
            ensure!(failures == [format!("device up0 does not run {program}: it runs none")], "{failures:?}");
            attach(&plane)?;
        }
        let (frontend, _) =
            plane.maps.service4.entries()?.into_iter().find(|(key, _)| key.proto == 6).context("no entry")?;
        ensure!(plane.maps.service4.delete(&ServiceKey { ..frontend })?);
        let failures = fails();
        let of = |text: &str| failures.iter().any(|failure| failure.contains(text));
        ensure!(failures.len() == 2 && of("connect4") && of("tc_uplink"), "{failures:?}");
        ensure!(reconciler.reconcile(&mut plane.maps)? == 1, "the entry is not missed");
        reconciler.sync(&mut plane.maps, Boottime::default)?;
        well("after the entry is there again")
    })?
}
