//! Image pull: containerd's transfer service fetches an image from its registry and unpacks it for the node's snapshotter.
//!
//! A pull has up to two streams: the progress, and the credential, for which the daemon asks where the registry wants
//! one. A lease named after the reference holds what is fetched. The daemon cancels a transfer whose caller is gone, so
//! the lease outlives the agent and the daemon, and the next pull of the reference continues where this one ended. A pull
//! that succeeded, and one that fetched nothing, leaves no lease; that of a pull which is not tried again ends with
//! [`Runtime::release_stale_pulls`], at the latest after [`LEASE`].
//!
//! While containerd is away the pull waits for it, at most [`AWAY`]. A pull without progress for [`PATIENCE`] fails.

mod credentials;
mod progress;

use crate::{
    Image, Runtime,
    client::{QUERY, RECORD, call, from_status},
    error::{Error, Kind, present},
    image::architecture,
    lease::expiry,
    reference,
    stream::open,
    wire,
};
use berth_core::{
    error::Chain,
    image::{Credential, PullProgress},
};
use berth_sys::clock;
use containerd_client::{
    services::v1::{ListRequest, ListResourcesRequest, TransferOptions, TransferRequest},
    to_any,
    types::{
        Platform,
        transfer::{ImageStore, OciRegistry, RegistryResolver, UnpackConfiguration},
    },
};
use progress::Tracker;
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use tokio::{sync::watch, time::sleep};

/// Longest time without any progress, as containerd's own default for the kubelet's pulls.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
/// Longest wait for a containerd that is away.
const AWAY: Duration = Duration::from_secs(300);
/// Pause before a lost containerd is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How often the progress is judged.
const LOOK: Duration = Duration::from_secs(1);
/// The longest life of a pull's lease.
const LEASE: Duration = Duration::from_secs(24 * 3600);
/// The age from which the lease of a pull that nobody makes is stale. The longest back-off is 5 minutes.
pub const STALE: Duration = Duration::from_secs(15 * 60);
/// The label of a pull's lease.
pub(crate) const LABEL_PULL: &str = "berth.dev/pull";
/// The label by which containerd's CRI plugin knows images as its own.
const LABEL_CRI: (&str, &str) = ("io.cri-containerd.image", "managed");
/// What names the leases of pulls.
const LEASE_NAME: &str = "berth-pull-";

/// A pulled image.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The image.
    pub image: Image,
    /// Bytes of the image: manifest, configuration and compressed layers.
    pub size: u64,
}

/// The name of the lease of a reference's pulls.
fn lease_name(reference: &str) -> String {
    let digest = Sha256::digest(reference.as_bytes());
    let hex: String = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
    format!("{LEASE_NAME}{hex}")
}

fn platform() -> Platform {
    Platform { os: "linux".to_owned(), architecture: architecture().to_owned(), ..Platform::default() }
}

impl Runtime {
    /// Pulls an image with one credential, or without any. The caller pulls a reference once at a time. `progress` gets
    /// each change. Dropping the future cancels the pull.
    ///
    /// # Errors
    /// The registry or containerd refuses, or nothing moved for the configured time.
    pub async fn pull(
        &self,
        reference: &str,
        credential: Option<&Credential>,
        progress: &watch::Sender<PullProgress>,
    ) -> Result<Pulled, Error> {
        let name = reference::normalise(reference);
        let lease = lease_name(&name);
        let mut lost: Option<Instant> = None;
        let pulled = loop {
            match self.pull_under(&lease, &name, credential, progress).await {
                Err(e) if e.is_lost() && lost.get_or_insert_with(Instant::now).elapsed() < AWAY => {
                    tracing::info!(image = name, why = %Chain(&e), "containerd is lost in a pull, which waits for it");
                    sleep(AGAIN).await;
                }
                ended => break ended,
            }
        };
        self.end_pull(&lease, pulled.as_ref().err()).await;
        pulled
    }

    async fn pull_under(
        &self,
        lease: &str,
        name: &str,
        credential: Option<&Credential>,
        progress: &watch::Sender<PullProgress>,
    ) -> Result<Pulled, Error> {
        let labels = [(LABEL_PULL, String::new()), expiry(LEASE)];
        present(self.create_lease(lease, &labels).await)?;
        self.transfer(lease, name, credential, progress).await?;
        let found = self.sized_image(name).await;
        if matches!(&found, Err(e) if !e.is_unknown()) {
            // What has nothing for this machine must not count as present.
            self.forget_image_name(name).await?;
        }
        let (image, size) = found?.ok_or_else(|| Error::Image {
            image: name.to_owned(),
            reason: "it is not in the store after its pull".to_owned(),
        })?;
        self.name_by_digest(&image).await?;
        // A containerd that cannot unpack for this snapshotter has only fetched.
        self.unpack(&image, lease).await?;
        // The image has a name by digest now, which its id shows.
        let image = self.resolve_image(name).await?.unwrap_or(image);
        Ok(Pulled { image, size })
    }

