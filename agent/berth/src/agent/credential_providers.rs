//! Credential provider plugins of the node: reads their configuration, and gives them the API server's ServiceAccounts.
//! Files and faults are the kubelet's (`pkg/credentialprovider/plugin/config.go`).

use anyhow::{Context as _, bail};
use berth_cluster::ImageAccounts;
use berth_core::image::{
    Hidden,
    provider::{self, Provider, ProviderConfig, PullPod},
};
use berth_executor::{Asked, CredentialPlugins, ServiceAccount, ServiceAccounts};
use std::{
    io::ErrorKind,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The largest file of a configuration.
const MAX_FILE: usize = 1 << 20;

/// ServiceAccounts of the API server for plugins.
struct Accounts(ImageAccounts);

impl ServiceAccounts for Accounts {
    fn account<'a>(&'a self, namespace: &'a str, name: &'a str) -> Asked<'a, ServiceAccount> {
        Box::pin(async move {
            let (uid, annotations) = self.0.account(namespace, name).await?;
            Ok(ServiceAccount { uid, annotations })
        })
    }

    fn token<'a>(&'a self, pod: &'a PullPod, uid: &'a str, audience: &'a str) -> Asked<'a, Hidden> {
        Box::pin(self.0.token(pod, uid, audience))
    }
}

/// The plugins of a configuration, a file or a directory of files, with their programs in `dir`. `accounts` are those of
/// the control plane, where there is one.
pub(super) fn open(
    config: Option<&Path>,
    dir: Option<&Path>,
    accounts: Option<ImageAccounts>,
) -> anyhow::Result<CredentialPlugins> {
    let (config, dir) = match (config, dir) {
        (None, None) => return Ok(CredentialPlugins::default()),
        (config, dir) => (config.unwrap_or(Path::new("")), dir.unwrap_or(Path::new(""))),
    };
    let read = || -> anyhow::Result<Vec<Provider>> {
        match std::fs::metadata(dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                bail!("plugin binary directory {} did not exist", dir.display())
            }
            Err(e) => bail!("error inspecting binary directory {}: {e}", dir.display()),
            Ok(_) => {}
        }
        let providers = read(config)?;
        provider::check(&providers).map_err(anyhow::Error::msg)?;
        for provider in &providers {
            find(&dir.join(&provider.name))?;
        }
        Ok(providers)
    };
    let providers = read().context("cannot set up credential provider plugins")?;
    let accounts = accounts.map(|accounts| Arc::new(Accounts(accounts)) as Arc<dyn ServiceAccounts>);
    Ok(CredentialPlugins::new(dir, providers, accounts))
}

fn read(config: &Path) -> anyhow::Result<Vec<Provider>> {
    if config.as_os_str().is_empty() {
        bail!("credential provider config path is empty");
    }
    let at = config.display();
    let unreadable = || format!("unable to access path {:?}", at.to_string());
    let files = if std::fs::metadata(config).with_context(unreadable)?.is_dir() {
        let entries = std::fs::read_dir(config).with_context(unreadable)?;
        let is_file = |path: &PathBuf| {
            let known = path.extension().is_some_and(|e| ["json", "yaml", "yml"].iter().any(|k| e == *k));
            known && !path.is_dir()
        };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_file).collect();
        files.sort();
        if files.is_empty() {
            bail!("no configuration files found in directory {:?}", at.to_string());
        }
        files
    } else {
        vec![config.to_owned()]
    };
    let mut configs = Vec::new();
    for path in files {
        let name = path.display().to_string();
        let text = berth_sys::fs::read_to_string_limited(&path, MAX_FILE)
            .with_context(|| format!("unable to read file {name:?}"))?;
        configs.push(decode(&text).with_context(|| format!("error decoding config {name:?}"))?);
    }
    provider::merge(configs).map_err(anyhow::Error::msg)
}

fn decode(text: &str) -> anyhow::Result<ProviderConfig> {
    // An excerpt of the text would show the environment of a plugin.
    let options = serde_saphyr::options! { with_snippet: false };
    let config: ProviderConfig = serde_saphyr::from_str_with_options(text, options)?;
    provider::read_config_kind(&config).map_err(anyhow::Error::msg)?;
    Ok(config)
}

/// Whether the program of a plugin is there.
fn find(program: &Path) -> anyhow::Result<()> {
    let at = program.display();
    match std::fs::metadata(program) {
        Err(e) if e.kind() == ErrorKind::NotFound => bail!("plugin binary executable {at} did not exist"),
        Err(e) => bail!("error inspecting binary executable {at}: {e}"),
        Ok(found) if found.is_dir() || found.permissions().mode() & 0o111 == 0 => {
            bail!("error inspecting binary executable {at}: permission denied")
        }
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: one\n  \
                       matchImages: ['*.a.test']\n  defaultCacheDuration: 1m\n  apiVersion: \
                       credentialprovider.kubelet.k8s.io/v1\n  env: [{name: N, value: geheim}]\n";

    #[test]
    fn a_configuration_is_a_file_or_a_directory_and_faults_are_the_kubelets() {
        let dir = tempfile::tempdir().unwrap();
        let (config, bin) = (dir.path().join("config"), dir.path().join("bin"));
        let fault =
            |config: &Path, bin: &Path| format!("{:#}", open(Some(config), Some(bin), None).unwrap_err());
        assert!(fault(&config, &bin).contains("plugin binary directory"));
        std::fs::create_dir_all(&bin).unwrap();
        assert!(fault(&config, &bin).contains("unable to access path"));
        assert!(fault(Path::new(""), &bin).contains("credential provider config path is empty"));
        std::fs::create_dir_all(&config).unwrap();
        assert!(fault(&config, &bin).contains("no configuration files found in directory"));
        std::fs::write(config.join("a.yaml"), ONE).unwrap();
        std::fs::write(config.join("ignored.txt"), "nothing").unwrap();
        assert!(fault(&config, &bin).contains("plugin binary executable"));
        std::fs::write(bin.join("one"), "").unwrap();
        assert!(fault(&config, &bin).contains("permission denied"));
        std::fs::set_permissions(bin.join("one"), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(format!("{:?}", open(Some(&config), Some(&bin), None).unwrap()).contains("one"));
        assert!(open(Some(&config.join("a.yaml")), Some(&bin), None).is_ok());
        std::fs::write(config.join("b.yml"), ONE).unwrap();
        assert!(fault(&config, &bin).contains("duplicate provider name \"one\""));
        std::fs::write(config.join("b.yml"), ONE.replace("matchImages", "images")).unwrap();
        let text = fault(&config, &bin);
        assert!(
            text.contains("error decoding config") && text.contains("images") && !text.contains("geheim"),
            "{text}"
        );
        std::fs::write(config.join("b.yml"), ONE.replace("one", "a/b")).unwrap();
        assert!(fault(&config, &bin).contains("cannot contain '/'"));
        assert!(open(None, None, None).is_ok());
    }
}
