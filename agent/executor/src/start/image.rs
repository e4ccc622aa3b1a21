//! The image of a container: found in containerd, or the reason why the container cannot start.

use super::no_such_container;
use crate::NodeExecutor;
use berth_core::{
    error::Chain,
    ids::ContainerName,
    model::{Container, Pod, PullPolicy},
    plan::Failure,
    sync::lock,
};
use berth_pods::ActionResult;
use berth_runtime::Image;
use std::time::{Duration, Instant};

/// How long a resolved image counts as present without another query.
const IMAGE_FRESH: Duration = Duration::from_secs(2);

/// The most resolved images in the cache.
const MOST_IMAGES: usize = 128;

impl NodeExecutor {
    pub(crate) async fn ensure_image(
        &self,
        pod: &Pod,
        container: &ContainerName,
    ) -> Result<ActionResult, Failure> {
        let spec = pod.container(container).ok_or_else(no_such_container)?;
        self.claim(&pod.uid, None).await;
        let image = self.fresh_image(spec).await?;
        // The lease and the user files need no sandbox, so they are prepared before it is ready. A failure
        // here is only logged: the start tries again and reports the failure.
        let runtime = self.runtime()?;
        let (lease, users) = tokio::join!(runtime.ensure_lease(&pod.uid), self.users.of(&runtime, &image));
        if let (Err(e), _) | (Ok(()), Err(e)) =
            (lease.map_err(|e| Failure::new("FailedSync", Chain(&e))), users.map(drop))
        {
            tracing::debug!(pod = %pod.key, why = e.message, "cannot prepare the start: the start itself tries again");
        }
        Ok(ActionResult::done(Vec::new()))
    }

    /// The image from the cache where it was resolved within [`IMAGE_FRESH`], else from containerd. The cache
    /// serves the start that follows `EnsureImage`, and other pods with the same image.
    pub(super) async fn fresh_image(&self, spec: &Container) -> Result<Image, Failure> {
        let found = lock(&self.images)
            .get(&spec.image)
            .filter(|(at, _)| at.elapsed() < IMAGE_FRESH)
            .map(|(_, i)| i.clone());
        if let Some(image) = found {
            return Ok(image);
        }
        let image = self.image(spec).await?;
        let mut images = lock(&self.images);
        if images.len() >= MOST_IMAGES {
            images.clear();
        }
        images.insert(spec.image.clone(), (Instant::now(), image.clone()));
        Ok(image)
    }

    async fn image(&self, spec: &Container) -> Result<Image, Failure> {
        if let Some(fault) = berth_runtime::reference::fault(&spec.image) {
            return Err(Failure::new(
                "InvalidImageName",
                format!(
                    "Failed to apply default image tag {0:?}: couldn't parse image name {0:?}: {fault}",
                    spec.image
                ),
            ));
        }
        let found = self.runtime()?.resolve_image(&spec.image).await;
        match found.map_err(|e| Failure::new("ImageInspectError", Chain(&e)))? {
            Some(image) => Ok(image),
            None if spec.pull_policy == PullPolicy::Never => Err(Failure::new(
                "ErrImageNeverPull",
                format!("Container image {:?} is not present with pull policy of Never", spec.image),
            )),
            None => Err(Failure::new(
                "ErrImagePull",
                format!(
                    "image {:?} is not on this node, and this build does not pull from registries: import it with \
                     `berth image import FILE`",
                    spec.image
                ),
            )),
        }
    }
}
