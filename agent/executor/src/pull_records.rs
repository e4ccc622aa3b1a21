//! The records of pulls below the node's root directory (`image_manager`), in the kubelet's format and places: which pulls
//! were begun, and with whose credentials each image was pulled (KEP-2535). What follows from them is decided in
//! `berth_core::image::pull_record`.
//!
//! One lock is held for a whole look or change. An intent is written before its pull begins, and goes after the record
//! of its success is written. Where the agent dies in between, or the wish for the pull ends, the intent stays: the image
//! counts as pulled for a pod, and a pod without credentials does not get it. An unreadable record is one that grants
//! nothing.

use crate::node_executor::blocking;
use berth_core::{
    image::{
        Sourced,
        pull_record::{
            Access, Match, PullCredentials, PullIntent, PulledRecord, VerificationPolicy, file_name,
            is_file_name, repository_of,
        },
    },
    plan::Failure,
};
use serde::Serialize;
use std::{
    collections::{BTreeSet, HashMap},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::Mutex;

/// The largest record that is read.
const MAX_RECORD: usize = 1 << 20;

/// The records of a node.
#[derive(Debug)]
pub(crate) struct PullRecords {
    policy: VerificationPolicy,
    dirs: Arc<Dirs>,
    /// The pulls that are under way, by image. Held for a whole look or change.
    begun: Mutex<HashMap<String, usize>>,
}

#[derive(Debug)]
struct Dirs {
    pulling: PathBuf,
    pulled: PathBuf,
}

impl PullRecords {
    pub(crate) fn new(root: &Path, policy: VerificationPolicy) -> PullRecords {
        let dir = root.join("image_manager");
        let dirs = Arc::new(Dirs { pulling: dir.join("pulling"), pulled: dir.join("pulled") });
        PullRecords { policy, dirs, begun: Mutex::default() }
    }

    /// Whether a present image has to be pulled with the pod's own credentials, which `pod` looks up where they decide.
    pub(crate) async fn must_pull<'p>(
        &self,
        image: &str,
        image_ref: &str,
        pod: impl Future<Output = Result<&'p [Sourced], Failure>>,
    ) -> Result<bool, Failure> {
        if self.policy == VerificationPolicy::NeverVerify {
            return Ok(false);
        }
        let repository = repository_of(image);
        let record = {
            let begun = self.begun.lock().await;
            let (dirs, name, id) = (Arc::clone(&self.dirs), image.to_owned(), image_ref.to_owned());
            let found = blocking(move || (dirs.record(&id), dirs.has_intent(&name))).await?;
            let (record, intent) = match found {
                (Ok(record), Ok(intent)) => (record, intent),
                (Err(e), _) | (_, Err(e)) => {
                    tracing::warn!(image, %e, "cannot read the records of image pulls: the image is pulled again");
                    return Ok(true);
                }
            };
            let was_pulled = record.is_some() || intent || begun.contains_key(image);
            let mapping = record.as_ref().and_then(|r| r.credential_mapping.get(repository));
            match self.policy.decide(repository, was_pulled, mapping) {
                Access::Granted => return Ok(false),
                Access::MustPull => return Ok(true),
                Access::AskPod => mapping.cloned().unwrap_or_default(),
            }
        };
        match record.grants(pod.await?) {
            Match::Found => Ok(false),
            Match::None => Ok(true),
            Match::Changed(credentials) => {
                let _held = self.begun.lock().await;
                self.write_pulled(image, image_ref, credentials).await?;
                Ok(false)
            }
        }
    }

    /// Takes that a pull begins.
    ///
    /// # Errors
    /// The intent cannot be written: without one nobody would know later whose the image is.
    pub(crate) async fn begin(&self, image: &str) -> Result<(), Failure> {
        let mut begun = self.begun.lock().await;
        let (dirs, name) = (Arc::clone(&self.dirs), image.to_owned());
        let written = blocking(move || dirs.write(&dirs.pulling, &name, &PullIntent::of(&name))).await?;
        written.map_err(|e| {
            let text = format!("Failed to record image pull intent for container image {image:?}: {e}");
            Failure::new("ErrImagePull", text)
        })?;
        *begun.entry(image.to_owned()).or_default() += 1;
        Ok(())
    }

    /// Takes that a pull has succeeded, with this credential.
    pub(crate) async fn pulled(
        &self,
        image: &str,
        image_ref: &str,
        used: Option<&Sourced>,
    ) -> Result<(), Failure> {
        let mut begun = self.begun.lock().await;
        if self.write_pulled(image, image_ref, PullCredentials::of(used)).await? {
            self.end(&mut begun, image).await?;
        }
        Ok(())
    }

    /// Takes that a pull has failed.
    pub(crate) async fn failed(&self, image: &str) -> Result<(), Failure> {
        let mut begun = self.begun.lock().await;
        self.end(&mut begun, image).await
    }

    async fn end(&self, begun: &mut HashMap<String, usize>, image: &str) -> Result<(), Failure> {
        match begun.get_mut(image) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                let path = self.dirs.pulling.join(file_name(image));
                match blocking(move || berth_sys::fs::remove_if_there(&path)).await? {
                    Ok(()) => drop(begun.remove(image)),
                    Err(e) => tracing::warn!(image, %e, "cannot remove the record of a begun image pull"),
                }
            }
        }
        Ok(())
    }

    /// Adds credentials to an image's record; whether the record is there afterwards.
    async fn write_pulled(
        &self,
        image: &str,
        image_ref: &str,
        credentials: PullCredentials,
    ) -> Result<bool, Failure> {
        let (dirs, name, id) = (Arc::clone(&self.dirs), image.to_owned(), image_ref.to_owned());
        let written = blocking(move || dirs.add(&name, &id, Some(&credentials))).await?;
        if let Err(e) = &written {
            tracing::error!(image, image_ref, %e, "cannot write the record of a pulled image");
        }
        Ok(written.is_ok())
    }

    /// Turns the intents of an earlier agent whose images are there into records that grant nothing. `images`: names and
    /// id of each image of the store.
    pub(crate) async fn adopt(&self, images: Vec<(Vec<String>, String)>) -> Result<(), Failure> {
        let begun = self.begun.lock().await;
        let (dirs, busy) = (Arc::clone(&self.dirs), begun.keys().cloned().collect::<BTreeSet<_>>());
        blocking(move || {
            for intent in dirs.intents().into_iter().filter(|intent| !busy.contains(intent)) {
                let full = berth_runtime::reference::candidates(&intent);
                let Some((_, id)) = images.iter().find(|(names, _)| names.iter().any(|n| full.contains(n)))
                else {
                    continue;
                };
                let kept = dirs
                    .add(&intent, id, None)
                    .and_then(|()| berth_sys::fs::remove_if_there(&dirs.pulling.join(file_name(&intent))));
                if let Err(e) = kept {
                    tracing::warn!(image = intent, %e, "cannot adopt the record of a begun image pull");
                }
            }
        })
        .await
    }

    /// Removes the records of images that are not there. Records younger than `until` stay.
    pub(crate) async fn prune(
        &self,
        present: BTreeSet<String>,
        until: jiff::Timestamp,
    ) -> Result<(), Failure> {
        let _held = self.begun.lock().await;
        let dirs = Arc::clone(&self.dirs);
        blocking(move || {
            for (path, bytes) in files(&dirs.pulled) {
                let Some(record) = PulledRecord::read(&bytes) else { continue };
                let at = record.last_updated_time.as_deref().and_then(|t| t.parse::<jiff::Timestamp>().ok());
                if present.contains(&record.image_ref) || at.is_some_and(|at| at >= until) {
                    continue;
                }
                if let Err(e) = berth_sys::fs::remove_if_there(&path) {
                    tracing::warn!(image = record.image_ref, %e, "cannot remove the record of a pulled image");
                }
            }
        })
        .await
    }
}