    /// Fetches and unpacks. Ends early where nothing moves.
    async fn transfer(
        &self,
        lease: &str,
        name: &str,
        credential: Option<&Credential>,
        progress: &watch::Sender<PullProgress>,
    ) -> Result<(), Error> {
        let client = self.client();
        let mut told = open(client, "pull", lease).await?;
        let auth = match credential {
            Some(credential) => Some(credentials::Answers::start(client, lease, credential.clone()).await?),
            None => None,
        };
        let request = TransferRequest {
            source: Some(to_any(&OciRegistry {
                reference: name.to_owned(),
                resolver: Some(RegistryResolver {
                    auth_stream: auth.as_ref().map(|a| a.stream().to_owned()).unwrap_or_default(),
                    host_dir: self.roots().registry_hosts.display().to_string(),
                    ..RegistryResolver::default()
                }),
            })),
            destination: Some(to_any(&ImageStore {
                name: name.to_owned(),
                labels: HashMap::from([(LABEL_CRI.0.to_owned(), LABEL_CRI.1.to_owned())]),
                platforms: vec![platform()],
                unpacks: vec![UnpackConfiguration {
                    platform: Some(platform()),
                    snapshotter: self.roots().snapshotter.clone(),
                }],
                ..ImageStore::default()
            })),
            options: Some(TransferOptions { progress_stream: told.id.clone() }),
        };
        let mut service = client.transfer();
        let mut transfer = Box::pin(service.transfer(client.with_lease(client.endless(request), lease)));
        let mut tracker = Tracker::default();
        let (patience, mut moved, mut listening) = (self.config().pull_patience, Instant::now(), true);
        loop {
            tokio::select! {
                done = &mut transfer => {
                    let refused = |status| from_status("pull and unpack image", &name, patience, status);
                    return done.map(drop).map_err(refused);
                }
                // A broken progress stream alone says nothing about the transfer.
                message = told.receive.message(), if listening => match message {
                    Ok(Some(any)) => {
                        if tracker.take(&any) {
                            moved = Instant::now();
                            progress.send_replace(tracker.progress().clone());
                        }
                    }
                    Ok(None) | Err(_) => listening = false,
                },
                () = sleep(LOOK) => {}
            }
            if moved.elapsed() >= patience {
                return Err(Error::Stalled { image: name.to_owned(), after: patience });
            }
        }
    }

    /// Gives the image its name by digest, from which its id is made. A name that points elsewhere is corrected.
    async fn name_by_digest(&self, image: &Image) -> Result<(), Error> {
        let canonical = format!("{}@{}", reference::repository(&image.name), image.target_digest);
        if canonical == image.name {
            return Ok(());
        }
        self.tag_image(&image.name, &canonical).await.map(drop)
    }

    /// Releases the lease of a pull that succeeded, fetched nothing, or fetched something wrong, which must not be
    /// continued. Otherwise the lease stays for the next try.
    async fn end_pull(&self, lease: &str, failure: Option<&Error>) {
        let ended = match failure {
            Some(e) if e.is_unknown() || e.is_lost() => return,
            Some(e @ Error::Call { .. }) if e.kind() != Kind::Precondition => {
                match self.holds_something(lease).await {
                    Ok(true) => return,
                    Ok(false) => self.end_lease(lease, false).await,
                    Err(e) => Err(e),
                }
            }
            Some(_wrong_content) => self.end_lease(lease, true).await,
            None => self.end_lease(lease, false).await,
        };
        if let Err(error) = ended {
            tracing::warn!(%lease, error = %Chain(&error), "cannot release the lease of an image pull");
        }
    }

    async fn holds_something(&self, lease: &str) -> Result<bool, Error> {
        let client = self.client();
        let request = ListResourcesRequest { id: lease.to_owned() };
        let mut service = client.leases();
        let list = service.list_resources(client.request(request, QUERY));
        Ok(!call("list resources of lease", lease, QUERY, list).await?.resources.is_empty())
    }

    /// Releases the leases of pulls that ended without success and were not tried again for [`STALE`]. `busy` are the
    /// references whose pulls are under way. Returns whether there are other leases of pulls, which may become stale.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn release_stale_pulls(&self, busy: &[String]) -> Result<bool, Error> {
        let client = self.client();
        let request = ListRequest { filters: vec![format!("labels.\"{LABEL_PULL}\"")] };
        let mut service = client.leases();
        let list = service.list(client.request(request, RECORD));
        let leases = call("list", "leases", RECORD, list).await?.leases;
        let busy: Vec<String> = busy.iter().map(|r| lease_name(&reference::normalise(r))).collect();
        let (now, mut left) = (clock::wall(), false);
        for lease in leases.into_iter().filter(|l| l.id.starts_with(LEASE_NAME) && !busy.contains(&l.id)) {
            let created = wire::wall(lease.created_at.as_ref()).unwrap_or(now);
            let age = u64::try_from(now.0.saturating_sub(created.0)).unwrap_or(0);
            if Duration::from_nanos(age) >= STALE {
                self.delete_lease(&lease.id).await?;
                tracing::info!(lease = lease.id, "lease of an abandoned image pull released");
            } else {
                left = true;
            }
        }
        Ok(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_has_one_lease() {
        let name = lease_name("docker.io/library/busybox:1");
        assert_eq!(name, lease_name("docker.io/library/busybox:1"));
        assert_ne!(name, lease_name("docker.io/library/busybox:2"));
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "{name}");
    }
}
