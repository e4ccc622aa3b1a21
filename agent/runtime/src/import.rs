//! Image import: archives go through containerd's transfer service. The file is streamed to the daemon, which
//! unpacks it for the node's snapshotter. The daemon distinguishes OCI layouts and docker archives, plain or
//! compressed.
//!
//! Each import has two streams, under ids that are never reused: the data, sent only inside the window that
//! the daemon grants, and the progress, which names the imported images.
//!
//! A lease holds the streams until the import ends. Without it containerd's garbage collection closes the streams of a
//! containerd namespace that has no record yet: that is the first import after containerd's first start, which runs
//! a collection 0.1 s after it begins to listen.

use crate::{
    Runtime,
    client::{UNPACK, call, from_status},
    error::Error,
    image::architecture,
    lease::expiry,
    stream::{Stream, open, unique},
    wire,
};
use berth_core::error::Chain;
use containerd_client::{
    services::v1::{TransferOptions, TransferRequest},
    to_any,
    types::{
        Platform,
        transfer::{
            Data, ImageImportStream, ImageReference, ImageStore, Progress, UnpackConfiguration, WindowUpdate,
        },
    },
};
use prost::Message;
use prost_types::Any;
use std::{path::Path, time::Duration};
use tokio::{fs::File, io::AsyncReadExt};

/// Maximum size of one message of the data stream.
const CHUNK: usize = 32 << 10;
/// Longest wait for the last progress messages after the transfer is done.
const TAIL: Duration = Duration::from_secs(2);
/// Longest life of an import's lease: the deadline of the transfer and as much again.
const LEASE: Duration = UNPACK.saturating_mul(2);
/// The repository of images whose archive gives only a tag.
const UNNAMED: &str = "docker.io/library/import";

/// Sends the file within the daemon's window, and waits until the daemon has closed its side. Closing the
/// receiving side earlier would cancel the stream and lose data in transit.
async fn send_file(mut file: File, path: &Path, stream: Stream) -> Result<(), Error> {
    let Stream { id, send, mut receive } = stream;
    let broken = |status| from_status("send archive on", &id, UNPACK, status);
    let mut window = 0_usize;
    loop {
        while window == 0 {
            let Some(any) = receive.message().await.map_err(broken)? else { return Ok(()) };
            window = window.saturating_add(granted(&any));
        }
        let mut chunk = vec![0_u8; CHUNK.min(window)];
        let n = file.read(&mut chunk).await.map_err(Error::file("read", path))?;
        if n == 0 {
            break;
        }
        chunk.truncate(n);
        window -= n;
        if send.send(to_any(&Data { data: chunk })).await.is_err() {
            break;
        }
    }
    drop(send);
    while receive.message().await.map_err(broken)?.is_some() {}
    Ok(())
}

pub(crate) fn granted(any: &Any) -> usize {
    if wire::type_name(any) != "containerd.types.transfer.WindowUpdate" {
        return 0;
    }
    let update = WindowUpdate::decode(any.value.as_slice()).map(|w| w.update).unwrap_or_default();
    usize::try_from(update).unwrap_or_default()
}

/// The name of a stored image, from a progress message.
pub(crate) fn saved(any: &Any) -> Option<String> {
    let progress = Progress::decode(any.value.as_slice()).ok()?;
    (progress.event == "saved" && !progress.name.is_empty()).then_some(progress.name)
}

async fn saved_names(mut progress: Stream) -> Vec<String> {
    let mut names = Vec::new();
    // The loop ends with the transfer; a broken progress stream loses names, not the import.
    while let Ok(Some(any)) = progress.receive.message().await {
        names.extend(saved(&any));
    }
    names
}

impl Runtime {
    /// Imports and unpacks the images of an archive (OCI layout or docker archive) and returns their names. A
    /// repeated import is harmless: the names point to the archive's content afterwards.
    pub async fn import(&self, archive: &Path) -> Result<Vec<String>, Error> {
        let file = File::open(archive).await.map_err(Error::file("open", archive))?;
        let lease = unique("import");
        // The lease ends by itself where this agent is killed in the import.
        self.create_lease(&lease, &[expiry(LEASE)]).await?;
        let imported = self.import_under(&lease, archive, file).await;
        if let Err(error) = self.delete_lease(&lease).await {
            // The lease ends by itself; until then it holds what the import stored.
            tracing::warn!(%lease, error = %Chain(&error), "cannot release the lease of an image import");
        }
        imported
    }

    async fn import_under(&self, lease: &str, archive: &Path, file: File) -> Result<Vec<String>, Error> {
        let client = self.client();
        let progress = open(client, "progress", lease).await?;
        let data = open(client, "import", lease).await?;
        let platform = Platform {
            os: "linux".to_owned(),
            architecture: architecture().to_owned(),
            ..Platform::default()
        };
        let source = ImageImportStream { stream: data.id.clone(), ..ImageImportStream::default() };
        let destination = ImageStore {
            platforms: vec![platform.clone()],
            unpacks: vec![UnpackConfiguration {
                platform: Some(platform),
                snapshotter: self.roots().snapshotter.clone(),
            }],
            extra_references: vec![ImageReference {
                name: UNNAMED.to_owned(),
                is_prefix: true,
                allow_overwrite: true,
                ..ImageReference::default()
            }],
            ..ImageStore::default()
        };
        let request = TransferRequest {
            source: Some(to_any(&source)),
            destination: Some(to_any(&destination)),
            options: Some(TransferOptions { progress_stream: progress.id.clone() }),
        };
        let mut names = tokio::spawn(saved_names(progress));
        let mut service = client.transfer();
        let transfer = call(
            "import",
            archive.display(),
            UNPACK,
            service.transfer(client.leased(request, UNPACK, lease)),
        );
        tokio::pin!(transfer);
        let outcome = tokio::select! {
            done = &mut transfer => done,
            // Boxed, because the compiler measures this future as large.
            sent = Box::pin(send_file(file, archive, data)) => match sent {
                Ok(()) => transfer.await,
                Err(e) => Err(e),
            },
        };
        if let Err(e) = outcome {
            names.abort();
            return Err(e);
        }
        let found = match tokio::time::timeout(TAIL, &mut names).await {
            Ok(Ok(found)) => found,
            Ok(Err(_panicked)) => Vec::new(),
            Err(_elapsed) => {
                names.abort();
                Vec::new()
            }
        };
        if found.is_empty() {
            return Err(Error::Unnamed { path: archive.to_path_buf() });
        }
        tracing::info!(archive = %archive.display(), images = ?found, "imported");
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grants_open_the_window() {
        assert_eq!(granted(&to_any(&WindowUpdate { update: 5 })), 5);
        assert_eq!(granted(&to_any(&WindowUpdate { update: -5 })), 0);
        assert_eq!(granted(&to_any(&Data { data: vec![1] })), 0);
        assert_eq!(granted(&Any { value: vec![0xff; 9], ..to_any(&WindowUpdate { update: 1 }) }), 0);
    }

    #[test]
    fn names_come_from_saved_messages_alone() {
        let message = |event: &str| Progress { event: event.into(), name: "a".into(), ..Progress::default() };
        assert_eq!(saved(&to_any(&message("saved"))), Some("a".into()));
        assert_eq!(saved(&to_any(&message("waiting"))), None);
        assert_eq!(saved(&Any { type_url: String::new(), value: vec![0xff; 3] }), None);
    }
}
