//! The content of a registry: blobs by digest, and manifests by repository and tag or digest.

use super::Registry;
use crate::oci;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    io::Write,
    process::{Command, Stdio},
    sync::Arc,
};

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Tar,
    /// By gzip.
    Gzip,
    /// By zstd.
    Zstd,
}

impl Encoding {
    fn media_type(self) -> &'static str {
        match self {
            Encoding::Tar => "application/vnd.oci.image.layer.v1.tar",
            Encoding::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Encoding::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    fn encode(self, tar: Vec<u8>) -> Result<Vec<u8>> {
        match self {
            Encoding::Tar => Ok(tar),
            Encoding::Gzip => filter("gzip", &["-n", "-1"], tar),
            Encoding::Zstd => Ok(zstd(&tar)),
        }
    }
}

/// A manifest or an index.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(super) media_type: String,
    pub(super) bytes: Arc<Vec<u8>>,
}

/// All content.
#[derive(Debug, Default)]
pub(crate) struct Content {
    blobs: HashMap<String, Arc<Vec<u8>>>,
    manifests: HashMap<(String, String), (String, Manifest)>,
}

impl Content {
    pub(super) fn blob(&self, digest: &str) -> Option<Arc<Vec<u8>>> {
        self.blobs.get(digest).cloned()
    }

    pub(super) fn manifest(&self, repository: &str, reference: &str) -> Option<(String, &Manifest)> {
        let (digest, manifest) = self.manifests.get(&(repository.to_owned(), reference.to_owned()))?;
        Some((digest.clone(), manifest))
    }

    fn add_blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = oci::digest(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        self.blobs.insert(digest, Arc::new(bytes));
        descriptor
    }

    /// Adds a manifest under its digest and, where there is one, a tag.
    fn add_manifest(
        &mut self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Value {
        let digest = oci::digest(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        let manifest = Manifest { media_type: media_type.to_owned(), bytes: Arc::new(bytes) };
        for reference in tag.into_iter().chain([digest.as_str()]) {
            let key = (repository.to_owned(), reference.to_owned());
            self.manifests.insert(key, (digest.clone(), manifest.clone()));
        }
        descriptor
    }
}

/// A pushed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushedImage {
    /// The manifest's digest.
    pub digest: String,
    /// Bytes of the configuration and of all layers as they are sent.
    pub bytes: u64,
}

impl Registry {
    /// Adds an image.
    ///
    /// # Errors
    /// A layer is no valid archive, or its compressor does not run.
    pub fn push(
        &self,
        repository: &str,
        tag: &str,
        image: &oci::Image,
        encoding: Encoding,
    ) -> Result<PushedImage> {
        let (mut layers, mut diff_ids, mut bytes) = (Vec::new(), Vec::new(), 0);
        for entries in &image.layers {
            let tar = oci::tar(entries)?;
            diff_ids.push(oci::digest(&tar));
            let encoded = encoding.encode(tar)?;
            bytes += encoded.len() as u64;
            layers.push(self.with_content(|c| c.add_blob(encoding.media_type(), encoded)));
        }
        let config = serde_json::to_vec(&oci::config_document(image, &diff_ids))?;
        bytes += config.len() as u64;
        let config = self.with_content(|c| c.add_blob("application/vnd.oci.image.config.v1+json", config));
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest =
            json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        let manifest = serde_json::to_vec(&manifest)?;
        let added = self.with_content(|c| c.add_manifest(repository, Some(tag), media_type, manifest));
        let digest = added["digest"].as_str().context("a manifest has a digest")?.to_owned();
        Ok(PushedImage { digest, bytes })
    }

    /// Adds an index of one image for another machine alone.
    ///
    /// # Errors
    /// As [`Registry::push`].
    pub fn push_foreign(&self, repository: &str, tag: &str, image: &oci::Image) -> Result<()> {
        let pushed = self.push(repository, "foreign", image, Encoding::Tar)?;
        let manifests = json!([{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": pushed.digest, "size": 1,
            "platform": {"os": "linux", "architecture": "s390x"},
        }]);
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
        let index = serde_json::to_vec(&index)?;
        self.with_content(|c| c.add_manifest(repository, Some(tag), media_type, index));
        Ok(())
    }

    /// Adds a manifest of schema 1, as registries had them until 2017.
    pub fn push_schema1(&self, repository: &str, tag: &str) {
        let text = json!({"schemaVersion": 1, "name": repository, "tag": tag, "architecture": "amd64",
            "fsLayers": [], "history": [], "signatures": []});
        let media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        self.with_content(|c| {
            c.add_manifest(repository, Some(tag), media_type, text.to_string().into_bytes())
        });
    }

    /// Lets a tag answer with the digest of something else.
    ///
    /// # Errors
    /// There is no such tag.
    pub fn set_wrong_digest(&self, repository: &str, tag: &str) -> Result<()> {
        self.with_content(|c| {
            let key = (repository.to_owned(), tag.to_owned());
            let (digest, manifest) = c.manifests.get_mut(&key).context("there is such a tag")?;
            *digest = oci::digest(b"something else");
            let by_digest = (digest.clone(), manifest.clone());
            c.manifests.insert((repository.to_owned(), by_digest.0.clone()), by_digest);
            Ok(())
        })
    }
}

/// Runs a program as a filter.
fn filter(program: &str, args: &[&str], input: Vec<u8>) -> Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {program}"))?;
    let mut stdin = child.stdin.take().context("its input")?;
    let writing = std::thread::spawn(move || stdin.write_all(&input));
    let out = child.wait_with_output()?;
    drop(writing.join());
    ensure!(out.status.success(), "{program} failed");
    Ok(out.stdout)
}

/// A zstd frame of blocks that are not compressed (RFC 8878, 3.1.1).
fn zstd(bytes: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 64 << 10;
    // Magic number; no checksum, no dictionary, no content size; a window of 128 KiB.
    let mut out = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38];
    let blocks = bytes.chunks(BLOCK).count().max(1);
    for (n, block) in bytes.chunks(BLOCK).enumerate() {
        let last = usize::from(n + 1 == blocks);
        let header = (block.len() << 3 | last).to_le_bytes();
        out.extend_from_slice(header.get(..3).unwrap_or_default());
        out.extend_from_slice(block);
    }
    out
}
