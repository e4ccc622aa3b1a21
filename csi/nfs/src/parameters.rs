//! Parameters of a StorageClass or a VolumeSnapshotClass, and the attributes of a PersistentVolume. Their names are
//! those that users of csi-driver-nfs know: `server`, `share`, `subDir`, `mountPermissions`, `onDelete`,
//! `mountOptions`.

use crate::{
    error::{Error, Result},
    location::{Location, Server, Share, SubDir},
};
use std::collections::HashMap;

/// Parameters by name.
pub(crate) type Map = HashMap<String, String>;

/// What becomes of the data when the volume is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnDelete {
    /// The directory is removed.
    Delete,
    /// The directory stays.
    Retain,
    /// The directory is renamed: `archived-` stands before its name.
    Archive,
}

impl OnDelete {
    /// Reads a policy.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        match text {
            "delete" => Ok(Self::Delete),
            "retain" => Ok(Self::Retain),
            "archive" => Ok(Self::Archive),
            _ => Err(Error::field("onDelete", format!("{text:?} is none of delete, retain, archive"))),
        }
    }

    /// The policy's name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Retain => "retain",
            Self::Archive => "archive",
        }
    }
}

/// Beginning of the parameters that Kubernetes' sidecars add: names of claims and of secrets.
const OF_SIDECARS: &str = "csi.storage.k8s.io/";

/// Names that a template of `subDir` may have, with the parameter that the external-provisioner tells each by
/// (`--extra-create-metadata`).
const TEMPLATE: [(&str, &str); 3] = [
    ("${pvc.metadata.name}", "csi.storage.k8s.io/pvc/name"),
    ("${pvc.metadata.namespace}", "csi.storage.k8s.io/pvc/namespace"),
    ("${pv.metadata.name}", "csi.storage.k8s.io/pv/name"),
];

/// Parameters of a new volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeParameters {
    /// Where the volume is to be, with its sub-directory.
    pub(crate) location: Location,
    /// What becomes of its data.
    pub(crate) on_delete: OnDelete,
    /// Mode of its directory; `None` leaves the mode as it is.
    pub(crate) permissions: Option<u32>,
    /// Options of the controller's own mounts, separated by commas.
    pub(crate) mount_options: Option<String>,
}

impl VolumeParameters {
    /// Reads the parameters of a StorageClass for a volume of this name. `defaults` are used for what is not given.
    ///
    /// # Errors
    /// A parameter is unknown, missing or wrong.
    pub(crate) fn read(name: &str, given: &Map, defaults: &Map) -> Result<Self> {
        let known = ["server", "share", "subDir", "onDelete", "mountPermissions", "mountOptions"];
        refuse_unknown(given, &known)?;
        let (server, share) = server_and_share(given, defaults)?;
        let value = |key: &str| lookup(given, defaults, key);
        let sub_dir = match value("subDir") {
            Some(template) => SubDir::parse(&fill(template, name, given)?)?,
            None => SubDir::parse(name)?,
        };
        Ok(Self {
            location: Location::new(server, share, Some(sub_dir))?,
            on_delete: value("onDelete").map_or(Ok(OnDelete::Delete), OnDelete::parse)?,
            permissions: value("mountPermissions").map(permissions).transpose()?.flatten(),
            mount_options: value("mountOptions").map(str::to_owned),
        })
    }
}

/// Server and share of a request that may name them, or of the defaults.
///
/// # Errors
/// Neither names them, or the value is wrong.
pub(crate) fn server_and_share(given: &Map, defaults: &Map) -> Result<(Server, Share)> {
    let required = |key: &str| {
        lookup(given, defaults, key).ok_or_else(|| Error::field("parameters", format!("{key} is not given")))
    };
    Ok((Server::parse(required("server")?)?, Share::parse(required("share")?)?))
}

/// Refuses a parameter that is not one of these, as a typing error would go unseen.
///
/// # Errors
/// The unknown parameter.
pub(crate) fn refuse_unknown(given: &Map, known: &[&str]) -> Result<()> {
    match given.keys().find(|key| !known.contains(&key.as_str()) && !key.starts_with(OF_SIDECARS)) {
        Some(key) => Err(Error::field("parameters", format!("{key:?} is none of {}", known.join(", ")))),
        None => Ok(()),
    }
}

fn lookup<'m>(given: &'m Map, defaults: &'m Map, key: &str) -> Option<&'m str> {
    given.get(key).or_else(|| defaults.get(key)).map(String::as_str).filter(|value| !value.is_empty())
}

/// Puts the names of the claim and the volume into a template.
fn fill(template: &str, name: &str, given: &Map) -> Result<String> {
    let mut text = String::new();
    let mut rest = template;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        text.push_str(before);
        let Some((key, parameter)) = TEMPLATE.iter().find(|(key, _)| from.starts_with(key)) else {
            return Err(Error::field("subDir", format!("{template:?} has an unknown name after ${{")));
        };
        let told = given.get(*parameter).map(String::as_str);
        let value = if key.starts_with("${pv.") { told.or(Some(name)) } else { told };
        let value = value.filter(|v| !v.is_empty()).ok_or_else(|| {
            Error::field(
                "subDir",
                format!("{key} is not told: the provisioner needs --extra-create-metadata"),
            )
        })?;
        if value.contains('/') || value == ".." || value == "." {
            return Err(Error::field("subDir", format!("the value {value:?} of {key} is no name")));
        }
        text.push_str(value);
        rest = from.get(key.len()..).unwrap_or_default();
    }
    text.push_str(rest);
    Ok(text)
}

