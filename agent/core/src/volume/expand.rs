//! The expansion of a volume on the node, after the volume itself has grown: the file system follows, and the claim's
//! status tells it (KEP-1790). The rules are the kubelet's (`pkg/volume/util/operationexecutor/node_expander.go`). Pure.

use crate::quantity::Quantity;

/// `status.allocatedResourceStatuses` of a claim, for its storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResizeStatus {
    /// `NodeResizePending` or `NodeResizeInProgress`: the node's turn.
    OfNode,
    /// Any other: the controller's turn, or none's before the claim asks for another size.
    Other,
}

/// What a claim says of its size, as the API server has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClaimSize {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `spec.resources.requests.storage`.
    pub requested: Option<Quantity>,
    /// `status.capacity.storage`.
    pub capacity: Option<Quantity>,
    /// `status.allocatedResources.storage`.
    pub allocated: Option<Quantity>,
    /// `status.allocatedResourceStatuses.storage`.
    pub status: Option<ResizeStatus>,
    /// Whether `spec.accessModes` has ReadWriteMany: every node expands the volume for itself.
    pub many_nodes: bool,
    /// Whether the controller says that nodes have nothing to do (annotation
    /// `volume.kubernetes.io/node-expansion-not-required`).
    pub not_required: bool,
    /// The types of the conditions about a resize.
    pub conditions: Vec<String>,
}

/// A change of the claim's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SizeChange {
    /// The node begins.
    InProgress,
    /// The volume has this size.
    Finished(Quantity),
    /// The driver refuses for now, with its text.
    Failed(String),
    /// The driver will never do it, with its text: the controller takes the next size that the claim asks for.
    Infeasible(String),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expansion {
    /// Nothing: the volume has this size.
    Done(Quantity),
    /// Others come first.
    Wait,
    /// The driver is called.
    Call(ExpansionCall),
}

/// A call of the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpansionCall {
    /// The wanted size.
    pub size: Quantity,
    /// Whether the claim's status follows: not where another node has told the size already.
    pub tells: bool,
    /// Whether the controller knows of failures (`RecoverVolumeExpansionFailure`).
    pub recovers: bool,
}

/// What is to be done for a volume that has grown to `volume`, the capacity of its PersistentVolume.
pub fn expansion(claim: &ClaimSize, volume: &Quantity) -> Expansion {
    let bytes = |size: &Option<Quantity>| size.as_ref().map_or(0, Quantity::units);
    if claim.status.is_none() && claim.allocated.is_none() {
        // A controller from before KEP-1790.
        let tells = bytes(&claim.capacity) < volume.units();
        return Expansion::Call(ExpansionCall { size: volume.clone(), tells, recovers: false });
    }
    let size = claim.allocated.as_ref().unwrap_or(volume).clone();
    let call = |tells| Expansion::Call(ExpansionCall { size: size.clone(), tells, recovers: true });
    match claim.status {
        Some(ResizeStatus::OfNode) => call(true),
        Some(ResizeStatus::Other) => Expansion::Wait,
        None if bytes(&claim.capacity) < size.units() => Expansion::Wait,
        // The claim has its size by another node, or the controller did all.
        None if claim.many_nodes && !claim.not_required => call(false),
        None => Expansion::Done(size),
    }
}

/// Why a driver did not expand a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpandFailure {
    /// It cannot: it has no such call.
    NotSupported,
    /// Not while a pod has the volume (FAILED_PRECONDITION).
    InUse,
    /// Never to this size (INVALID_ARGUMENT, OUT_OF_RANGE, NOT_FOUND).
    Infeasible,
    /// It failed, and is over.
    Final,
    /// It may have done it, or may still be at it.
    Uncertain,
}

/// What follows a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    /// The volume counts as expanded.
    Done,
    /// The node leaves it at that while the volume stays mounted.
    GiveUp,
    /// Another try.
    Again,
}

/// A change of the claim's status that has a text.
pub type ChangeWithText = fn(String) -> SizeChange;

