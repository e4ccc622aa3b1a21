//! The images that the node reports, for the scheduler's image locality.

use super::super::local_api::LocalApi;
use berth_runtime::ImageSummary;
use berth_source::node::NodeImage;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// Interval between two looks: the size of an image takes reading its manifest.
const EVERY: Duration = Duration::from_secs(60);

/// Deadline of a look.
const DEADLINE: Duration = Duration::from_secs(5);

/// The images of the last look.
#[derive(Default)]
pub(super) struct Images {
    known: Vec<NodeImage>,
    looked: Option<Instant>,
}

impl Images {
    /// The images of the node, at most a minute old. While containerd does not answer they stay as they were.
    pub(super) async fn get(&mut self, api: &LocalApi) -> Vec<NodeImage> {
        if self.looked.is_none_or(|at| at.elapsed() >= EVERY)
            && let Ok(runtime) = api.executor.runtime()
        {
            // A containerd that hangs does not hold up each report.
            self.looked = Some(Instant::now());
            if let Ok(Ok(images)) = timeout(DEADLINE, runtime.images()).await {
                self.known = by_digest(images);
            }
        }
        self.known.clone()
    }
}

/// The names of each image together. An image without a name of a user's, as containerd keeps one by the digest alone,
/// is left out.
fn by_digest(images: Vec<ImageSummary>) -> Vec<NodeImage> {
    let mut found: BTreeMap<String, NodeImage> = BTreeMap::new();
    for image in images.into_iter().filter(|image| !image.name.starts_with("sha256:")) {
        let entry = found.entry(image.target_digest).or_insert_with(|| NodeImage {
            digests: Vec::new(),
            tags: Vec::new(),
            size: image.size.unwrap_or_default(),
        });
        let names = if image.name.contains('@') { &mut entry.digests } else { &mut entry.tags };
        names.push(image.name);
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_an_image_are_reported_together() {
        let image = |name: &str, digest: &str, size| ImageSummary {
            name: name.to_owned(),
            target_digest: digest.to_owned(),
            size,
            created_at: None,
        };
        let images = by_digest(vec![
            image("docker.io/library/busybox:1", "sha256:aa", Some(7)),
            image("docker.io/library/busybox@sha256:aa", "sha256:aa", Some(7)),
            image("sha256:cc", "sha256:aa", Some(7)),
            image("example.com/web:2", "sha256:bb", None),
        ]);
        let wanted = [
            NodeImage {
                digests: vec!["docker.io/library/busybox@sha256:aa".to_owned()],
                tags: vec!["docker.io/library/busybox:1".to_owned()],
                size: 7,
            },
            NodeImage { digests: Vec::new(), tags: vec!["example.com/web:2".to_owned()], size: 0 },
        ];
        assert_eq!(images, wanted);
    }
}
