//! Check of an image: every blob by its digest, and the snapshots of its layers. Nothing cached is used.

use super::{Manifest, chain_ids};
use crate::{
    Runtime,
    client::{QUERY, call, from_status},
    error::{Error, absent},
};
use containerd_client::services::v1::{InfoRequest, ReadContentRequest};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

/// A damaged or missing part of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The part: `manifest`, `configuration`, `layer 2`, `snapshot of layer 2`.
    pub part: String,
    /// Its digest, or the key of the snapshot.
    pub digest: String,
    /// What is wrong.
    pub reason: String,
}

/// The result of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// The name that was checked.
    pub name: String,
    /// Number of blobs that were read.
    pub blobs: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// What is damaged; empty for a sound image.
    pub damage: Vec<Damage>,
}

/// What reading a blob has shown.
enum Blob {
    Sound(Vec<u8>, u64),
    Damaged(String),
}

#[derive(Deserialize)]
struct ConfigDocument {
    rootfs: Option<super::RootFs>,
}

impl Runtime {
    /// Checks the image of exactly this name, or of the full form of `reference`. `None` where there is no such name.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn verify_image(&self, reference: &str) -> Result<Option<Verified>, Error> {
        for name in crate::reference::candidates(reference) {
            if let Some(target) = self.image_record(&name).await?.and_then(|record| record.target) {
                let mut check = Verified { name: name.clone(), ..Verified::default() };
                self.verify(&name, target.digest, &mut check).await?;
                return Ok(Some(check));
            }
        }
        Ok(None)
    }

    async fn verify(&self, name: &str, target: String, check: &mut Verified) -> Result<(), Error> {
        let Some(mut bytes) = self.verify_blob("manifest", &target, check).await? else { return Ok(()) };
        let mut digest = target;
        let mut manifest = match Manifest::parse(name, &bytes) {
            Ok(manifest) => manifest,
            Err(_unreadable) => return unreadable(check, "manifest", &digest),
        };
        let chosen = match manifest.of_index(name) {
            Ok(chosen) => chosen.map(|d| d.digest.clone()),
            Err(e) => {
                check.damage.push(Damage { part: "index".into(), digest, reason: e.to_string() });
                return Ok(());
            }
        };
        if let Some(chosen) = chosen {
            let Some(of_platform) = self.verify_blob("manifest", &chosen, check).await? else {
                return Ok(());
            };
            (bytes, digest) = (of_platform, chosen);
            manifest = match Manifest::parse(name, &bytes) {
                Ok(manifest) => manifest,
                Err(_unreadable) => return unreadable(check, "manifest", &digest),
            };
        }
        for (n, layer) in manifest.layers.iter().enumerate() {
            self.verify_blob(&format!("layer {n}"), &layer.digest, check).await?;
        }
        let Some(config) = manifest.config else { return unreadable(check, "manifest", &digest) };
        let Some(bytes) = self.verify_blob("configuration", &config.digest, check).await? else {
            return Ok(());
        };
        let Ok(document) = serde_json::from_slice::<ConfigDocument>(&bytes) else {
            return unreadable(check, "configuration", &config.digest);
        };
        let diff_ids = document.rootfs.map(|r| r.diff_ids).unwrap_or_default();
        for (n, chain_id) in chain_ids(&diff_ids).into_iter().enumerate() {
            if !self.has_snapshot(&chain_id).await? {
                let part = format!("snapshot of layer {n}");
                check.damage.push(Damage { part, digest: chain_id, reason: "it is missing".into() });
            }
        }
        Ok(())
    }

    /// The content of a sound blob; `None` where it is damaged, which is noted.
    async fn verify_blob(
        &self,
        part: &str,
        digest: &str,
        check: &mut Verified,
    ) -> Result<Option<Vec<u8>>, Error> {
        match self.read_and_hash(digest).await? {
            Blob::Sound(content, size) => {
                check.blobs += 1;
                check.bytes = check.bytes.saturating_add(size);
                Ok(Some(content))
            }
            Blob::Damaged(reason) => {
                check.damage.push(Damage { part: part.to_owned(), digest: digest.to_owned(), reason });
                Ok(None)
            }
        }
    }

    async fn read_and_hash(&self, digest: &str) -> Result<Blob, Error> {
        let Some(wanted) = digest.strip_prefix("sha256:") else {
            return Ok(Blob::Damaged("its digest is no sha256".into()));
        };
        let client = self.client();
        let mut service = client.content();
        let info = service.info(client.request(InfoRequest { digest: digest.to_owned() }, QUERY));
        let info = absent(call("look up content", digest, QUERY, info).await)?;
        let Some(info) = info.and_then(|i| i.info) else { return Ok(Blob::Damaged("it is missing".into())) };
        let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        // A large layer takes its time; each piece of it has a deadline.
        let read = call("read content", digest, QUERY, service.read(client.endless(request))).await;
        let mut stream = match read {
            Ok(stream) => stream,
            Err(e) if e.is_unknown() => return Err(e),
            Err(e) => return Ok(Blob::Damaged(e.cause())),
        };
        let (mut hash, mut size, mut content) = (Sha256::new(), 0_u64, Vec::new());
        loop {
            let message = timeout(QUERY, stream.message()).await.map_err(|_elapsed| Error::Deadline {
                operation: "read content",
                subject: digest.to_owned(),
                after: QUERY,
            })?;
            let chunk = match message.map_err(|s| from_status("read content", &digest, QUERY, s)) {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(e) if e.is_unknown() => return Err(e),
                Err(e) => return Ok(Blob::Damaged(e.cause())),
            };
            hash.update(&chunk.data);
            size = size.saturating_add(chunk.data.len() as u64);
            if size <= super::MAX_BLOB {
                content.extend_from_slice(&chunk.data);
            }
        }
        if u64::try_from(info.size).ok() != Some(size) {
            return Ok(Blob::Damaged(format!("it has {size} bytes instead of {}", info.size)));
        }
        let found: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        if found != wanted {
            return Ok(Blob::Damaged(format!("its content has the digest sha256:{found}")));
        }
        if size > super::MAX_BLOB {
            // A layer: its content is of no use here.
            content = Vec::new();
        }
        Ok(Blob::Sound(content, size))
    }
}

fn unreadable(check: &mut Verified, part: &str, digest: &str) -> Result<(), Error> {
    let reason = "it cannot be read".to_owned();
    check.damage.push(Damage { part: part.to_owned(), digest: digest.to_owned(), reason });
    Ok(())
}
