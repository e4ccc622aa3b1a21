//! What drivers answer, read from their messages. An answer that does not fit is an error of its call, with the reason
//! that these functions return.

use crate::VolumeId;
use berth_csi_proto::csi;
use std::collections::BTreeMap;

/// GetPluginInfo: the driver as it names itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginInfo {
    /// Its name. A driver that is registered by one name may give another here.
    pub name: String,
    /// Its own version, for people.
    pub vendor_version: String,
}

/// NodeGetInfo: the node as the driver knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// The node's id, by which the driver's controller attaches volumes. Never empty.
    pub node_id: String,
    /// The most volumes of this driver on the node; `None` if the driver names no limit.
    pub max_volumes: Option<u64>,
    /// Where the node is, as labels: volumes are made that are reachable from there.
    pub topology: BTreeMap<String, String>,
}

/// NodeGetCapabilities: what the driver's node service can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeCapabilities {
    /// A volume is staged before it is published.
    pub stage_unstage: bool,
    /// NodeGetVolumeStats is answered.
    pub get_volume_stats: bool,
    /// NodeExpandVolume is to be called.
    pub expand: bool,
    /// The statistics have the volume's condition.
    pub volume_condition: bool,
    /// The access modes SINGLE_NODE_SINGLE_WRITER and SINGLE_NODE_MULTI_WRITER are known.
    pub single_node_multi_writer: bool,
    /// The driver makes the volume writable for a group by itself.
    pub volume_mount_group: bool,
}

/// NodeGetVolumeStats: how full a volume is, and how it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeStats {
    /// The volume's capacity in bytes, if the driver tells it.
    pub bytes: Option<Usage>,
    /// The volume's capacity in inodes, if the driver tells it.
    pub inodes: Option<Usage>,
    /// The volume's condition, if the driver knows it.
    pub condition: Option<Condition>,
}

/// How much of a volume is used. A number that the driver does not know is 0 in its answer, and here too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Free for pods.
    pub available: u64,
    /// The whole.
    pub total: u64,
    /// How much of the volume is in use, in bytes or inodes.
    pub used: u64,
}

/// The condition of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Whether something is wrong.
    pub abnormal: bool,
    /// What, for people.
    pub message: String,
}

/// CreateVolume: a volume that the driver has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// The volume's id.
    pub volume: VolumeId,
    /// Its size in bytes; `None` if the driver does not say.
    pub bytes: Option<u64>,
    /// Its attributes (`volumeAttributes`).
    pub context: BTreeMap<String, String>,
}

/// Reads CreateVolume's answer.
pub(crate) fn created(answer: csi::CreateVolumeResponse) -> Result<Created, String> {
    let made = answer.volume.ok_or("there is no volume")?;
    let volume = VolumeId::new(&made.volume_id).map_err(|e| e.to_string())?;
    let bytes = count(made.capacity_bytes, "the capacity")?;
    Ok(Created {
        volume,
        bytes: Some(bytes).filter(|b| *b > 0),
        context: made.volume_context.into_iter().collect(),
    })
}

/// A count of an answer. Negative ones are nonsense.
fn count(value: i64, what: &str) -> Result<u64, String> {
    u64::try_from(value).map_err(|_negative| format!("{what} is {value}"))
}

/// Reads NodeGetInfo's answer.
pub(crate) fn node_info(answer: csi::NodeGetInfoResponse) -> Result<NodeInfo, String> {
    if answer.node_id.is_empty() {
        return Err("the node's id is empty".into());
    }
    // The kubelet takes a negative limit for none as well.
    let max_volumes = u64::try_from(answer.max_volumes_per_node).ok().filter(|max| *max > 0);
    let topology = answer.accessible_topology.map(|t| t.segments.into_iter().collect());
    Ok(NodeInfo { node_id: answer.node_id, max_volumes, topology: topology.unwrap_or_default() })
}

/// Reads NodeGetCapabilities' answer. Unknown capabilities are those of a later specification.
pub(crate) fn capabilities(answer: csi::NodeGetCapabilitiesResponse) -> NodeCapabilities {
    use csi::node_service_capability::{Type, rpc::Type as Rpc};
    let mut known = NodeCapabilities::default();
    for capability in answer.capabilities {
        let Some(Type::Rpc(rpc)) = capability.r#type else { continue };
        match Rpc::try_from(rpc.r#type) {
            Ok(Rpc::StageUnstageVolume) => known.stage_unstage = true,
            Ok(Rpc::GetVolumeStats) => known.get_volume_stats = true,
            Ok(Rpc::ExpandVolume) => known.expand = true,
            Ok(Rpc::VolumeCondition) => known.volume_condition = true,
            Ok(Rpc::SingleNodeMultiWriter) => known.single_node_multi_writer = true,
            Ok(Rpc::VolumeMountGroup) => known.volume_mount_group = true,
            Ok(Rpc::Unknown) | Err(_) => {}
        }
    }
    known
}

