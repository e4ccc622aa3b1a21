//! What the host needs for pods: forwarding, and the masquerade of what leaves the pod network.

use crate::{Error, exec::SYSTEM_PATH};
use berth_core::ids::BootId;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::io::AsyncWriteExt;

const SYSCTLS: &str = "/proc/sys";
const NFT_TIMEOUT: Duration = Duration::from_secs(10);

/// The values that were there before, in the order in which they are put back: the global switches first, as writing
/// one of them writes every device's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Before {
    boot: BootId,
    values: Vec<(String, String)>,
}

/// Turns forwarding on for both families. What it finds is recorded first, once a boot, in `record`. Blocks.
pub(crate) fn forward(record: &Path, boot: &BootId) -> Result<(), Error> {
    let known = read_record(record)?.is_some_and(|before| before.boot == *boot);
    if !known {
        let before = Before { boot: boot.clone(), values: current()? };
        let dir = record.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
        let bytes = serde_json::to_vec(&before).map_err(|e| Error::file("write", record)(e.into()))?;
        berth_sys::fs::write_atomic(record, &bytes, 0o600).map_err(|source| Error::State { source })?;
    }
    if !fs::exists(sysctl("net/ipv6")).unwrap_or(true) {
        return set("net/ipv4/ip_forward", "1");
    }
    // A router does not listen to router advertisements, unless told that it does so all the same: the node keeps the
    // default route that it has from them.
    for device in devices("net/ipv6/conf")? {
        let key = format!("net/ipv6/conf/{device}/accept_ra");
        if !matches!(device.as_str(), "all" | "default" | "lo") && get(&key)?.as_deref() == Some("1") {
            set(&key, "2")?;
        }
    }
    set("net/ipv4/ip_forward", "1")?;
    set("net/ipv6/conf/all/forwarding", "1")
}

/// Puts back what [`forward`] found, where it was in this boot. Devices that are gone are passed over. Blocks.
pub(crate) fn restore(record: &Path, boot: &BootId) -> Result<(), Error> {
    let Some(before) = read_record(record)? else { return Ok(()) };
    if before.boot == *boot {
        for (key, value) in &before.values {
            if get(key)?.is_some_and(|now| now != *value) {
                set(key, value)?;
            }
        }
    }
    fs::remove_file(record).map_err(Error::file("remove", record))
}

fn read_record(record: &Path) -> Result<Option<Before>, Error> {
    match fs::read(record) {
        // A torn one cannot be told apart from none: it is replaced by rename, so there is no other kind of damage.
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::file("read", record)(e)),
    }
}

/// Everything that turning forwarding on changes, by itself or through the kernel.
fn current() -> Result<Vec<(String, String)>, Error> {
    let mut keys: Vec<String> =
        ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"].map(String::from).into();
    keys.push("net/ipv4/conf/all/accept_redirects".into());
    for (root, leaves) in [
        ("net/ipv4/conf", ["forwarding"].as_slice()),
        ("net/ipv6/conf", ["forwarding", "accept_ra"].as_slice()),
    ] {
        for device in devices(root)?.into_iter().filter(|d| d != "all") {
            keys.extend(leaves.iter().map(|leaf| format!("{root}/{device}/{leaf}")));
        }
    }
    let values: Result<Vec<_>, Error> =
        keys.into_iter().map(|key| Ok(get(&key)?.map(|v| (key, v)))).collect();
    Ok(values?.into_iter().flatten().collect())
}

fn devices(root: &str) -> Result<Vec<String>, Error> {
    let path = sysctl(root);
    let entries = match fs::read_dir(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::file("list", &path))?,
    };
    let names = entries.map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()));
    names.collect::<Result<_, _>>().map_err(Error::file("list", &path))
}

fn sysctl(key: &str) -> PathBuf {
    Path::new(SYSCTLS).join(key)
}