/// What follows a failure of a call, and the change of the claim's status, whose text the caller gives. `failed_before`:
/// an earlier call for the volume has failed finally.
pub fn after_failure(
    claim: &ClaimSize,
    call: &ExpansionCall,
    failure: ExpandFailure,
    failed_before: bool,
) -> (AfterFailure, Option<ChangeWithText>) {
    if failure == ExpandFailure::NotSupported && (!call.recovers || !call.tells) {
        return (AfterFailure::Done, None);
    }
    let other_size = claim.requested.as_ref().is_some_and(|asked| asked.units() != call.size.units());
    let change: Option<ChangeWithText> = match failure {
        _ if !call.recovers => None,
        ExpandFailure::Uncertain => None,
        ExpandFailure::Infeasible => Some(SizeChange::Infeasible),
        // The controller continues with the size that the claim asks for by now.
        _ if other_size && failed_before => Some(SizeChange::Infeasible),
        _ => Some(SizeChange::Failed),
    };
    let next = if failure == ExpandFailure::InUse { AfterFailure::GiveUp } else { AfterFailure::Again };
    (next, change)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> Option<Quantity> {
        Some(text.parse().unwrap())
    }

    fn claim(capacity: &str, allocated: Option<&str>, status: Option<ResizeStatus>) -> ClaimSize {
        ClaimSize {
            requested: size("2Gi"),
            capacity: size(capacity),
            allocated: allocated.and_then(size),
            status,
            ..ClaimSize::default()
        }
    }

    fn decide(claim: &ClaimSize) -> Expansion {
        expansion(claim, &"2Gi".parse().unwrap())
    }

    #[test]
    fn the_driver_is_called_when_it_is_the_nodes_turn() {
        let call = |tells, recovers| {
            Expansion::Call(ExpansionCall { size: "2Gi".parse().unwrap(), tells, recovers })
        };
        let of_node = Some(ResizeStatus::OfNode);
        assert_eq!(decide(&claim("1Gi", Some("2Gi"), of_node)), call(true, true));
        assert_eq!(decide(&claim("1Gi", Some("2Gi"), Some(ResizeStatus::Other))), Expansion::Wait);
        assert_eq!(decide(&claim("1Gi", Some("2Gi"), None)), Expansion::Wait, "the controller is not done");
        assert_eq!(decide(&claim("1Gi", None, None)), call(true, false), "an old controller");
        assert_eq!(decide(&claim("2Gi", None, None)), call(false, false), "told by another node");
        let done = Expansion::Done("2Gi".parse().unwrap());
        assert_eq!(decide(&claim("2Gi", Some("2Gi"), None)), done);
        let many = ClaimSize { many_nodes: true, ..claim("2Gi", Some("2Gi"), None) };
        assert_eq!(decide(&many), call(false, true), "this node's mount has not grown yet");
        assert_eq!(decide(&ClaimSize { not_required: true, ..many }), done);
        let smaller = claim("1Gi", Some("1536Mi"), of_node);
        let Expansion::Call(call) = decide(&smaller) else { panic!() };
        assert_eq!(call.size.units(), 1536 << 20, "the allocated size counts");
    }

    #[test]
    fn only_what_is_infeasible_or_overtaken_goes_back_to_the_controller() {
        let claim = claim("1Gi", Some("2Gi"), Some(ResizeStatus::OfNode));
        let call = ExpansionCall { size: "2Gi".parse().unwrap(), tells: true, recovers: true };
        let after = |claim, failure, before| {
            let (next, change) = after_failure(claim, &call, failure, before);
            (next, change.map(|change| change("why".into())))
        };
        let failed = Some(SizeChange::Failed("why".into()));
        let infeasible = Some(SizeChange::Infeasible("why".into()));
        use AfterFailure::{Again, Done, GiveUp};
        assert_eq!(after(&claim, ExpandFailure::Uncertain, true), (Again, None));
        assert_eq!(after(&claim, ExpandFailure::Final, true), (Again, failed.clone()));
        assert_eq!(after(&claim, ExpandFailure::Infeasible, false), (Again, infeasible.clone()));
        assert_eq!(after(&claim, ExpandFailure::InUse, false), (GiveUp, failed.clone()));
        assert_eq!(after(&claim, ExpandFailure::NotSupported, false), (Again, failed.clone()));
        let other = ClaimSize { requested: size("1200Mi"), ..claim.clone() };
        assert_eq!(after(&other, ExpandFailure::Final, false), (Again, failed));
        assert_eq!(after(&other, ExpandFailure::Final, true), (Again, infeasible));
        let old = ExpansionCall { recovers: false, ..call.clone() };
        assert_eq!(after_failure(&claim, &old, ExpandFailure::NotSupported, false), (Done, None));
        assert_eq!(after_failure(&claim, &old, ExpandFailure::Infeasible, false), (Again, None));
        let elsewhere = ExpansionCall { tells: false, ..call.clone() };
        assert_eq!(after_failure(&claim, &elsewhere, ExpandFailure::NotSupported, false), (Done, None));
    }
}
