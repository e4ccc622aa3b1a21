//! Names of images: removal, other names, and what stands behind a name.

use super::Image;
use crate::{
    Runtime,
    client::{RECORD, call},
    error::{Error, Kind, absent, present},
    reference,
};
use containerd_client::services::v1::{CreateImageRequest, DeleteImageRequest, UpdateImageRequest};

/// Details of an image.
#[derive(Debug, Clone)]
pub struct ImageDetails {
    /// The image.
    pub image: Image,
    /// All names that point to it.
    pub names: Vec<String>,
    /// Bytes of manifest, configuration and compressed layers.
    pub size: u64,
    /// The layers' digests and compressed sizes, the lowest first.
    pub layers: Vec<(String, u64)>,
}

impl Runtime {
    /// Details of the image that `reference` names; `None` where it is not on the node.
    ///
    /// # Errors
    /// containerd does not answer, or the image cannot be read.
    pub async fn image_details(&self, reference: &str) -> Result<Option<ImageDetails>, Error> {
        let Some(image) = self.resolve_image(reference).await? else { return Ok(None) };
        let names = self.names_of(&image.target_digest).await?;
        let target = self.image_record(&image.name).await?.and_then(|r| r.target);
        let Some(target) = target else { return Ok(None) };
        let content = self.image_content(&image.name, &target).await?;
        let layer =
            |l: &containerd_client::types::Descriptor| (l.digest.clone(), l.size.max(0).unsigned_abs());
        let layers = content.layers.iter().map(layer).collect();
        Ok(Some(ImageDetails { image, names, size: content.size, layers }))
    }

    /// All names that point to this digest, sorted.
    async fn names_of(&self, digest: &str) -> Result<Vec<String>, Error> {
        let points = |i: &super::Record| i.target.as_ref().is_some_and(|t| t.digest == digest);
        let mut names: Vec<String> =
            self.image_records().await?.into_iter().filter(points).map(|i| i.name).collect();
        names.sort();
        Ok(names)
    }

    /// Removes a name of an image, and with the last tag of its repository also the names by digest there. Content that
    /// no other name and no pod holds is collected. Returns the removed names; none where there is no such image.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn remove_image(&self, reference: &str) -> Result<Vec<String>, Error> {
        let Some(image) = self.resolve_image(reference).await? else { return Ok(Vec::new()) };
        let others = self.names_of(&image.target_digest).await?;
        let repository = reference::repository(&image.name);
        let here = |name: &&String| reference::repository(name) == repository && **name != image.name;
        let tag_left = others.iter().filter(here).any(|name| !name.contains('@'));
        let mut removed = vec![image.name.clone()];
        if !tag_left {
            removed.extend(others.iter().filter(here).cloned());
        }
        let user_names = |name: &&String| !name.starts_with("sha256:") && !removed.contains(name);
        if others.iter().filter(user_names).count() == 0 {
            // A name by the configuration's digest, as containerd's CRI plugin makes one, keeps no image.
            let ids: Vec<String> = others.iter().filter(|n| n.starts_with("sha256:")).cloned().collect();
            removed.extend(ids);
        }
        for name in &removed {
            self.forget_image_name(name).await?;
        }
        Ok(removed)
    }

    /// Removes exactly this name. Succeeds where there is none.
    pub(crate) async fn forget_image_name(&self, name: &str) -> Result<(), Error> {
        let client = self.client();
        let request = DeleteImageRequest { name: name.to_owned(), ..DeleteImageRequest::default() };
        let mut service = client.images();
        let delete = service.delete(client.request(request, RECORD));
        absent(call("remove image", name, RECORD, delete).await)?;
        Ok(())
    }

    /// Gives an image another name, and returns that name in full. A name that exists points to this image afterwards.
    ///
    /// # Errors
    /// There is no such image, or containerd does not answer.
    pub async fn tag_image(&self, reference: &str, name: &str) -> Result<String, Error> {
        let missing =
            || Error::Image { image: reference.to_owned(), reason: "it is not on this node".to_owned() };
        let image = self.resolve_image(reference).await?.ok_or_else(missing)?;
        let mut record = self.image_record(&image.name).await?.ok_or_else(missing)?;
        record.name = reference::normalise(name);
        let name = record.name.clone();
        let client = self.client();
        let request = CreateImageRequest { image: Some(record.clone()), ..CreateImageRequest::default() };
        let mut service = client.images();
        let create = service.create(client.request(request, RECORD));
        if present(call("name image", &name, RECORD, create).await)?.is_some() {
            return Ok(name);
        }
        let request = UpdateImageRequest { image: Some(record), ..UpdateImageRequest::default() };
        let update = service.update(client.request(request, RECORD));
        match call("name image", &name, RECORD, update).await {
            Ok(_updated) => Ok(name),
            // It was removed in between: the caller may try again.
            Err(e) if e.kind() == Kind::NotFound => Err(missing()),
            Err(e) => Err(e),
        }
    }
}