/// Reads an octal mode. Zero leaves the mode as it is.
pub(crate) fn permissions(text: &str) -> Result<Option<u32>> {
    match u32::from_str_radix(text, 8) {
        Ok(0) => Ok(None),
        Ok(mode) if mode <= 0o7777 => Ok(Some(mode)),
        _ => Err(Error::field("mountPermissions", format!("{text:?} is no octal mode"))),
    }
}

/// Place and mode of the volume that the attributes of a PersistentVolume, or of a volume in a pod, name. `None` where
/// they name no server.
///
/// # Errors
/// An attribute is wrong.
pub(crate) fn of_context(context: &Map) -> Result<(Option<Location>, Option<u32>)> {
    let known = [
        "server",
        "share",
        "subDir",
        "mountPermissions",
        "mountOptions",
        "storage.kubernetes.io/csiProvisionerIdentity",
    ];
    refuse_unknown(context, &known)?;
    let mode = context.get("mountPermissions").map(|m| permissions(m)).transpose()?.flatten();
    if !context.contains_key("server") && !context.contains_key("share") {
        return Ok((None, mode));
    }
    let (server, share) = server_and_share(context, &Map::new())?;
    let sub_dir = context.get("subDir").filter(|s| !s.is_empty()).map(|s| SubDir::parse(s)).transpose()?;
    Ok((Some(Location::new(server, share, sub_dir)?), mode))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(pairs: &[(&str, &str)]) -> Map {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    const CLAIM: [(&str, &str); 3] = [
        ("csi.storage.k8s.io/pvc/name", "data-0"),
        ("csi.storage.k8s.io/pvc/namespace", "web"),
        ("csi.storage.k8s.io/pv/name", "pvc-1"),
    ];

    fn read(more: &[(&str, &str)]) -> Result<VolumeParameters> {
        let given = map(&[&[("server", "h"), ("share", "/s")], &CLAIM[..], more].concat());
        VolumeParameters::read("pvc-1", &given, &Map::new())
    }

    fn sub_dir(template: &str) -> Option<String> {
        Some(read(&[("subDir", template)]).ok()?.location.sub_dir?.as_str().to_owned())
    }

    #[test]
    fn a_volume_has_its_name_as_directory_or_what_the_template_says() {
        assert_eq!(read(&[]).unwrap().location.source(), "h:/s/pvc-1");
        let template = "${pvc.metadata.namespace}/${pvc.metadata.name}-${pv.metadata.name}";
        assert_eq!(sub_dir(template).as_deref(), Some("web/data-0-pvc-1"));
        assert_eq!(sub_dir("plain"), Some("plain".into()));
        for bad in
            ["${pod.name}", "${pvc.metadata.name", "a/${pv.metadata.name}/", "../${pv.metadata.name}", "${"]
        {
            assert_eq!(sub_dir(bad), None, "{bad}");
        }
        let untold = map(&[("server", "h"), ("share", "/s"), ("subDir", "${pvc.metadata.name}")]);
        let error = VolumeParameters::read("x", &untold, &Map::new()).unwrap_err().to_string();
        assert!(error.contains("--extra-create-metadata"), "{error}");
    }

    #[test]
    fn defaults_stand_in_and_wrong_parameters_are_refused() {
        let defaults = map(&[("server", "d"), ("share", "/d"), ("onDelete", "retain")]);
        let read_with = |given: &[(&str, &str)]| VolumeParameters::read("n", &map(given), &defaults);
        assert_eq!(read_with(&[]).unwrap().location.source(), "d:/d/n");
        assert_eq!(read_with(&[]).unwrap().on_delete, OnDelete::Retain);
        assert_eq!(read_with(&[("server", "o")]).unwrap().location.source(), "o:/d/n");
        assert_eq!(read_with(&[("mountPermissions", "0770")]).unwrap().permissions, Some(0o770));
        assert_eq!(read_with(&[("mountPermissions", "0")]).unwrap().permissions, None);
        for bad in [
            ("servre", "x"),
            ("onDelete", "keep"),
            ("mountPermissions", "rwx"),
            ("mountPermissions", "17777"),
        ] {
            assert!(read_with(&[bad]).is_err(), "{bad:?}");
        }
        assert!(VolumeParameters::read("n", &Map::new(), &Map::new()).is_err());
    }

    #[test]
    fn attributes_of_a_volume_name_a_place_or_none() {
        let context = map(&[("server", "h"), ("share", "/s"), ("subDir", "a/b")]);
        assert_eq!(of_context(&context).unwrap().0.unwrap().source(), "h:/s/a/b");
        assert_eq!(of_context(&Map::new()).unwrap(), (None, None));
        assert!(of_context(&map(&[("server", "h")])).is_err());
        assert!(of_context(&map(&[("server", "h"), ("share", "/s"), ("subDir", "..")])).is_err());
        let kubelet = map(&[("csi.storage.k8s.io/ephemeral", "true"), ("server", "h"), ("share", "/s")]);
        assert!(of_context(&kubelet).unwrap().0.is_some());
    }

    proptest! {
        #[test]
        fn no_name_of_a_claim_leads_out_of_the_share(name in ".{0,12}|[./]{1,4}", template in "([a./]|[$][{]pvc.metadata.name[}]){1,6}") {
            let given = map(&[("server", "h"), ("share", "/s"), ("subDir", &template), ("csi.storage.k8s.io/pvc/name", &name)]);
            if let Ok(read) = VolumeParameters::read("pvc-1", &given, &Map::new()) {
                let sub = read.location.sub_dir.unwrap();
                prop_assert!(sub.as_str().split('/').all(|p| !p.is_empty() && p != "." && p != ".."));
            }
        }
    }
}
