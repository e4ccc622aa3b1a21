//! The image of a container: found in containerd or pulled, as the pull policy wants, or the reason why the container
//! cannot start.

use super::no_such_container;
use crate::{
    NodeConfig, NodeExecutor, pull_credentials,
    pulls::{PullByHand, PullState},
};
use berth_core::{
    error::Chain,
    ids::ContainerName,
    image::{Sourced, provider::PullPod},
    model::{Container, PullPolicy},
    plan::{Fact, Failure},
    sync::lock,
};
use berth_pods::{ActionResult, Context, NodeEvent, WorkerMessage};
use berth_runtime::{Image, reference};
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

/// How long a resolved image counts as present without another query.
const IMAGE_FRESH: Duration = Duration::from_secs(2);

/// The most resolved images in the cache.
const MOST_IMAGES: usize = 128;

impl NodeExecutor {
    pub(crate) async fn ensure_image(
        &self,
        context: &Context,
        container: &ContainerName,
    ) -> Result<ActionResult, Failure> {
        let pod = &context.pod;
        let spec = pod.container(container).ok_or_else(no_such_container)?;
        self.claim(&pod.uid, None).await;
        valid_name(&spec.image)?;
        let mut facts = Vec::new();
        let present = match spec.pull_policy {
            PullPolicy::Always => None,
            PullPolicy::IfNotPresent | PullPolicy::Never => self.fresh_image(spec).await?,
        };
        let own = OnceCell::new();
        let present = match present {
            Some(image) if self.must_pull(context, spec, &image, &own).await? => None,
            present => present,
        };
        let image = match present {
            Some(image) => image,
            // A pod does not learn of an image that it may not use.
            None if spec.pull_policy == PullPolicy::Never => {
                return Err(Failure::new(
                    "ErrImageNeverPull",
                    format!("Container image {:?} is not present with pull policy of Never", spec.image),
                ));
            }
            None => self.pull_image(context, spec, &own, &mut facts).await?,
        };
        // The lease and the user files need no sandbox, so they are prepared before it is ready. A failure
        // here is only logged: the start tries again and reports the failure.
        let runtime = self.runtime()?;
        let (lease, users) = tokio::join!(runtime.ensure_lease(&pod.uid), self.users.of(&runtime, &image));
        if let (Err(e), _) | (Ok(()), Err(e)) =
            (lease.map_err(|e| Failure::new("FailedSync", Chain(&e))), users.map(drop))
        {
            tracing::debug!(pod = %pod.key, why = e.message, "cannot prepare the start: the start itself tries again");
        }
        Ok(ActionResult { facts, ..ActionResult::done(Vec::new()) })
    }

    /// Pulls the container's image, together with other containers that want the same with the same credentials.
    async fn pull_image(
        &self,
        context: &Context,
        spec: &Container,
        own: &OnceCell<Vec<Sourced>>,
        facts: &mut Vec<Fact>,
    ) -> Result<Image, Failure> {
        let begun = Instant::now();
        let missing = pull_credentials::missing(context);
        let missing = (!missing.is_empty()).then_some(Fact::PullSecretsMissing(missing));
        for fact in missing.into_iter().chain([Fact::Pulling(spec.name.clone())]) {
            let message = WorkerMessage::Learned(fact);
            // A manager that has ended needs no message.
            self.incoming.send(NodeEvent::One(context.pod.uid.clone(), message)).await.ok();
        }
        let candidates = self.candidates(context, spec, own).await?;
        let runtime = self.runtime()?;
        self.records.begin(&spec.image).await?;
        let credentials = candidates.iter().map(|c| c.credential.clone()).collect();
        let pulled = match self.pulls.pull(runtime, &spec.image, credentials).await {
            Ok(pulled) => pulled,
            Err(message) => {
                self.records.failed(&spec.image).await?;
                return Err(Failure::new("ErrImagePull", message));
            }
        };
        let used = pulled.used.and_then(|n| candidates.get(n));
        self.records.pulled(&spec.image, &pulled.image.config_digest, used).await?;
        facts.push(Fact::Pulled {
            container: spec.name.clone(),
            took: pulled.took,
            waited: begun.elapsed(),
            size: pulled.size,
        });
        self.keep_image(&spec.image, &pulled.image);
        Ok(pulled.image)
    }

    /// The credentials for the container's image, looked up once.
    async fn candidates<'o>(
        &self,
        context: &Context,
        spec: &Container,
        own: &'o OnceCell<Vec<Sourced>>,
    ) -> Result<&'o [Sourced], Failure> {
        let NodeConfig { roots, plugins, .. } = &self.config;
        let look = || pull_credentials::candidates(roots, plugins, context, &spec.image);
        own.get_or_try_init(look).await.map(Vec::as_slice)
    }

    /// Whether a present image does not serve this pod before the pod has pulled it itself.
    async fn must_pull(
        &self,
        context: &Context,
        spec: &Container,
        image: &Image,
        own: &OnceCell<Vec<Sourced>>,
    ) -> Result<bool, Failure> {
        let own = self.candidates(context, spec, own);
        self.records.must_pull(&spec.image, &image.config_digest, own).await
    }

    /// Pulls an image for a person, with the credentials of the node.
    ///
    /// # Errors
    /// The name is no valid one, or containerd has not answered yet.
    pub async fn pull_by_hand(&self, image: &str) -> Result<PullByHand, Failure> {
        valid_name(image)?;
        let full = reference::normalise(image);
        let repository = reference::repository(&full);
        let mut found = pull_credentials::of_node(&self.config.roots).await?.candidates(repository);
        let plugins = self.config.plugins.keyring(repository, &PullPod::default()).await;
        found.extend(plugins.candidates(repository));
        let credentials = found.into_iter().map(|c| c.credential).collect();
        Ok(self.pulls.join(self.runtime()?, image, credentials))
    }

    /// The pulls that are under way.
    pub fn pulls(&self) -> Vec<PullState> {
        self.pulls.list()
    }

    /// The image from the cache where it was resolved within [`IMAGE_FRESH`], else from containerd; `None` where it is
    /// not on the node. The cache serves the start that follows `EnsureImage`, and other pods with the same image.
    pub(super) async fn fresh_image(&self, spec: &Container) -> Result<Option<Image>, Failure> {
        let found = lock(&self.images)
            .get(&spec.image)
            .filter(|(at, _)| at.elapsed() < IMAGE_FRESH)
            .map(|(_, i)| i.clone());
        if found.is_some() {
            return Ok(found);
        }
        let found = self.runtime()?.resolve_image(&spec.image).await;
        let found = found.map_err(|e| Failure::new("ImageInspectError", Chain(&e)))?;
        if let Some(image) = &found {
            self.keep_image(&spec.image, image);
        }
        Ok(found)
    }

    fn keep_image(&self, name: &str, image: &Image) {
        let mut images = lock(&self.images);
        if images.len() >= MOST_IMAGES {
            images.clear();
        }
        images.insert(name.to_owned(), (Instant::now(), image.clone()));
    }
}

fn valid_name(image: &str) -> Result<(), Failure> {
    let Some(fault) = reference::fault(image) else { return Ok(()) };
    let text =
        format!("Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {fault}");
    Err(Failure::new("InvalidImageName", text))
}
