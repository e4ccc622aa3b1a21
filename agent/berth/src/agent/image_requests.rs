//! Requests about images on the local socket: pulls, other names, removal, details, checks.

use super::api_error::{from_runtime, unavailable};
use berth_api::{
    message::ErrorCode,
    view::{DamagedPart, ImageDetails, ImageView, PullView, VerifiedImage},
};
use berth_core::image::PullProgress;
use berth_executor::{NodeExecutor, PullByHand};
use berth_runtime::{Runtime, reference};
use berth_server::{ApiError, PullSession};

/// A pull that a client asked for.
pub(crate) struct LocalPull(PullByHand);

impl PullSession for LocalPull {
    async fn progress(&mut self) -> Option<PullProgress> {
        self.0.progress().await
    }

    async fn end(self) -> Result<ImageView, ApiError> {
        let pulled = self.0.end().await.map_err(|why| ApiError::new(ErrorCode::Failed, why))?;
        Ok(ImageView {
            name: pulled.image.name,
            digest: pulled.image.target_digest,
            size: Some(pulled.size),
            created: None,
        })
    }
}

pub(super) async fn pull(executor: &NodeExecutor, image: &str) -> Result<LocalPull, ApiError> {
    let pull = executor.pull_by_hand(image).await;
    pull.map(LocalPull).map_err(|failure| match failure.reason.as_str() {
        "InvalidImageName" => ApiError::new(ErrorCode::Invalid, failure.message),
        _ => unavailable(failure),
    })
}

pub(super) fn pulls(executor: &NodeExecutor) -> Vec<PullView> {
    let view =
        |p: berth_executor::PullState| PullView { image: p.image, wanted: p.wanted, progress: p.progress };
    executor.pulls().into_iter().map(view).collect()
}

fn absent(image: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("image {image:?} is not on this node"))
}

/// The containers that use an image: namespace, pod and container of each.
async fn users(runtime: &Runtime, names: &[String], id: &str) -> Result<Vec<String>, ApiError> {
    let containers = runtime.list().await.map_err(|e| from_runtime(&e))?;
    let uses = containers.iter().filter(|c| c.image_id == id || names.contains(&c.image));
    Ok(uses.map(|c| format!("{}/{}", c.key, c.container)).collect())
}

pub(super) async fn remove(runtime: &Runtime, image: &str, force: bool) -> Result<Vec<String>, ApiError> {
    let details = runtime.image_details(image).await.map_err(|e| from_runtime(&e))?;
    let details = details.ok_or_else(|| absent(image))?;
    let users = users(runtime, &details.names, &details.image.image_id).await?;
    if let (Some(first), false) = (users.first(), force) {
        let more = if users.len() > 1 { format!(" and {} more", users.len() - 1) } else { String::new() };
        let text =
            format!("cannot remove image {image:?}: container {first}{more} uses it; --force removes it");
        return Err(ApiError::new(ErrorCode::Failed, text));
    }
    let removed = runtime.remove_image(image).await.map_err(|e| from_runtime(&e))?;
    tracing::info!(images = ?removed, "removed");
    Ok(removed)
}

pub(super) async fn tag(runtime: &Runtime, image: &str, name: &str) -> Result<String, ApiError> {
    if let Some(fault) =
        reference::fault(name).or_else(|| name.contains('@').then(|| "it has a digest".to_owned()))
    {
        return Err(ApiError::new(ErrorCode::Invalid, format!("cannot name an image {name:?}: {fault}")));
    }
    if runtime.resolve_image(image).await.map_err(|e| from_runtime(&e))?.is_none() {
        return Err(absent(image));
    }
    runtime.tag_image(image, name).await.map_err(|e| from_runtime(&e))
}

pub(super) async fn inspect(runtime: &Runtime, image: &str) -> Result<ImageDetails, ApiError> {
    let details = runtime.image_details(image).await.map_err(|e| from_runtime(&e))?;
    let details = details.ok_or_else(|| absent(image))?;
    let used_by = users(runtime, &details.names, &details.image.image_id).await?;
    let config = &details.image.config;
    let config = serde_json::json!({
        "Entrypoint": config.entrypoint, "Cmd": config.cmd, "Env": config.env, "User": config.user,
        "WorkingDir": config.working_dir, "Volumes": config.volumes, "StopSignal": config.stop_signal,
    });
    Ok(ImageDetails {
        names: details.names,
        digest: details.image.target_digest,
        id: details.image.image_id,
        size: details.size,
        layers: details.layers,
        config,
        used_by,
    })
}

pub(super) async fn verify(runtime: &Runtime, image: &str) -> Result<VerifiedImage, ApiError> {
    let checked = runtime.verify_image(image).await.map_err(|e| from_runtime(&e))?;
    let checked = checked.ok_or_else(|| absent(image))?;
    let part = |d: berth_runtime::Damage| DamagedPart { part: d.part, digest: d.digest, reason: d.reason };
    Ok(VerifiedImage {
        name: checked.name,
        blobs: checked.blobs as u64,
        bytes: checked.bytes,
        damage: checked.damage.into_iter().map(part).collect(),
    })
}
