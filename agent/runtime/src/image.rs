//! Images in containerd's store: lookup by name, and reading of manifest and configuration.
//!
//! The content of a manifest cannot change, so it is read once for each target digest and cached; only the
//! name is looked up each time. Blobs are read up to 4 MiB: no valid manifest or configuration is larger.

use crate::{
    Runtime,
    client::{QUERY, RECORD, call},
    error::{Error, absent},
    reference,
    spec::ImageConfig,
    wire,
};
use berth_core::{sync::lock, time::Wall};
use containerd_client::{
    services::v1::{GetImageRequest, Image as Record, ListImagesRequest, ReadContentRequest},
    types::Descriptor,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

mod manage;
#[cfg(test)]
mod mutations;
mod stored;
mod unpack;
mod verify;

pub use manage::ImageDetails;
pub use stored::{StoreUse, StoredImage};
pub use verify::{Damage, Verified};

/// The largest manifest or configuration that is read, in bytes.
const MAX_BLOB: u64 = 4 << 20;

/// A runnable image for this machine, with its manifest and configuration.
#[derive(Debug, Clone)]
pub struct Image {
    /// The image's name in containerd, a full reference.
    pub name: String,
    /// Value of `status.containerStatuses[].imageID`: `repository@digest` where the store has such a name for
    /// the image, else the configuration's digest.
    pub image_id: String,
    /// The image's configuration for processes.
    pub config: ImageConfig,
    /// The snapshot that holds its unpacked layers.
    pub chain_id: String,
    /// The digest that the name points to: an index or a manifest.
    pub target_digest: String,
    /// The digest of the image's configuration, which is the image's id in the CRI.
    pub config_digest: String,
}

/// An image by name, for lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    /// The image's name in containerd.
    pub name: String,
    /// The digest that the name points to.
    pub target_digest: String,
    /// Bytes of manifest, configuration and compressed layers for this machine; `None` where parts are
    /// missing or unreadable.
    pub size: Option<u64>,
    /// Time of the image's creation or import on this node.
    pub created_at: Option<Wall>,
}

/// Manifest and configuration behind a target digest, for this machine.
#[derive(Debug)]
pub(crate) struct Content {
    config: ImageConfig,
    config_digest: String,
    chain_id: String,
    diff_ids: Vec<String>,
    layers: Vec<Descriptor>,
    size: u64,
}

/// Cache of contents by target digest, filled by lookups.
#[derive(Debug, Default)]
pub(crate) struct Cache(Mutex<HashMap<String, Arc<Content>>>);

/// Maximum number of cached contents, more than a node has images. A full cache is emptied instead of
/// growing.
const CACHED: usize = 1024;

impl Cache {
    fn get(&self, digest: &str) -> Option<Arc<Content>> {
        lock(&self.0).get(digest).cloned()
    }

    fn put(&self, digest: &str, content: Arc<Content>) {
        let mut map = lock(&self.0);
        if map.len() >= CACHED {
            map.clear();
        }
        map.insert(digest.to_owned(), content);
    }
}

/// A descriptor within a manifest or an index.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: i64,
    #[serde(default)]
    platform: Option<JsonPlatform>,
}

#[derive(Debug, Clone, Deserialize)]
struct JsonPlatform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

/// A manifest or an index; a document with `manifests` is an index.
#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(default)]
    manifests: Vec<JsonDescriptor>,
    config: Option<JsonDescriptor>,
    #[serde(default)]
    layers: Vec<JsonDescriptor>,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct ConfigDocument {
    rootfs: Option<RootFs>,
}

/// This machine's architecture in Go's notation, as images use it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The chain ids of layers. The last one names the snapshot of the last layer on top of all before.
fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff in diff_ids {
        let next = match chain.last() {
            None => diff.clone(),
            Some(parent) => {
                let digest = Sha256::digest(format!("{parent} {diff}"));
                let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
                format!("sha256:{hex}")
            }
        };
        chain.push(next);
    }
    chain
}

fn for_this_machine(manifests: &[JsonDescriptor]) -> Option<&JsonDescriptor> {
    let fits = |d: &&JsonDescriptor| {
        d.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == architecture())
    };
    // An archive made for one machine often names no platform.
    let silent = |d: &&JsonDescriptor| {
        d.platform.as_ref().is_none_or(|p| p.os.is_empty() && p.architecture.is_empty())
    };
    manifests.iter().find(fits).or_else(|| manifests.iter().find(silent))
}

impl Manifest {
    fn parse(image: &str, json: &[u8]) -> Result<Manifest, Error> {
        serde_json::from_slice(json).map_err(|e| unreadable("manifest", image, e))
    }

