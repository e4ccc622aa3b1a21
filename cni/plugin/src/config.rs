//! The network configuration, parsed once.

use crate::{error::Error, version::VERSIONS};
use berth_cni_ipam::{Key, Range, RangeSet};
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

/// Directory of the journals unless `dataDir` is set.
const DATA_DIR: &str = "/var/lib/berth/cni";

/// The gateway of every pod. No device has this address; a permanent neighbour entry of the pod
/// maps it to the host end.
pub(crate) const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The gateway of every pod for IPv6.
pub(crate) const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The part of a configuration that every command needs. DEL needs only this, so that it works even
/// if the rest has become invalid.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    /// `cniVersion`.
    pub(crate) version: &'static str,
    /// `name`.
    pub(crate) name: String,
    /// Directory of the network's journal: `dataDir` and the name.
    pub(crate) journal: PathBuf,
    /// `quarantineSeconds`, default 60.
    pub(crate) quarantine: Duration,
}

/// The part of a configuration that ADD, CHECK and STATUS need in addition.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// `ranges` or `subnets`: a pod gets one address of each set.
    pub(crate) sets: Vec<RangeSet>,
    /// `mtu`. If it is missing or 0, the MTU of the device of the default route is used.
    pub(crate) mtu: Option<u32>,
    /// `routes`, in addition to the default routes.
    pub(crate) routes: Vec<ExtraRoute>,
    /// `dns`, passed through to the result.
    pub(crate) dns: Value,
}

/// An entry of `routes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExtraRoute {
    /// `dst`.
    pub(crate) destination: IpNet,
    /// `gw`, by default the pod's gateway.
    pub(crate) gateway: IpAddr,
}

/// A configuration as a JSON object.
#[derive(Debug, Clone)]
pub(crate) struct Config(Map<String, Value>);

impl Config {
    pub(crate) fn parse(input: &[u8]) -> Result<Config, Error> {
        serde_json::from_slice(input).map(Config).map_err(Error::Decode)
    }

    pub(crate) fn version(&self) -> Result<&'static str, Error> {
        let asked = self.optional::<String>("cniVersion")?.unwrap_or_default();
        VERSIONS.into_iter().find(|v| *v == asked).ok_or(Error::Version(asked))
    }

    pub(crate) fn network(&self) -> Result<Network, Error> {
        let version = self.version()?;
        let name = self.optional::<String>("name")?.ok_or_else(|| wrong("name", "is missing"))?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if name.len() > 128
            || !name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            || !name.bytes().all(allowed)
        {
            return Err(wrong(
                "name",
                "must be 1 to 128 letters, digits, '_', '.' and '-', the first a letter or digit",
            ));
        }
        let dir = self.optional::<PathBuf>("dataDir")?.unwrap_or_else(|| DATA_DIR.into());
        if !dir.is_absolute() {
            return Err(wrong("dataDir", "must be an absolute path"));
        }
        let quarantine = self.optional::<u32>("quarantineSeconds")?.unwrap_or(60);
        let quarantine = Duration::from_secs(quarantine.into());
        Ok(Network { version, journal: dir.join(&name), name, quarantine })
    }

    pub(crate) fn plan(&self) -> Result<Plan, Error> {
        let sets = match (self.optional::<Value>("ranges")?, self.optional::<Vec<String>>("subnets")?) {
            (Some(_), Some(_)) => return Err(wrong("subnets", "cannot stand beside ranges")),
            (Some(ranges), None) => from_ranges(&ranges)?,
            (None, Some(subnets)) => from_subnets(&subnets)?,
            (None, None) => return Err(wrong("subnets", "is missing, and so is ranges")),
        };
        RangeSet::check_disjoint(&sets).map_err(|e| wrong("ranges", e.to_string()))?;
        let mtu = self.optional::<u32>("mtu")?.filter(|mtu| *mtu != 0);
        let lowest = if sets.iter().any(|s| !is_v4(s)) { 1280 } else { 68 };
        if mtu.is_some_and(|mtu| !(lowest..=65535).contains(&mtu)) {
            return Err(wrong("mtu", format!("must be {lowest} to 65535")));
        }
        let mut routes = Vec::new();
        for (i, route) in
            self.optional::<Vec<Map<String, Value>>>("routes")?.unwrap_or_default().iter().enumerate()
        {
            let at = |key: &str| format!("routes[{i}].{key}");
            let destination = route.get("dst").ok_or_else(|| wrong(at("dst"), "is missing"))?;
            let destination = parse::<IpNet>(&at("dst"), destination)?.trunc();
            let gateway = match route.get("gw") {
                Some(gateway) => parse::<IpAddr>(&at("gw"), gateway)?,
                None if destination.addr().is_ipv4() => GATEWAY_V4.into(),
                None => GATEWAY_V6.into(),
            };
            if gateway.is_ipv4() != destination.addr().is_ipv4() {
                return Err(wrong(at("gw"), format!("is not of the family of {destination}")));
            }
            if !sets.iter().any(|s| is_v4(s) == gateway.is_ipv4()) {
                return Err(wrong(
                    at("dst"),
                    format!("{destination} is of a family that pods have no address of"),
                ));
            }
            // The default routes are added in any case.
            if destination.prefix_len() > 0 {
                routes.push(ExtraRoute { destination, gateway });
            }
        }
        Ok(Plan {
            sets,
            mtu,
            routes,
            dns: self.optional("dns")?.unwrap_or_else(|| Value::Object(Map::new())),
        })
    }

    /// `prevResult`.
    pub(crate) fn previous(&self) -> Option<&Value> {
        self.0.get("prevResult").filter(|v| !v.is_null())
    }

    /// `cni.dev/valid-attachments`.
    pub(crate) fn valid_attachments(&self) -> Result<BTreeSet<Key>, Error> {
        let field = "cni.dev/valid-attachments";
        // A missing list is not an empty one, which would remove every pod's network.
        let list =
            self.optional::<Vec<Map<String, Value>>>(field)?.ok_or_else(|| wrong(field, "is missing"))?;
        let key = |(i, entry): (usize, &Map<String, Value>)| {
            let part = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
            Key::new(part("containerID"), part("ifname"))
                .map_err(|e| wrong(format!("{field}[{i}]"), e.to_string()))
        };
        list.iter().enumerate().map(key).collect()
    }

    fn optional<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>, Error> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => parse_value(field, value).map(Some),
        }
    }
}

