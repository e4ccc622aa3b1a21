//! The credentials for an image: of the pod's pull secrets first, then of the node's own configuration, then of the
//! plugins, as the kubelet looks for them (`pkg/credentialprovider`). They are read at each pull; only answers of plugins
//! are kept, by [`crate::credential_plugins`].

use crate::{credential_plugins::CredentialPlugins, node_executor::blocking};
use berth_core::{
    error::Chain,
    image::{
        CredentialSource, DockerConfig, DockerConfigError, Keyring, ObjectCoordinates, Sourced,
        provider::PullPod,
    },
    model::{ObjectKind, Pod},
    plan::Failure,
    roots::Roots,
    value::Value,
};
use berth_pods::Context;
use berth_runtime::reference;
use berth_sys::Error;
use std::{
    fmt::Display,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// The largest configuration that is read (`maxReadLength`, `pkg/credentialprovider/config.go`).
const MAX_FILE: usize = 10 << 20;

/// A reader of one form of a configuration.
type Read = fn(&[u8]) -> Result<DockerConfig, DockerConfigError>;

/// Types of Secrets with credentials, the key of each, and how its value is read.
const TYPES: [(&str, &str, Read); 2] = [
    ("kubernetes.io/dockerconfigjson", ".dockerconfigjson", DockerConfig::from_config_json),
    ("kubernetes.io/dockercfg", ".dockercfg", DockerConfig::from_dockercfg),
];

/// The credentials for the image, in the order in which they are tried. Without any, the registry is asked without one.
///
/// # Errors
/// A pull secret holds something else than its type says.
pub(crate) async fn candidates(
    roots: &Roots,
    plugins: &CredentialPlugins,
    context: &Context,
    image: &str,
) -> Result<Vec<Sourced>, Failure> {
    let full = reference::normalise(image);
    let repository = reference::repository(&full);
    let mut found = of_secrets(context)?.candidates(repository);
    found.extend(of_node(roots).await?.candidates(repository));
    found.extend(plugins.keyring(repository, &pull_pod(&context.pod)).await.candidates(repository));
    Ok(found)
}

fn pull_pod(pod: &Pod) -> PullPod {
    PullPod {
        namespace: pod.key.namespace.to_string(),
        name: pod.key.name.to_string(),
        uid: pod.uid.to_string(),
        service_account: pod.service_account.clone(),
    }
}

/// The pod's pull secrets that are absent or unknown.
pub(crate) fn missing(context: &Context) -> Vec<String> {
    let pod = &context.pod;
    let known = |name: &String| {
        matches!(context.objects.get(ObjectKind::Secret, &pod.key.namespace, name), Value::Known(_))
    };
    pod.image_pull_secrets.iter().filter(|name| !known(name)).cloned().collect()
}

/// The credentials of the pod's pull secrets. One that is absent or unknown is passed over.
fn of_secrets(context: &Context) -> Result<Keyring, Failure> {
    let pod: &Pod = &context.pod;
    let mut keyring = Keyring::default();
    for name in &pod.image_pull_secrets {
        let Value::Known(secret) = context.objects.get(ObjectKind::Secret, &pod.key.namespace, name) else {
            continue;
        };
        for (kind, key, read) in TYPES {
            let Some(bytes) = secret.data.get(key).filter(|bytes| !bytes.is_empty()) else { continue };
            if secret.kind.as_deref() != Some(kind) {
                continue;
            }
            let config = read(bytes).map_err(|e| {
                Failure::new(
                    "ErrImagePull",
                    format!("cannot read pull secret {}/{name}: {e}", pod.key.namespace),
                )
            })?;
            let source = CredentialSource::Secret(ObjectCoordinates {
                uid: secret.uid.clone(),
                namespace: secret.namespace.to_string(),
                name: secret.name.clone(),
            });
            keyring.add(&config, Some(&source));
        }
    }
    Ok(keyring)
}

/// The credentials of the node: those of the first `config.json` that can be read, or else of the first `.dockercfg`.
pub(crate) async fn of_node(roots: &Roots) -> Result<Keyring, Failure> {
    let (first, home) = (roots.pod_state.clone(), std::env::var_os("HOME").map(PathBuf::from));
    blocking(move || {
        let mut keyring = Keyring::default();
        if let Some(config) = read_node(&first, home.as_deref()) {
            keyring.add(&config, None);
        }
        keyring
    })
    .await
}

/// The paths are the kubelet's: its root directory, the working directory, the home directory, the root of the file
/// system.
fn read_node(first: &Path, home: Option<&Path>) -> Option<DockerConfig> {
    let root = Path::new("/");
    let home = home.unwrap_or(root);
    let json = [first.to_owned(), PathBuf::new(), home.join(".docker"), root.join(".docker")];
    let old = [first.to_owned(), PathBuf::new(), home.to_owned(), root.to_owned()];
    let json = json.iter().map(|dir| (dir.join("config.json"), DockerConfig::from_config_json as Read));
    let old = old.iter().map(|dir| (dir.join(".dockercfg"), DockerConfig::from_dockercfg as Read));
    json.chain(old).find_map(|(path, read)| {
        let unreadable = |why: &dyn Display| {
            tracing::warn!(path = %path.display(), %why, "cannot read the node's credentials for registries");
        };
        let bytes = match berth_sys::fs::read_limited(&path, MAX_FILE) {
            Err(Error::Open { source, .. }) if source.kind() == ErrorKind::NotFound => return None,
            read => read.inspect_err(|e| unreadable(&Chain(e))).ok()?,
        };
        read(&bytes).inspect_err(|e| unreadable(e)).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_readable_configuration_of_the_node_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (first, home) = (dir.path().join("kubelet"), dir.path().join("home"));
        std::fs::create_dir_all(&first).unwrap();
        std::fs::create_dir_all(home.join(".docker")).unwrap();
        let auths =
            |name: &str| format!(r#"{{"auths":{{"{name}.test":{{"username":"u","password":"p"}}}}}}"#);
        let place = || read_node(&first, Some(&home)).and_then(|c| c.entries.keys().next().cloned());
        let dockercfg = r#"{"old.test":{"username":"u","password":"p"}}"#;
        std::fs::write(first.join(".dockercfg"), dockercfg).unwrap();
        assert_eq!(place().as_deref(), Some("old.test"));
        std::fs::write(home.join(".docker/config.json"), auths("home")).unwrap();
        assert_eq!(place().as_deref(), Some("home.test"), "the newer form wins");
        std::fs::write(first.join("config.json"), "{").unwrap();
        assert_eq!(place().as_deref(), Some("home.test"), "what cannot be read is passed over");
        std::fs::write(first.join("config.json"), auths("first")).unwrap();
        assert_eq!(place().as_deref(), Some("first.test"));
    }
}