    /// The index entry for this machine; `None` where the document is no index.
    fn of_index(&self, image: &str) -> Result<Option<&JsonDescriptor>, Error> {
        if self.manifests.is_empty() {
            return Ok(None);
        }
        for_this_machine(&self.manifests).map(Some).ok_or_else(|| Error::Platform {
            image: image.to_owned(),
            platform: format!("linux/{}", architecture()),
        })
    }
}

impl Content {
    /// Joins a manifest with the configuration that it names; the number is the manifest's size in bytes.
    fn new(
        image: &str,
        manifest: Manifest,
        manifest_size: usize,
        config_digest: String,
        config: &[u8],
    ) -> Result<Content, Error> {
        let document: ConfigDocument =
            serde_json::from_slice(config).map_err(|e| unreadable("configuration", image, e))?;
        let diff_ids = document.rootfs.map(|r| r.diff_ids).unwrap_or_default();
        if diff_ids.len() != manifest.layers.len() {
            return Err(inconsistent(image, "manifest and configuration count different layers"));
        }
        let chain_id = chain_ids(&diff_ids).pop().unwrap_or_default();
        let layers_size: i64 = manifest.layers.iter().map(|l| l.size.max(0)).fold(0, i64::saturating_add);
        let size = (manifest_size + config.len()) as u64 + layers_size.unsigned_abs();
        let layers = manifest
            .layers
            .into_iter()
            .map(|l| Descriptor {
                media_type: l.media_type,
                digest: l.digest,
                size: l.size,
                ..Descriptor::default()
            })
            .collect();
        let config = ImageConfig::parse(config).map_err(|e| unreadable("configuration", image, e))?;
        Ok(Content { config, config_digest, chain_id, diff_ids, layers, size })
    }
}

fn inconsistent(image: &str, reason: &str) -> Error {
    Error::Image { image: image.to_owned(), reason: reason.to_owned() }
}

fn unreadable(what: &'static str, image: &str, e: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Decode { what, subject: format!("image {image}"), source: Box::new(e) }
}

impl Runtime {
    /// The image that `reference` names, if containerd has all parts that are needed to run it. Tries the
    /// full form of the name and the name as written. A name whose content was removed counts as missing.
    pub async fn resolve_image(&self, reference: &str) -> Result<Option<Image>, Error> {
        let by_id = self.image_of_config(reference).await?;
        if by_id.is_some() {
            return Ok(by_id);
        }
        for name in reference::candidates(reference) {
            let Some(target) = self.image_record(&name).await?.and_then(|i| i.target) else { continue };
            let Some(content) = absent(self.image_content(&name, &target).await)? else { continue };
            return self.found(name, target, &content).await.map(Some);
        }
        Ok(None)
    }

    /// containerd's record of the image with exactly this name.
    pub(crate) async fn image_record(&self, name: &str) -> Result<Option<Record>, Error> {
        let client = self.client();
        let request = GetImageRequest { name: name.to_owned() };
        let mut service = client.images();
        let get = service.get(client.request(request, RECORD));
        Ok(absent(call("look up image", name, RECORD, get).await)?.and_then(|r| r.image))
    }

    /// containerd's records of all images.
    async fn image_records(&self) -> Result<Vec<Record>, Error> {
        let client = self.client();
        let mut service = client.images();
        let list = service.list(client.request(ListImagesRequest::default(), RECORD));
        Ok(call("list", "images", RECORD, list).await?.images)
    }

    /// The image with exactly this name, and its size in bytes.
    pub(crate) async fn sized_image(&self, name: &str) -> Result<Option<(Image, u64)>, Error> {
        let target = self.image_record(name).await?.and_then(|record| record.target);
        let Some(target) = target else { return Ok(None) };
        let content = self.image_content(name, &target).await?;
        let size = content.size;
        Ok(Some((self.found(name.to_owned(), target, &content).await?, size)))
    }