/// The version of a configuration that may be invalid, for the error message.
pub(crate) fn version_of(input: &[u8]) -> String {
    let asked = Config::parse(input).ok().and_then(|c| c.optional::<String>("cniVersion").ok()).flatten();
    asked.unwrap_or_else(|| "1.1.0".to_owned())
}

fn is_v4(set: &RangeSet) -> bool {
    set.ranges().iter().all(|r| r.subnet().addr().is_ipv4())
}

/// `"ranges": [[{"subnet", "rangeStart", "rangeEnd", "gateway"}]]`: one set a list.
fn from_ranges(value: &Value) -> Result<Vec<RangeSet>, Error> {
    let sets: Vec<Vec<Map<String, Value>>> = parse_value("ranges", value)?;
    if sets.is_empty() {
        return Err(wrong("ranges", "is empty"));
    }
    sets.iter()
        .enumerate()
        .map(|(i, set)| {
            let range = |(j, range): (usize, &Map<String, Value>)| {
                let at = |key: &str| format!("ranges[{i}][{j}].{key}");
                let address = |key: &str| range.get(key).map(|v| parse::<IpAddr>(&at(key), v)).transpose();
                let subnet = range.get("subnet").ok_or_else(|| wrong(at("subnet"), "is missing"))?;
                let (start, end) = (address("rangeStart")?, address("rangeEnd")?);
                let range = Range::new(parse(&at("subnet"), subnet)?, start, end, address("gateway")?);
                range.map_err(|e| wrong(format!("ranges[{i}][{j}]"), e.to_string()))
            };
            let ranges = set.iter().enumerate().map(range).collect::<Result<_, _>>()?;
            RangeSet::new(ranges).map_err(|e| wrong(format!("ranges[{i}]"), e.to_string()))
        })
        .collect()
}

