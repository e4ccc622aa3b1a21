use super::*;
use crate::model::{AccessMode, ClaimRef, NodeSelectorTerm, PersistentVolumeSource, VolumeMode};

fn volume(name: &str, size: &str) -> PersistentVolume {
    let source = PersistentVolumeSource::Local { path: "/d".into(), fs_type: None };
    PersistentVolume { capacity: Some(size.parse().unwrap()), ..PersistentVolume::new(name, source) }
}

fn claim(name: &str, size: &str) -> PersistentVolumeClaim {
    let claim = PersistentVolumeClaim::new("default".parse().unwrap(), name);
    PersistentVolumeClaim { request: Some(size.parse().unwrap()), ..claim }
}

fn bound(
    claims: &[PersistentVolumeClaim],
    volumes: &[PersistentVolume],
    before: &[(&str, &str)],
) -> Vec<(String, String)> {
    let node = NodeInfo::new("n1".parse().unwrap());
    let of = |(claim, volume): &(&str, &str)| {
        (("default".parse().unwrap(), (*claim).to_owned()), (*volume).to_owned())
    };
    let before: Bindings = before.iter().map(of).collect();
    let claims: Vec<_> = claims.iter().cloned().map(Arc::new).collect();
    let volumes: Vec<_> = volumes.iter().cloned().map(Arc::new).collect();
    let found = bind(&claims, &volumes, &node, &before, &BTreeSet::new());
    found.into_iter().map(|((_, claim), volume)| (claim, volume)).collect()
}

fn pair(claim: &str, volume: &str) -> (String, String) {
    (claim.to_owned(), volume.to_owned())
}

#[test]
fn a_claim_gets_the_smallest_volume_that_suits_and_no_two_the_same() {
    let volumes = [volume("big", "10Gi"), volume("small", "1Gi"), volume("tiny", "1Mi")];
    assert_eq!(bound(&[claim("a", "1Gi")], &volumes, &[]), [pair("a", "small")]);
    let two = [claim("a", "1Gi"), claim("b", "1Gi"), claim("c", "1Gi")];
    assert_eq!(bound(&two, &volumes, &[]), [pair("a", "small"), pair("b", "big")]);
}

#[test]
fn class_modes_selector_and_node_must_agree() {
    let good = volume("v", "1Gi");
    let none =
        |claim: PersistentVolumeClaim, volume: PersistentVolume| bound(&[claim], &[volume], &[]).is_empty();
    assert!(!none(claim("a", "1Gi"), good.clone()));
    assert!(none(PersistentVolumeClaim { class: Some("fast".into()), ..claim("a", "1Gi") }, good.clone()));
    assert!(none(PersistentVolumeClaim { mode: VolumeMode::Block, ..claim("a", "1Gi") }, good.clone()));
    let many = vec![AccessMode::ReadWriteMany];
    assert!(none(PersistentVolumeClaim { access_modes: many, ..claim("a", "1Gi") }, good.clone()));
    let selector = vec![crate::model::LabelRequirement {
        key: "disk".into(),
        operator: crate::model::LabelOperator::In(vec!["ssd".into()]),
    }];
    let wants = PersistentVolumeClaim { selector, ..claim("a", "1Gi") };
    assert!(none(wants.clone(), good.clone()));
    let labels = BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]);
    assert!(!none(wants, PersistentVolume { labels, ..good.clone() }));
    // A term without a requirement selects no node.
    let node_affinity = Some(vec![NodeSelectorTerm::default()]);
    assert!(none(claim("a", "1Gi"), PersistentVolume { node_affinity, ..good }));
}

#[test]
fn a_bound_claim_keeps_its_volume_and_a_volume_set_aside_is_for_its_claim_alone() {
    let volumes = [volume("big", "10Gi"), volume("small", "1Gi")];
    assert_eq!(bound(&[claim("a", "1Gi")], &volumes, &[("a", "big")]), [pair("a", "big")]);
    assert_eq!(bound(&[claim("a", "1Gi")], &[], &[("a", "big")]), [pair("a", "big")], "the volume is away");
    // The volume of a claim that is gone is not given to another one with its data.
    assert_eq!(bound(&[claim("b", "5Gi")], &volumes, &[("a", "big")]), []);
    let claim_of = ClaimRef { namespace: "default".into(), name: "z".into(), uid: String::new() };
    let aside = PersistentVolume { claim: Some(claim_of), ..volume("aside", "1Gi") };
    assert_eq!(bound(&[claim("a", "1Gi")], std::slice::from_ref(&aside), &[]), []);
    let both = [claim("a", "1Gi"), claim("z", "1Gi")];
    assert_eq!(bound(&both, &[aside, volume("other", "1Gi")], &[]), [pair("a", "other"), pair("z", "aside")]);
    let names = PersistentVolumeClaim { volume: Some("big".into()), ..claim("n", "1Gi") };
    assert_eq!(bound(&[names], &volumes, &[]), [pair("n", "big")]);
}