impl Dirs {
    fn write(&self, dir: &Path, name: &str, record: &impl Serialize) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut json = serde_json::to_vec(record).map_err(io::Error::other)?;
        json.push(b'\n');
        berth_sys::fs::write_atomic(&dir.join(file_name(name)), &json, 0o600).map_err(io::Error::other)
    }

    fn has_intent(&self, image: &str) -> io::Result<bool> {
        let Some(bytes) = read(&self.pulling.join(file_name(image)))? else { return Ok(false) };
        let intent = PullIntent::read(&bytes).ok_or_else(|| io::Error::other("it is no ImagePullIntent"))?;
        Ok(intent.image == image)
    }

    fn record(&self, image_ref: &str) -> io::Result<Option<PulledRecord>> {
        let Some(bytes) = read(&self.pulled.join(file_name(image_ref)))? else { return Ok(None) };
        let record =
            PulledRecord::read(&bytes).ok_or_else(|| io::Error::other("it is no ImagePulledRecord"))?;
        Ok(Some(record).filter(|record| record.image_ref == image_ref))
    }

    /// Adds credentials to a record. One that cannot be read is replaced, as the kubelet does.
    fn add(&self, image: &str, image_ref: &str, credentials: Option<&PullCredentials>) -> io::Result<()> {
        // Seconds, as Go writes the time of an object.
        let at = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let repository = repository_of(image);
        let record = match (self.record(image_ref).unwrap_or_default(), credentials) {
            (None, _) => Some(PulledRecord::new(image_ref, repository, credentials, &at)),
            (Some(known), Some(credentials)) => known.with(repository, credentials, &at),
            (Some(_), None) => None,
        };
        match record {
            Some(record) => self.write(&self.pulled, image_ref, &record),
            None => Ok(()),
        }
    }

    fn intents(&self) -> Vec<String> {
        let read = |(_, bytes): (PathBuf, Vec<u8>)| PullIntent::read(&bytes).map(|intent| intent.image);
        files(&self.pulling).into_iter().filter_map(read).collect()
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match berth_sys::fs::read_limited(path, MAX_RECORD) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(berth_sys::Error::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io::Error::other(e)),
    }
}

