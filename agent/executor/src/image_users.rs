//! Cache of the user databases of images: `/etc/passwd` and `/etc/group` as the image has them, read once for
//! each image.

use berth_core::{error::Chain, plan::Failure, sync::lock};
use berth_runtime::{Image, Runtime};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

type UserDatabase = (Option<Arc<str>>, Option<Arc<str>>);

/// The files by the chain id of the image's file system.
#[derive(Debug, Default)]
pub(crate) struct ImageUsers(Mutex<HashMap<String, UserDatabase>>);

/// The most images in the cache.
const MOST: usize = 256;

impl ImageUsers {
    pub(crate) async fn of(&self, runtime: &Runtime, image: &Image) -> Result<UserDatabase, Failure> {
        if let Some(files) = lock(&self.0).get(&image.chain_id) {
            return Ok(files.clone());
        }
        let [passwd, group] = runtime
            .image_files(image, ["etc/passwd", "etc/group"])
            .await
            .map_err(|e| Failure::new("CreateContainerError", Chain(&e)))?;
        let files: UserDatabase = (passwd.map(Arc::from), group.map(Arc::from));
        let mut cache = lock(&self.0);
        if cache.len() >= MOST {
            cache.clear();
        }
        cache.insert(image.chain_id.clone(), files.clone());
        Ok(files)
    }
}