    /// The image with this configuration digest; `None` where the reference is no such digest. Image contents
    /// are cached, so only the first lookup reads each image.
    async fn image_of_config(&self, reference: &str) -> Result<Option<Image>, Error> {
        let is_digest = reference.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64);
        if !is_digest {
            return Ok(None);
        }
        for image in self.image_records().await? {
            let Some(target) = image.target else { continue };
            let content = match self.image_content(&image.name, &target).await {
                Ok(content) => content,
                Err(e) if e.is_unknown() => return Err(e),
                // An image of another platform, or an incomplete one, does not match.
                Err(_other) => continue,
            };
            if content.config_digest != reference {
                continue;
            }
            return self.found(image.name, target, &content).await.map(Some);
        }
        Ok(None)
    }

    async fn found(&self, name: String, target: Descriptor, content: &Content) -> Result<Image, Error> {
        let image_id = match self.repo_digest(&name, &target.digest).await? {
            Some(canonical) => canonical,
            None => content.config_digest.clone(),
        };
        Ok(Image {
            name,
            image_id,
            config: content.config.clone(),
            chain_id: content.chain_id.clone(),
            target_digest: target.digest,
            config_digest: content.config_digest.clone(),
        })
    }

    /// All images in containerd's store, by name.
    pub async fn images(&self) -> Result<Vec<ImageSummary>, Error> {
        let records = self.image_records().await?;
        let mut all = Vec::with_capacity(records.len());
        for image in records {
            let Some(target) = image.target else { continue };
            let size = match self.image_content(&image.name, &target).await {
                Ok(content) => Some(content.size),
                Err(e) if e.is_unknown() => return Err(e),
                Err(_incomplete) => None,
            };
            all.push(ImageSummary {
                name: image.name,
                target_digest: target.digest,
                size,
                created_at: wire::wall(image.created_at.as_ref()),
            });
        }
        Ok(all)
    }

    /// A name `repository@digest` of the same image, if the store has one.
    async fn repo_digest(&self, name: &str, digest: &str) -> Result<Option<String>, Error> {
        let canonical = format!("{}@{digest}", reference::repository(name));
        if name == canonical {
            return Ok(Some(canonical));
        }
        let found = self.image_record(&canonical).await?;
        Ok(found.and_then(|i| i.target).filter(|t| t.digest == digest).map(|_| canonical))
    }

    /// Manifest and configuration of the image behind `target`; the error is not-found where a blob is
    /// missing.
    pub(crate) async fn image_content(&self, name: &str, target: &Descriptor) -> Result<Arc<Content>, Error> {
        if let Some(content) = self.image_cache().get(&target.digest) {
            return Ok(content);
        }
        let content = Arc::new(self.read_content(name, target).await?);
        self.image_cache().put(&target.digest, Arc::clone(&content));
        Ok(content)
    }

    async fn read_content(&self, name: &str, target: &Descriptor) -> Result<Content, Error> {
        let mut bytes = self.blob("manifest", name, &target.digest).await?;
        let mut manifest = Manifest::parse(name, &bytes)?;
        if let Some(chosen) = manifest.of_index(name)? {
            bytes = self.blob("manifest", name, &chosen.digest).await?;
            manifest = Manifest::parse(name, &bytes)?;
        }
        let manifest_size = bytes.len();
        let config = manifest
            .config
            .take()
            .ok_or_else(|| inconsistent(name, "the manifest names no configuration"))?;
        let bytes = self.blob("configuration", name, &config.digest).await?;
        Content::new(name, manifest, manifest_size, config.digest, &bytes)
    }

    async fn blob(&self, what: &'static str, image: &str, digest: &str) -> Result<Vec<u8>, Error> {
        let client = self.client();
        // containerd refuses a size beyond the blob's end, so the request asks for the whole blob and the
        // reader counts.
        let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let mut stream =
            call("read content", digest, QUERY, client.content().read(client.request(request, QUERY)))
                .await?;
        let mut bytes = Vec::new();
        loop {
            let message = stream
                .message()
                .await
                .map_err(|status| crate::client::from_status("read content", &digest, QUERY, status))?;
            let Some(chunk) = message else { return Ok(bytes) };
            let size = (bytes.len() + chunk.data.len()) as u64;
            if size > MAX_BLOB {
                return Err(Error::TooLarge { what, image: image.to_owned(), size, limit: MAX_BLOB });
            }
            bytes.extend_from_slice(&chunk.data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_image_specification() {
        let diffs = ["sha256:a".to_owned(), "sha256:b".to_owned()];
        let chain = chain_ids(&diffs);
        assert_eq!(chain[0], "sha256:a");
        let expected: String =
            Sha256::digest("sha256:a sha256:b").iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(chain[1], format!("sha256:{expected}"));
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn the_manifest_for_this_machine_is_chosen() {
        let d = |digest: &str, arch: Option<&str>| JsonDescriptor {
            media_type: String::new(),
            digest: digest.into(),
            size: 0,
            platform: arch.map(|a| JsonPlatform { architecture: a.into(), os: "linux".into() }),
        };
        let all = [d("other", Some("s390x")), d("silent", None), d("mine", Some(architecture()))];
        assert_eq!(for_this_machine(&all).unwrap().digest, "mine");
        assert_eq!(for_this_machine(&all[..2]).unwrap().digest, "silent");
        assert!(for_this_machine(&all[..1]).is_none());
    }
}
