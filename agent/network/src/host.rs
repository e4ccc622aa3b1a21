//! Preparation of the host for pods: forwarding, reserved ports for Services, and masquerade of pod
//! egress.

use crate::{Error, exec::SYSTEM_PATH};
use berth_core::{
    ids::BootId,
    ports::{POD_MASQUERADE_PORTS, RESERVED_PORTS},
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::io::AsyncWriteExt;

const SYSCTLS: &str = "/proc/sys";
/// Ports that the kernel assigns to no socket by itself: numbers and ranges, for IPv6 too.
const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
const NFT_TIMEOUT: Duration = Duration::from_secs(10);

/// The previous values of sysctls, in the order in which they are restored: the global switches
/// first, because writing one of them writes every device's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedSysctls {
    boot: BootId,
    values: Vec<(String, String)>,
}

/// Turns on forwarding for both families and reserves the ports of Services. The previous values
/// are recorded in `record` first, once a boot. Blocks.
pub(crate) fn enable_forwarding(record: &Path, boot: &BootId) -> Result<(), Error> {
    let known = read_record(record)?.filter(|before| before.boot == *boot);
    // A record of an agent that reserved no ports lacks that key.
    let lacks_ports = |before: &SavedSysctls| before.values.iter().all(|(key, _)| key != RESERVED);
    if known.as_ref().is_none_or(lacks_ports) {
        let reserved = get(RESERVED)?.map(|value| (RESERVED.to_owned(), value));
        let values = match known {
            Some(before) => before.values,
            None => current()?,
        };
        let before =
            SavedSysctls { boot: boot.clone(), values: values.into_iter().chain(reserved).collect() };
        let dir = record.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
        let bytes = serde_json::to_vec(&before).map_err(|e| Error::file("write", record)(e.into()))?;
        berth_sys::fs::write_atomic(record, &bytes, 0o600).map_err(|source| Error::State { source })?;
    }
    if let Some(now) = get(RESERVED)? {
        let wanted = reserve(&now, &RESERVED_PORTS);
        if wanted != now {
            set(RESERVED, &wanted)?;
        }
    }
    if !fs::exists(sysctl("net/ipv6")).unwrap_or(true) {
        return set("net/ipv4/ip_forward", "1");
    }
    // A router ignores router advertisements unless `accept_ra` is 2. The node must keep the
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

/// Restores the values that [`enable_forwarding`] recorded in this boot. Missing devices are ignored. Blocks.
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

/// Adds a range to a list of ports in the kernel's format.
fn reserve(now: &str, range: &RangeInclusive<u16>) -> String {
    let number = |text: &str| text.trim().parse::<u16>().ok();
    let read = |part: &str| match part.split_once('-') {
        Some((first, last)) => Some((number(first)?, number(last)?)),
        None => Some((number(part)?, number(part)?)),
    };
    let mut all: Vec<(u16, u16)> = now.split(',').filter_map(read).collect();
    all.push((*range.start(), *range.end()));
    all.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::new();
    for (first, last) in all {
        match joined.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => joined.push((first, last)),
        }
    }
    let text = |(first, last): &(u16, u16)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    joined.iter().map(text).collect::<Vec<_>>().join(",")
}

fn read_record(record: &Path) -> Result<Option<SavedSysctls>, Error> {
    match fs::read(record) {
        // The file is replaced by rename, so an unparsable file was never complete and counts as
        // missing.
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::file("read", record)(e)),
    }
}

/// The values of all sysctls that change with forwarding, directly or by the kernel.
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

/// Reads a sysctl. None if the kernel or the device does not have it.
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
        // A device may disappear at any time.
        Err(e) if e.kind() == io::ErrorKind::NotFound && key.contains("/conf/") => Ok(()),
        other => other.map_err(Error::file("write", &path)),
    }
}

/// nftables rules that masquerade traffic of pods to all destinations but pods and `exempt`, with
/// source ports that are not used by Services. The rules are one transaction, so there is never a
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
            "    {word} saddr {{ {sources} }} {word} daddr != {{ {exempt} }} goto pods\n"
        ));
    }
    let (first, last) = (POD_MASQUERADE_PORTS.start(), POD_MASQUERADE_PORTS.end());
    text.push_str(&format!(
        "  }}\n  chain pods {{\n    meta l4proto {{ tcp, udp, sctp }} masquerade to :{first}-{last} fully-random\n    \
         masquerade fully-random\n  }}\n}}\n"
    ));
    text
}

/// nftables commands that remove a table, whether it exists or not.
pub(crate) fn no_rules(table: &str) -> String {
    format!("add table inet {table}\ndelete table inet {table}\n")
}

/// Applies rules by `nft`, all or none.
pub(crate) async fn apply(table: &str, rules: &str) -> Result<(), Error> {
    let mut child = tokio::process::Command::new("nft")
        .args(["-f", "-"])
        // On Debian, the PATH of a user who became root by `su` lacks the directories of system
        // tools.
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
             192.168.0.0/16, 224.0.0.0/4 } goto pods\n    ip6 saddr { fd00::/64 } ip6 daddr != { fd00::/64, \
             ff00::/8 } goto pods\n  }\n  chain pods {\n    meta l4proto { tcp, udp, sctp } masquerade to \
             :32768-65535 fully-random\n    masquerade fully-random\n  }\n}\n"
        );
        assert!(!rules("t", &nets(&["10.1.0.0/16"]), &[]).contains("ip6"));
    }

    #[test]
    fn reserved_ports_join_those_that_are_reserved_already() {
        for (now, wanted) in [
            ("", "1024-32767"),
            ("22,80", "22,80,1024-32767"),
            ("8080,9000-9100,50000", "1024-32767,50000"),
            ("1000-1023,32768", "1000-32768"),
            ("1-65535", "1-65535"),
            ("1024-32767", "1024-32767"),
        ] {
            assert_eq!(reserve(now, &RESERVED_PORTS), wanted, "{now}");
        }
    }
}
