//! Volumes that a CSI driver makes for the claims of a node without a control plane, as external-provisioner has them made:
//! when a volume is made, when it is deleted, and the persistent volume that stands for it. Pure.
//!
//! A call whose result is not known may have made a volume. It is made again under the same name before it counts, or is
//! deleted, so that none is lost.

use crate::{
    ids::Namespace,
    model::{
        ClaimRef, CsiVolume, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSource, ReclaimPolicy,
        SecretRef, StorageClass,
    },
    quantity::Quantity,
    volume::bind::ClaimName,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// Parameters of a StorageClass with this prefix are not for the driver.
const OWN: &str = "csi.storage.k8s.io/";

/// A claim for which a driver has to make a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvisionRequest {
    /// The claim.
    pub claim: Arc<PersistentVolumeClaim>,
    /// Its class.
    pub class: Arc<StorageClass>,
}

impl ProvisionRequest {
    /// The name of the volume, and of the PersistentVolume.
    pub fn name(&self) -> String {
        format!("pvc-{}", self.claim.uid)
    }

    /// Namespace and name of the claim.
    pub fn claim_name(&self) -> ClaimName {
        (self.claim.namespace.clone(), self.claim.name.clone())
    }

    /// The parameters for the driver, with the names of the claim and the volume.
    pub fn parameters(&self) -> BTreeMap<String, String> {
        let given = self.class.parameters.iter().filter(|(key, _)| !key.starts_with(OWN));
        let names = [
            ("pvc/name", self.claim.name.clone()),
            ("pvc/namespace", self.claim.namespace.to_string()),
            ("pv/name", self.name()),
        ];
        let names = names.map(|(key, name)| (format!("{OWN}{key}"), name));
        given.map(|(key, value)| (key.clone(), value.clone())).chain(names).collect()
    }

    /// The type of the file system.
    pub fn fs_type(&self) -> Option<String> {
        self.class.parameters.get("csi.storage.k8s.io/fstype").filter(|text| !text.is_empty()).cloned()
    }

    /// The Secret that the class names for a purpose: `provisioner`, `node-stage`, `node-publish` or `node-expand`. Its
    /// names may hold those of the claim and the volume.
    ///
    /// # Errors
    ///
    /// The namespace is none.
    pub fn secret(&self, purpose: &str) -> Result<Option<SecretRef>, String> {
        let parameter = |what: &str| {
            let text = self.class.parameters.get(&format!("{OWN}{purpose}-secret-{what}"))?;
            Some(
                text.replace("${pv.name}", &self.name())
                    .replace("${pvc.name}", &self.claim.name)
                    .replace("${pvc.namespace}", self.claim.namespace.as_str()),
            )
        };
        let Some(name) = parameter("name") else { return Ok(None) };
        let namespace = parameter("namespace").unwrap_or_default();
        let namespace = Namespace::new(&*namespace).map_err(|_invalid| {
            format!(
                "StorageClass {:?}: parameter {OWN}{purpose}-secret-namespace {namespace:?} is no namespace",
                self.class.name
            )
        })?;
        Ok(Some(SecretRef { namespace, name }))
    }
}

/// What a driver has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeVolume {
    /// The volume's id.
    pub handle: String,
    /// Its attributes.
    pub attributes: BTreeMap<String, String>,
    /// Its size in bytes, where the driver tells it.
    pub bytes: Option<u64>,
}

/// What is known of a volume that a claim has asked for. It is stored before a call and after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provisioning {
    /// The claim and the class as they were at the first call: every try asks for the same.
    pub request: ProvisionRequest,
    /// Whether a call may have made a volume.
    pub begun: bool,
    /// The volume, once its id is known.
    pub made: Option<MadeVolume>,
}

/// The next step of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProvisionStep {
    /// CreateVolume.
    Create,
    /// DeleteVolume.
    Delete,
    /// There is no volume, and nobody wants one.
    Forget,
}

/// Who wants a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The claim.
    ByClaim,
    /// Nobody: the claim is gone, and nothing on the node has the volume.
    ByNobody,
    /// Something on the node still has it, or the manifests are not known as a whole.
    Perhaps,
}

impl Provisioning {
    /// A volume that nothing was done for.
    pub fn new(request: ProvisionRequest) -> Provisioning {
        Provisioning { request, begun: false, made: None }
    }

    /// The next step; `None` while there is nothing to do.
    pub fn next(&self, wanted: Wanted) -> Option<ProvisionStep> {
        let keeps = self.request.class.reclaim == ReclaimPolicy::Retain;
        match (wanted, &self.made) {
            (Wanted::ByClaim, None) => Some(ProvisionStep::Create),
            (Wanted::ByNobody, None) if !self.begun => Some(ProvisionStep::Forget),
            // What may have been made is known by its name alone, until the driver tells its id.
            (Wanted::ByNobody, None) if !keeps => Some(ProvisionStep::Create),
            (Wanted::ByNobody, Some(_)) if !keeps => Some(ProvisionStep::Delete),
            _ => None,
        }
    }

