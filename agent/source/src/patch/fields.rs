//! The fields of the statuses that the node writes, and how the API server merges each of them (`patchStrategy` and
//! `patchMergeKey` in `k8s.io/api/core/v1/types.go`). A field that is not here belongs to another writer.

/// How the API server merges a field.
#[derive(Debug, Clone, Copy)]
pub(super) enum Field {
    /// As a whole: a scalar, or a list without a merge key.
    Whole,
    /// A map or an object whose members the node owns all.
    Map,
    /// An object of which the node owns these members.
    Members(Fields),
    /// A list that would be merged by a key that is not unique; it is sent whole, with the directive to replace.
    Replaced,
    /// A list whose elements are merged by the member `key`.
    List {
        /// The member that identifies an element.
        key: &'static str,
        /// The members of an element.
        members: Fields,
        /// Whether another order alone is a change.
        ordered: bool,
    },
}

/// Fields by name.
pub(super) type Fields = &'static [(&'static str, Field)];

const POD_CONDITION: Fields = &[
    ("status", Field::Whole),
    ("observedGeneration", Field::Whole),
    ("lastProbeTime", Field::Whole),
    ("lastTransitionTime", Field::Whole),
    ("reason", Field::Whole),
    ("message", Field::Whole),
];

/// The order of the addresses matters: the first is the primary one.
const ADDRESSES: Field = Field::List { key: "ip", members: &[], ordered: true };

/// `PodStatus`. Not the node's: `nominatedNodeName`, `resize`, `resourceClaimStatuses`, `extendedResourceClaimStatus`
/// and `nodeAllocatableResourceClaimStatuses`.
pub(super) const POD_STATUS: Fields = &[
    ("observedGeneration", Field::Whole),
    ("phase", Field::Whole),
    ("conditions", Field::List { key: "type", members: POD_CONDITION, ordered: false }),
    ("message", Field::Whole),
    ("reason", Field::Whole),
    ("hostIP", Field::Whole),
    ("hostIPs", ADDRESSES),
    ("podIP", Field::Whole),
    ("podIPs", ADDRESSES),
    ("startTime", Field::Whole),
    ("initContainerStatuses", Field::Whole),
    ("containerStatuses", Field::Whole),
    ("qosClass", Field::Whole),
    ("ephemeralContainerStatuses", Field::Whole),
    ("allocatedResources", Field::Map),
    ("resources", Field::Map),
];

const NODE_CONDITION: Fields = &[
    ("status", Field::Whole),
    ("lastHeartbeatTime", Field::Whole),
    ("lastTransitionTime", Field::Whole),
    ("reason", Field::Whole),
    ("message", Field::Whole),
];

const NODE_INFO: Fields = &[
    ("machineID", Field::Whole),
    ("systemUUID", Field::Whole),
    ("bootID", Field::Whole),
    ("kernelVersion", Field::Whole),
    ("osImage", Field::Whole),
    ("containerRuntimeVersion", Field::Whole),
    ("kubeletVersion", Field::Whole),
    ("kubeProxyVersion", Field::Whole),
    ("operatingSystem", Field::Whole),
    ("architecture", Field::Whole),
    ("swap", Field::Whole),
];

/// `NodeStatus`. Not the node's: `phase`, `volumesAttached` and `config`.
pub(super) const NODE_STATUS: Fields = &[
    ("capacity", Field::Map),
    ("allocatable", Field::Map),
    ("conditions", Field::List { key: "type", members: NODE_CONDITION, ordered: false }),
    // The merge key is `type`, and a node of two families has two addresses of one type.
    ("addresses", Field::Replaced),
    ("daemonEndpoints", Field::Map),
    ("nodeInfo", Field::Members(NODE_INFO)),
    ("images", Field::Whole),
    ("volumesInUse", Field::Whole),
    ("runtimeHandlers", Field::Whole),
    ("features", Field::Map),
    ("declaredFeatures", Field::Whole),
];