/// Reads NodeGetVolumeStats' answer.
pub(crate) fn volume_stats(answer: csi::NodeGetVolumeStatsResponse) -> Result<VolumeStats, String> {
    use csi::volume_usage::Unit;
    let mut stats = VolumeStats::default();
    for usage in answer.usage {
        let place = match Unit::try_from(usage.unit) {
            Ok(Unit::Bytes) => &mut stats.bytes,
            Ok(Unit::Inodes) => &mut stats.inodes,
            // A unit of a later specification.
            Ok(Unit::Unknown) | Err(_) => continue,
        };
        *place = Some(Usage {
            available: count(usage.available, "the available amount")?,
            total: count(usage.total, "the total amount")?,
            used: count(usage.used, "the used amount")?,
        });
    }
    stats.condition = answer.volume_condition.map(|c| Condition { abnormal: c.abnormal, message: c.message });
    if stats == VolumeStats::default() {
        return Err("there is neither usage nor condition".into());
    }
    Ok(stats)
}

/// Reads NodeExpandVolume's answer: the size in bytes, `None` if the driver does not say.
pub(crate) fn expanded(answer: &csi::NodeExpandVolumeResponse) -> Result<Option<u64>, String> {
    count(answer.capacity_bytes, "the capacity").map(|bytes| (bytes > 0).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use csi::{NodeServiceCapability, VolumeUsage, node_service_capability as cap};

    #[test]
    fn an_unknown_capability_is_ignored() {
        let rpc = |n| NodeServiceCapability { r#type: Some(cap::Type::Rpc(cap::Rpc { r#type: n })) };
        let answer = csi::NodeGetCapabilitiesResponse {
            capabilities: vec![
                rpc(1),
                rpc(0),
                rpc(99),
                rpc(-1),
                NodeServiceCapability { r#type: None },
                rpc(6),
            ],
        };
        let expected =
            NodeCapabilities { stage_unstage: true, volume_mount_group: true, ..NodeCapabilities::default() };
        assert_eq!(capabilities(answer), expected);
    }

    #[test]
    fn a_node_has_an_id_and_a_limit_is_a_number_of_volumes() {
        let answer = |node_id: &str, max| csi::NodeGetInfoResponse {
            node_id: node_id.into(),
            max_volumes_per_node: max,
            accessible_topology: None,
        };
        assert_eq!(node_info(answer("", 1)).unwrap_err(), "the node's id is empty");
        assert_eq!(node_info(answer("n", 0)).unwrap().max_volumes, None);
        assert_eq!(node_info(answer("n", -5)).unwrap().max_volumes, None);
        assert_eq!(node_info(answer("n", 12)).unwrap().max_volumes, Some(12));
    }

    #[test]
    fn statistics_that_say_nothing_or_nonsense_are_refused() {
        let usage = |unit, available| VolumeUsage { available, total: 9, used: 4, unit };
        let answer = |usage| csi::NodeGetVolumeStatsResponse { usage, volume_condition: None };
        assert!(volume_stats(answer(vec![])).is_err());
        assert!(volume_stats(answer(vec![usage(0, 5), usage(7, 5)])).is_err());
        assert_eq!(volume_stats(answer(vec![usage(1, -5)])).unwrap_err(), "the available amount is -5");
        let stats = volume_stats(answer(vec![usage(2, 5), usage(1, 6)])).unwrap();
        assert_eq!(stats.inodes, Some(Usage { available: 5, total: 9, used: 4 }));
        assert_eq!(stats.bytes, Some(Usage { available: 6, total: 9, used: 4 }));
        assert_eq!(stats.condition, None);
    }

    #[test]
    fn an_unknown_size_is_none() {
        let answer = |capacity_bytes| csi::NodeExpandVolumeResponse { capacity_bytes };
        assert_eq!(expanded(&answer(0)), Ok(None));
        assert_eq!(expanded(&answer(7)), Ok(Some(7)));
        assert_eq!(expanded(&answer(-7)).unwrap_err(), "the capacity is -7");
    }
}