    /// The PersistentVolume of a volume that is made.
    pub fn volume(&self) -> Option<PersistentVolume> {
        let made = self.made.as_ref()?;
        let (claim, class) = (&self.request.claim, &self.request.class);
        // A class with a name that is none was refused before the volume was made.
        let secret = |purpose| self.request.secret(purpose).ok().flatten();
        let source = CsiVolume {
            fs_type: self.request.fs_type(),
            attributes: made.attributes.clone(),
            stage_secret: secret("node-stage"),
            publish_secret: secret("node-publish"),
            expand_secret: secret("node-expand"),
            ..CsiVolume::new(&*class.provisioner, &*made.handle)
        };
        let told = made.bytes.and_then(|bytes| bytes.to_string().parse::<Quantity>().ok());
        Some(PersistentVolume {
            capacity: told.or_else(|| claim.request.clone()),
            access_modes: claim.access_modes.clone(),
            mode: claim.mode,
            class: class.name.clone(),
            reclaim: class.reclaim,
            mount_options: class.mount_options.clone(),
            claim: Some(ClaimRef {
                namespace: claim.namespace.to_string(),
                name: claim.name.clone(),
                uid: claim.uid.clone(),
            }),
            ..PersistentVolume::new(self.request.name(), PersistentVolumeSource::Csi(source))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(reclaim: ReclaimPolicy, parameters: &[(&str, &str)]) -> ProvisionRequest {
        let claim = PersistentVolumeClaim {
            uid: "u1".into(),
            request: Some("2Gi".parse().unwrap()),
            ..PersistentVolumeClaim::new("shop".parse().unwrap(), "data")
        };
        let parameters = parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let class = StorageClass { reclaim, parameters, ..StorageClass::new("fast", "d.io") };
        ProvisionRequest { claim: Arc::new(claim), class: Arc::new(class) }
    }

    #[test]
    fn the_driver_gets_its_own_parameters_and_the_names() {
        let parameters = [
            ("share", "/srv"),
            ("csi.storage.k8s.io/fstype", "xfs"),
            ("csi.storage.k8s.io/provisioner-secret-name", "of-${pvc.name}"),
            ("csi.storage.k8s.io/provisioner-secret-namespace", "${pvc.namespace}"),
            ("csi.storage.k8s.io/node-stage-secret-name", "s"),
        ];
        let request = request(ReclaimPolicy::Delete, &parameters);
        let expected = [
            ("csi.storage.k8s.io/pv/name", "pvc-u1"),
            ("csi.storage.k8s.io/pvc/name", "data"),
            ("csi.storage.k8s.io/pvc/namespace", "shop"),
            ("share", "/srv"),
        ];
        let given = request.parameters();
        assert!(given.iter().map(|(k, v)| (k.as_str(), v.as_str())).eq(expected), "{given:?}");
        let secret = request.secret("provisioner").unwrap().unwrap();
        assert_eq!((secret.namespace.as_str(), secret.name.as_str()), ("shop", "of-data"));
        assert_eq!(request.secret("node-publish"), Ok(None));
        let refused = request.secret("node-stage").unwrap_err();
        assert!(refused.contains("node-stage-secret-namespace \"\" is no namespace"), "{refused}");
        let made = MadeVolume { handle: "h".into(), attributes: BTreeMap::new(), bytes: Some(3 << 30) };
        let volume = Provisioning { made: Some(made), ..Provisioning::new(request) }.volume().unwrap();
        assert_eq!((volume.name.as_str(), volume.class.as_str()), ("pvc-u1", "fast"));
        assert_eq!(volume.capacity.map(|c| c.units()), Some(3 << 30));
        let PersistentVolumeSource::Csi(csi) = volume.source else { panic!() };
        assert_eq!(
            (csi.driver.as_str(), csi.handle.as_str(), csi.fs_type.as_deref()),
            ("d.io", "h", Some("xfs"))
        );
    }

    proptest! {
        /// Whatever fails, and whenever the claim goes: a volume of the policy Delete goes with it, no other is ever
        /// deleted, and none is made twice.
        #[test]
        fn every_history_leaves_the_volumes_that_it_should(
            retain in any::<bool>(),
            results in proptest::collection::vec(0..4u8, 0..12),
            gone_after in 0..12usize,
        ) {
            let reclaim = if retain { ReclaimPolicy::Retain } else { ReclaimPolicy::Delete };
            let mut known = Some(Provisioning::new(request(reclaim, &[])));
            let (mut there, mut creations) = (false, 0);
            let calm = std::iter::repeat_n(0, 24);
            for (step, result) in results.into_iter().chain(calm).enumerate() {
                let Some(one) = &mut known else { break };
                let wanted = if step < gone_after { Wanted::ByClaim } else { Wanted::ByNobody };
                prop_assert_eq!(one.next(Wanted::Perhaps), None);
                // Done; done and not told; not done and not told; refused.
                match one.next(wanted) {
                    None => {}
                    Some(ProvisionStep::Forget) => known = None,
                    Some(ProvisionStep::Create) => {
                        let before = one.begun;
                        one.begun = true;
                        creations += u32::from(result < 2 && !there);
                        there |= result < 2;
                        let made = MadeVolume { handle: "h".into(), attributes: BTreeMap::new(), bytes: None };
                        match result {
                            0 => one.made = Some(made),
                            3 => one.begun = before,
                            _ => {}
                        }
                    }
                    Some(ProvisionStep::Delete) => {
                        prop_assert!(!retain && step >= gone_after);
                        there &= result >= 2;
                        if result == 0 {
                            known = None;
                        }
                    }
                }
            }
            prop_assert!(creations <= 1);
            if !retain {
                prop_assert!(!there && known.is_none(), "{:?}", known);
            } else {
                prop_assert!(known.is_some() || !there, "what is there is known");
            }
        }
    }
}