/// `None` where the kernel or the device has no such sysctl.
fn get(key: &str) -> Result<Option<String>, Error> {
    let path = sysctl(key);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::file("read", &path)(e)),
    }
}

fn set(key: &str, value: &str) -> Result<(), Error> {
    let path = sysctl(key);
    match fs::write(&path, value) {
        // A device may go at any time.
        Err(e) if e.kind() == io::ErrorKind::NotFound && key.contains("/conf/") => Ok(()),
        other => other.map_err(Error::file("write", &path)),
    }
}

/// The rules that masquerade what pods send to anywhere but pods and `exempt`. One transaction: there is never a
/// moment without them.
pub(crate) fn rules(table: &str, pods: &[IpNet], exempt: &[IpNet]) -> String {
    let mut text = format!("add table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n");
    text.push_str("  chain postrouting {\n    type nat hook postrouting priority srcnat; policy accept;\n");
    for (family, word, multicast) in [(true, "ip", "224.0.0.0/4"), (false, "ip6", "ff00::/8")] {
        let of = |nets: &[IpNet]| {
            let mut nets: Vec<_> =
                nets.iter().filter(|n| n.addr().is_ipv4() == family).map(IpNet::trunc).collect();
            nets = IpNet::aggregate(&nets);
            nets.iter().map(IpNet::to_string).collect::<Vec<_>>()
        };
        let sources = of(pods);
        if sources.is_empty() {
            continue;
        }
        let exempt: Vec<IpNet> = pods.iter().chain(exempt).copied().chain(multicast.parse()).collect();
        let (sources, exempt) = (sources.join(", "), of(&exempt).join(", "));
        text.push_str(&format!(
            "    {word} saddr {{ {sources} }} {word} daddr != {{ {exempt} }} masquerade fully-random\n"
        ));
    }
    text.push_str("  }\n}\n");
    text
}

/// The commands that remove a table, whether it is there or not.
pub(crate) fn no_rules(table: &str) -> String {
    format!("add table inet {table}\ndelete table inet {table}\n")
}

/// Hands rules to `nft`, which takes all of them or none.
pub(crate) async fn apply(table: &str, rules: &str) -> Result<(), Error> {
    let mut child = tokio::process::Command::new("nft")
        .args(["-f", "-"])
        // Debian's PATH of a user who became root by `su` has no directory of system tools.
        .env("PATH", SYSTEM_PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(Error::Nft)?;
    let mut stdin = child.stdin.take();
    let work = async {
        if let Some(mut stdin) = stdin.take() {
            stdin.write_all(rules.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let failed = |reason: String| Error::NftRules { table: table.to_owned(), reason };
    let output = tokio::time::timeout(NFT_TIMEOUT, work).await;
    let output = output.map_err(|_elapsed| failed(format!("no answer within {NFT_TIMEOUT:?}")))?;
    let output = output.map_err(Error::Nft)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(said.lines().take(3).collect::<Vec<_>>().join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_name_pods_as_source_and_everything_else_as_target() {
        let nets = |list: &[&str]| list.iter().map(|s| s.parse().unwrap()).collect::<Vec<IpNet>>();
        let text =
            rules("berth_1", &nets(&["10.1.0.0/16", "fd00::/64"]), &nets(&["10.0.0.0/8", "192.168.0.0/16"]));
        assert_eq!(
            text,
            "add table inet berth_1\ndelete table inet berth_1\ntable inet berth_1 {\n  chain postrouting {\n    type nat \
             hook postrouting priority srcnat; policy accept;\n    ip saddr { 10.1.0.0/16 } ip daddr != { 10.0.0.0/8, \
             192.168.0.0/16, 224.0.0.0/4 } masquerade fully-random\n    ip6 saddr { fd00::/64 } ip6 daddr != { \
             fd00::/64, ff00::/8 } masquerade fully-random\n  }\n}\n"
        );
        assert!(!rules("t", &nets(&["10.1.0.0/16"]), &[]).contains("ip6"));
    }
}