/// The finished records of a directory.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let names = entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_file_name));
    names.filter_map(|entry| Some((entry.path(), read(&entry.path()).ok()??))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::image::{Credential, CredentialSource, ObjectCoordinates};

    const ID: &str = "sha256:aa";
    const IMAGE: &str = "a.test/x:1";

    fn secret(name: &str, password: &str) -> Sourced {
        let object = ObjectCoordinates { uid: name.into(), namespace: "ns".into(), name: name.into() };
        Sourced {
            credential: Credential::basic("u", password),
            source: Some(CredentialSource::Secret(object)),
        }
    }

    async fn must(records: &PullRecords, pod: &[Sourced]) -> bool {
        records.must_pull(IMAGE, ID, async { Ok(pod) }).await.unwrap()
    }

    #[tokio::test]
    async fn an_image_serves_the_pods_with_the_secret_that_pulled_it() {
        let dir = tempfile::tempdir().unwrap();
        let records = PullRecords::new(dir.path(), VerificationPolicy::default());
        assert!(!must(&records, &[]).await, "nobody pulled it here: it is preloaded");
        records.begin(IMAGE).await.unwrap();
        assert!(must(&records, &[secret("s", "p")]).await, "the pull has not ended");
        records.pulled(IMAGE, ID, Some(&secret("s", "p"))).await.unwrap();
        assert!(std::fs::read_dir(dir.path().join("image_manager/pulling")).unwrap().next().is_none());
        assert!(must(&records, &[]).await);
        assert!(must(&records, &[secret("t", "other")]).await);
        assert!(!must(&records, &[secret("s", "p")]).await);
        assert!(!must(&records, &[secret("t", "p")]).await, "the same credential in another secret");
        assert!(!must(&records, &[secret("t", "new")]).await, "the other secret is recorded by now");
        // A restarted agent knows it, too.
        let records = PullRecords::new(dir.path(), VerificationPolicy::default());
        assert!(must(&records, &[]).await && !must(&records, &[secret("s", "p")]).await);
        // A pull without credentials opens the image to everyone.
        records.begin(IMAGE).await.unwrap();
        records.pulled(IMAGE, ID, None).await.unwrap();
        assert!(!must(&records, &[]).await);
    }

    #[tokio::test]
    async fn an_intent_of_a_dead_agent_is_adopted_and_grants_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let policy = VerificationPolicy::default;
        PullRecords::new(dir.path(), policy()).begin(IMAGE).await.unwrap();
        let records = PullRecords::new(dir.path(), policy());
        assert!(must(&records, &[]).await, "the pull may have succeeded");
        records.adopt(vec![(vec!["other.test/x:1".into()], "sha256:bb".into())]).await.unwrap();
        assert!(must(&records, &[]).await);
        records.adopt(vec![(vec![IMAGE.into()], ID.into())]).await.unwrap();
        assert!(std::fs::read_dir(dir.path().join("image_manager/pulling")).unwrap().next().is_none());
        assert!(must(&records, &[secret("s", "p")]).await, "it is not known whose it is");
        records.prune([ID.to_owned()].into(), jiff::Timestamp::MAX).await.unwrap();
        assert!(must(&records, &[]).await, "the image is there");
        records.prune(BTreeSet::new(), jiff::Timestamp::UNIX_EPOCH).await.unwrap();
        assert!(must(&records, &[]).await, "the record is younger than the round");
        records.prune(BTreeSet::new(), jiff::Timestamp::MAX).await.unwrap();
        assert!(!must(&records, &[]).await, "without an image there is no record");
    }

    #[tokio::test]
    async fn an_unreadable_record_grants_nothing_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let records = PullRecords::new(dir.path(), VerificationPolicy::default());
        let pulled = dir.path().join("image_manager/pulled");
        std::fs::create_dir_all(&pulled).unwrap();
        std::fs::write(pulled.join(file_name(ID)), b"{").unwrap();
        assert!(must(&records, &[secret("s", "p")]).await);
        records.begin(IMAGE).await.unwrap();
        records.pulled(IMAGE, ID, Some(&secret("s", "p"))).await.unwrap();
        assert!(!must(&records, &[secret("s", "p")]).await);
        let failed = PullRecords::new(dir.path(), VerificationPolicy::default());
        failed.begin("b.test/y").await.unwrap();
        failed.failed("b.test/y").await.unwrap();
        assert!(std::fs::read_dir(dir.path().join("image_manager/pulling")).unwrap().next().is_none());
    }
}
