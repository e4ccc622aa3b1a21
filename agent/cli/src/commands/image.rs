//! `berth image`: pull, import, names, details, check and removal of images.

use crate::{
    error::Error,
    output::{self, Output},
    render::{image_page, pull_progress::Lines},
    state,
};
use berth_api::{
    client::Client,
    message::{Reply, Request},
};
use berth_core::roots::Roots;
use clap::Subcommand;
use std::{collections::BTreeSet, path::PathBuf, time::Duration};

/// Deadline of an import. Archives of several gigabytes take minutes.
const IMPORT: Duration = Duration::from_secs(3600);

/// Operations on images.
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Pull an image from its registry, with the node's credentials. Shows each layer.
    Pull {
        /// The image, as a pod names it.
        image: String,
    },
    /// Import an OCI archive.
    Import {
        /// Path of the archive.
        file: PathBuf,
    },
    /// Remove a name of an image, and with the last one the image.
    Rm {
        /// Remove it also where a container uses it.
        #[arg(short, long)]
        force: bool,
        /// The images.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Give an image another name.
    Tag {
        /// The image.
        image: String,
        /// The new name.
        name: String,
    },
    /// Show the names, layers and settings of an image, and the containers that use it.
    Inspect {
        /// Output format.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
        /// The image.
        image: String,
    },
    /// Remove the images that no pod of this node uses. Pinned images and those that other clients of
    /// containerd lease stay.
    Prune {
        /// Remove also images below the minimum age, which may have just been pulled for a pod.
        #[arg(long)]
        all: bool,
    },
    /// Check every blob of images by its digest, and that the snapshots of their layers are there.
    Verify {
        /// The images; all of the node without one.
        images: Vec<String>,
    },
}

/// Runs the operation.
pub(crate) async fn run(roots: &Roots, operation: Image) -> Result<(), Error> {
    match operation {
        Image::Pull { image } => pull(roots, image).await,
        Image::Import { file } => import(roots, file).await,
        Image::Rm { force, images } => remove(roots, force, images).await,
        Image::Tag { image, name } => {
            let request = Request::TagImage { image, name };
            match ask(roots, &request).await? {
                Reply::Tagged { name } => output::put(&format!("{name}\n")),
                _ => Err(berth_api::Error::Unexpected.into()),
            }
        }
        Image::Prune { all } => prune(roots, all).await,
        Image::Verify { images } => verify(roots, images).await,
        Image::Inspect { output, image } => {
            match (ask(roots, &Request::InspectImage { image }).await?, output) {
                (Reply::Image { image }, Output::Table) => output::put(&image_page::page(&image)),
                (Reply::Image { image }, Output::Json) => output::put_json(&serde_json::to_value(&image)?),
                _ => Err(berth_api::Error::Unexpected.into()),
            }
        }
    }
}

async fn ask(roots: &Roots, request: &Request) -> Result<Reply, Error> {
    let mut client = Client::connect(&roots.agent_socket()).await?;
    Ok(client.ask(request, state::ANSWER).await?)
}

/// `berth image pull`: bars on a terminal, a line for each finished step elsewhere; the name and the digest at the end.
/// Waits as long as the agent does, which gives up a pull that makes no progress.
async fn pull(roots: &Roots, image: String) -> Result<(), Error> {
    let mut client = Client::connect(&roots.agent_socket()).await?;
    client.send(&Request::PullImage { image }).await?;
    let mut lines = Lines::new(output::error_columns());
    loop {
        match client.next().await {
            Ok(Reply::Pulling { progress }) => output::progress(&lines.step(&progress)),
            Ok(Reply::Pulled { image }) => {
                return output::put(&format!("{}@{}\n", image.name, image.digest));
            }
            Ok(_) => return Err(berth_api::Error::Unexpected.into()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// `berth image import`: prints the names of the imported images.
async fn import(roots: &Roots, file: PathBuf) -> Result<(), Error> {
    let path = file.canonicalize().map_err(Error::io(format!("find {}", file.display())))?;
    let mut client = Client::connect(&roots.agent_socket()).await?;
    match client.ask(&Request::ImportImage { path }, IMPORT).await? {
        Reply::Imported { names } => output::put(&names.iter().map(|n| format!("{n}\n")).collect::<String>()),
        _ => Err(berth_api::Error::Unexpected.into()),
    }
}

/// `berth image rm`: prints the removed names.
async fn remove(roots: &Roots, force: bool, images: Vec<String>) -> Result<(), Error> {
    let mut client = Client::connect(&roots.agent_socket()).await?;
    for image in images {
        match client.ask(&Request::RemoveImage { image, force }, state::ANSWER).await? {
            Reply::RemovedImages { names } => {
                output::put(&names.iter().map(|n| format!("{n}\n")).collect::<String>())?;
            }
            _ => return Err(berth_api::Error::Unexpected.into()),
        }
    }
    Ok(())
}

/// `berth image prune`: prints the removed names, what was freed, and what stays.
async fn prune(roots: &Roots, all: bool) -> Result<(), Error> {
    let mut client = Client::connect(&roots.agent_socket()).await?;
    match client.ask(&Request::PruneImages { all }, IMPORT).await? {
        Reply::PrunedImages(view) => output::put(&image_page::pruned(&view)),
        _ => Err(berth_api::Error::Unexpected.into()),
    }
}

/// `berth image verify`: a line for each image, and for each damaged part of it.
async fn verify(roots: &Roots, mut images: Vec<String>) -> Result<(), Error> {
    let mut client = Client::connect(&roots.agent_socket()).await?;
    if images.is_empty() {
        let Reply::Images { images: all } = client.ask(&Request::Images, state::ANSWER).await? else {
            return Err(berth_api::Error::Unexpected.into());
        };
        let mut seen = BTreeSet::new();
        // The names of one image share their blobs.
        images = all.into_iter().filter(|i| seen.insert(i.digest.clone())).map(|i| i.name).collect();
    }
    let (checked, mut damaged) = (images.len(), 0);
    for image in images {
        match client.ask(&Request::VerifyImage { image }, IMPORT).await? {
            Reply::VerifiedImage { image } => {
                damaged += usize::from(!image.damage.is_empty());
                output::put(&image_page::verified(&image))?;
            }
            _ => return Err(berth_api::Error::Unexpected.into()),
        }
    }
    if damaged > 0 { Err(Error::Damaged { damaged, checked }) } else { Ok(()) }
}
