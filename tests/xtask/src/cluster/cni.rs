//! How the pods of the kubelet's node are attached: lists of CNI plugins, and the rules that their networks bring.

use super::{
    place::{NODE_PODS, PODS, Place},
    world::World,
};
use crate::setup;
use anyhow::{Context, Result, ensure};
use berth_harness::tools::{self, Build};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::symlink, path::PathBuf};

/// Kinds of pods' networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Cni {
    /// The reference plugin `ptp`: a pair of devices and a route for each pod.
    Ptp,
    /// As Flannel's: the reference plugin `bridge` with hairpin mode, and the rules of flanneld.
    Flannel,
    /// `berth-cni` of this workspace.
    #[value(name = "berth-cni")]
    Berth,
}

/// Reference plugins of the lists.
const PLUGINS: [&str; 5] = ["ptp", "bridge", "host-local", "loopback", "portmap"];

/// Writes the list and the rules. Returns the directory of the plugins.
///
/// # Errors
/// A plugin is missing or is not built, or a rule is refused.
pub(super) fn prepare(world: &World, place: &Place, network: Cni) -> Result<PathBuf> {
    let plugins = place.dir.join("cni-bin");
    fs::create_dir_all(&plugins).with_context(|| format!("cannot make {}", plugins.display()))?;
    let tools = tools::dir()?;
    for plugin in PLUGINS {
        let program = tools.join(plugin);
        ensure!(program.is_file(), "the CNI plugin {plugin} is missing: run `cargo xtask setup`");
        symlink(program, plugins.join(plugin)).with_context(|| format!("cannot link {plugin}"))?;
    }
    if network == Cni::Berth {
        let program = tools::programs(Build::Plain)?.join("berth-cni");
        symlink(program, plugins.join("berth-cni")).context("cannot link berth-cni")?;
    }
    place.write("cni/10-berth.conflist", &conflist(place, network))?;
    if network == Cni::Flannel {
        setup::for_iptables()?;
        let rules = place.write("flannel.rules", &flannel_rules())?;
        world.run(&["iptables-restore", "--noflush", &rules.to_string_lossy()])?;
    }
    Ok(plugins)
}

fn conflist(place: &Place, network: Cni) -> String {
    let data = place.dir.join("cni-data");
    let host_local = |routes: Value| json!({"type": "host-local", "dataDir": data, "ranges": [[{"subnet": NODE_PODS}]], "routes": routes});
    let (version, plugin) = match network {
        Cni::Ptp => ("1.0.0", json!({"type": "ptp", "ipam": host_local(json!([{"dst": "0.0.0.0/0"}]))})),
        // What the program `flannel` gives to `bridge`.
        Cni::Flannel => (
            "1.0.0",
            json!({
                "type": "bridge", "bridge": "cni0", "mtu": 1450, "hairpinMode": true, "isGateway": true,
                "isDefaultGateway": true, "ipMasq": false, "ipam": host_local(json!([{"dst": PODS}])),
            }),
        ),
        Cni::Berth => ("1.1.0", json!({"type": "berth-cni", "subnets": [NODE_PODS], "dataDir": data})),
    };
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"});
    let list = json!({"cniVersion": version, "name": "berth-cluster", "plugins": [plugin, portmap]});
    format!("{list:#}\n")
}

/// The rules that flanneld keeps with `--ip-masq`: pods' packets to elsewhere get the node's address, and pods' packets are
/// forwarded. Its chain leaves alone what kube-proxy has marked.
fn flannel_rules() -> String {
    let masquerade = "-j MASQUERADE --random-fully";
    let nat = [
        "-A POSTROUTING -j FLANNEL-POSTRTG".to_owned(),
        "-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN".to_owned(),
        format!("-A FLANNEL-POSTRTG -s {NODE_PODS} -d {PODS} -j RETURN"),
        format!("-A FLANNEL-POSTRTG -s {PODS} -d {NODE_PODS} -j RETURN"),
        format!("-A FLANNEL-POSTRTG ! -s {PODS} -d {NODE_PODS} -j RETURN"),
        format!("-A FLANNEL-POSTRTG -s {PODS} ! -d 224.0.0.0/4 {masquerade}"),
        format!("-A FLANNEL-POSTRTG ! -s {PODS} -d {PODS} {masquerade}"),
    ];
    let filter = [
        "-A FORWARD -j FLANNEL-FWD".to_owned(),
        format!("-A FLANNEL-FWD -s {PODS} -j ACCEPT"),
        format!("-A FLANNEL-FWD -d {PODS} -j ACCEPT"),
    ];
    format!(
        "*nat\n:FLANNEL-POSTRTG - [0:0]\n{}\nCOMMIT\n*filter\n:FLANNEL-FWD - [0:0]\n{}\nCOMMIT\n",
        nat.join("\n"),
        filter.join("\n")
    )
}
