//! Images and dead containers' layers as image collection sees them: what may be removed, and the removal itself.
//!
//! Which of them go, and when, is the caller's decision (`berth_core::image::collect`). An image counts as in use where a
//! record of any container in the namespace names it, where an active snapshot is based on it, where a pull is under way,
//! and where a wanted pod names it.

use crate::NodeExecutor;
use berth_core::{
    error::Chain, ids::ContainerId, image::collect::Candidate, plan::Failure, sync::lock, time::Wall,
};
use berth_runtime::{FoundState, Runtime, StoredImage, reference};
use std::{collections::BTreeSet, path::PathBuf};

/// An image of the store, and what decides over it.
#[derive(Debug, Clone)]
pub struct CollectableImage {
    /// The image.
    pub image: StoredImage,
    /// What decides over it.
    pub candidate: Candidate,
}

fn failed(error: &berth_runtime::Error) -> Failure {
    Failure::new("ImageGCFailed", Chain(error))
}

/// Whether a name as a pod has it is one of this image.
fn is_named(image: &StoredImage, name: &str) -> bool {
    image.id == name || reference::candidates(name).iter().any(|full| image.names.contains(full))
}

impl NodeExecutor {
    /// The images of the store. `wanted` are the images of all pods that are to run here, as the pods name them.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn collectable_images(
        &self,
        wanted: &BTreeSet<String>,
    ) -> Result<Vec<CollectableImage>, Failure> {
        let images = self.runtime()?.stored_images().await.map_err(|e| failed(&e))?;
        let pulls: Vec<String> = self.pulls().into_iter().map(|pull| pull.image).collect();
        let collectable = |image: StoredImage| {
            let named = |name: &String| is_named(&image, name);
            let in_use = image.used || wanted.iter().any(named) || pulls.iter().any(named);
            let candidate = Candidate {
                id: image.id.clone(),
                in_use,
                pinned: image.pinned,
                leased: image.leased,
                created_at: image.created_at,
            };
            CollectableImage { image, candidate }
        };
        Ok(images.into_iter().map(collectable).collect())
    }

    /// Removes an image with all its names.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn remove_image(&self, image: &StoredImage) -> Result<(), Failure> {
        lock(&self.images).retain(|_, (_, known)| known.config_digest != image.id);
        self.runtime()?.remove_names(&image.names).await.map_err(|e| failed(&e))
    }

    /// Removes the writable layers of containers that have ended. Their records and their output stay, as the pods' statuses
    /// need them. Returns how many there were.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn remove_dead_layers(&self) -> Result<usize, Failure> {
        let runtime = self.runtime()?;
        let dead = dead_with_layer(&runtime).await?;
        for id in &dead {
            runtime.remove_layer(id).await.map_err(|e| failed(&e))?;
        }
        if !dead.is_empty() {
            runtime.collect_garbage().await.map_err(|e| failed(&e))?;
        }
        Ok(dead.len())
    }

    /// Takes the records of begun pulls that an earlier agent left.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn adopt_pull_records(&self) -> Result<(), Failure> {
        let images = self.runtime()?.stored_images().await.map_err(|e| failed(&e))?;
        self.records.adopt(images.into_iter().map(|image| (image.names, image.id)).collect()).await
    }

    /// Removes the records of pulls whose images are not there any more, but for those that were changed after `began`.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn prune_pull_records(&self, began: Wall) -> Result<(), Failure> {
        let images = self.runtime()?.stored_images().await.map_err(|e| failed(&e))?;
        let until = jiff::Timestamp::from_second(began.0 / 1_000_000_000).unwrap_or_default();
        self.records.prune(images.into_iter().map(|image| image.id).collect(), until).await
    }

    /// The directory on the file system of the images; `None` where containerd does not tell it.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn image_dir(&self) -> Result<Option<PathBuf>, Failure> {
        self.runtime()?.image_dir().await.map_err(|e| failed(&e))
    }

    /// Waits until an image was pulled.
    pub async fn image_pulled(&self) {
        self.pulls.pulled().await;
    }
}

async fn dead_with_layer(runtime: &Runtime) -> Result<Vec<ContainerId>, Failure> {
    let layers = runtime.writable_layers().await.map_err(|e| failed(&e))?;
    let containers = runtime.list().await.map_err(|e| failed(&e))?;
    let dead = containers.into_iter().filter(|c| c.exit.is_some() && c.state == FoundState::NoTask);
    Ok(dead.map(|c| c.id).filter(|id| layers.contains(id.as_str())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_way_to_name_an_image_is_recognised() {
        let image = StoredImage {
            id: "sha256:aa".into(),
            names: vec!["docker.io/library/busybox:1".into(), "docker.io/library/busybox@sha256:bb".into()],
            size: 1,
            pinned: false,
            used: false,
            leased: false,
            created_at: None,
        };
        for name in
            ["busybox:1", "docker.io/busybox:1", "busybox@sha256:bb", "busybox:9@sha256:bb", "sha256:aa"]
        {
            assert!(is_named(&image, name), "{name}");
        }
        assert!(!is_named(&image, "busybox") && !is_named(&image, "sha256:bb"));
    }
}