/// `"subnets": ["10.88.0.0/16", "fd00::/64"]`: one set a family, in the order of their first
/// subnets.
fn from_subnets(subnets: &[String]) -> Result<Vec<RangeSet>, Error> {
    let mut families: Vec<Vec<Range>> = Vec::new();
    for (i, text) in subnets.iter().enumerate() {
        let at = || format!("subnets[{i}]");
        let subnet: IpNet = text.parse().map_err(|e| wrong(at(), format!("{text:?}: {e}")))?;
        let range = Range::new(subnet, None, None, None).map_err(|e| wrong(at(), e.to_string()))?;
        let same =
            |f: &&mut Vec<Range>| f.iter().any(|r| r.subnet().addr().is_ipv4() == subnet.addr().is_ipv4());
        match families.iter_mut().find(same) {
            Some(family) => family.push(range),
            None => families.push(vec![range]),
        }
    }
    if families.is_empty() {
        return Err(wrong("subnets", "is empty"));
    }
    families.into_iter().map(|f| RangeSet::new(f).map_err(|e| wrong("subnets", e.to_string()))).collect()
}

fn wrong(field: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::Config { field: field.into(), reason: reason.into() }
}

fn parse_value<T: DeserializeOwned>(field: &str, value: &Value) -> Result<T, Error> {
    T::deserialize(value).map_err(|e| wrong(field, format!("is wrong: {e}")))
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(field: &str, value: &Value) -> Result<T, Error> {
    let text = value.as_str().ok_or_else(|| wrong(field, "is not a string"))?;
    text.parse().map_err(|e| wrong(field, format!("{text:?}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(mut extra: Value) -> Config {
        let base = json!({"cniVersion": "1.1.0", "name": "pods", "type": "berth-cni"});
        for (key, value) in base.as_object().unwrap() {
            extra.as_object_mut().unwrap().entry(key.clone()).or_insert(value.clone());
        }
        Config::parse(extra.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn subnets_become_one_set_a_family() {
        let plan = config(json!({"subnets": ["10.1.0.0/24", "fd00::/64", "10.2.0.0/24"]})).plan().unwrap();
        assert_eq!(plan.sets.len(), 2);
        assert_eq!(plan.sets[0].ranges().len(), 2);
        assert_eq!(plan.sets[1].ranges()[0].subnet().to_string(), "fd00::/64");
    }

    #[test]
    fn every_wrong_key_is_named() {
        for (extra, message) in [
            (json!({}), "configuration key subnets is missing, and so is ranges"),
            (json!({"subnets": []}), "configuration key subnets is empty"),
            (
                json!({"subnets": ["10.0.0.0/33"]}),
                "configuration key subnets[0] \"10.0.0.0/33\": invalid IP address syntax",
            ),
            (
                json!({"subnets": "10.0.0.0/24"}),
                "configuration key subnets is wrong: invalid type: string \"10.0.0.0/24\", expected a sequence",
            ),
            (json!({"ranges": [[{"subnet": 5}]]}), "configuration key ranges[0][0].subnet is not a string"),
            (
                json!({"ranges": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.1.0.0"}]]}),
                "configuration key ranges[0][0] rangeStart 10.1.0.0 is not in subnet 10.0.0.0/24",
            ),
            (json!({"ranges": [[]]}), "configuration key ranges[0] a set of ranges is empty"),
            (json!({"subnets": ["10.0.0.0/24"], "mtu": 20}), "configuration key mtu must be 68 to 65535"),
            (json!({"subnets": ["fd00::/64"], "mtu": 1000}), "configuration key mtu must be 1280 to 65535"),
            (
                json!({"subnets": ["10.0.0.0/24"], "routes": [{"dst": "fd00::/8"}]}),
                "configuration key routes[0].dst fd00::/8 is of a family that pods have no address of",
            ),
            (
                json!({"subnets": ["10.0.0.0/24"], "routes": [{}]}),
                "configuration key routes[0].dst is missing",
            ),
        ] {
            let error = config(extra).plan().unwrap_err();
            assert_eq!((error.to_string().as_str(), error.code()), (message, 7));
        }
        for (extra, message) in [
            (
                json!({"name": "../x"}),
                "configuration key name must be 1 to 128 letters, digits, '_', '.' and '-', the first a letter or digit",
            ),
            (json!({"dataDir": "x"}), "configuration key dataDir must be an absolute path"),
        ] {
            assert_eq!(config(extra).network().unwrap_err().to_string(), message);
        }
        let error = config(json!({"cniVersion": "0.2.0"})).network().unwrap_err();
        assert_eq!(error.code(), 1);
        let error = config(json!({})).valid_attachments().unwrap_err();
        assert_eq!(error.to_string(), "configuration key cni.dev/valid-attachments is missing");
    }
}
