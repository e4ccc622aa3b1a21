//! `berth image`: changes to the images.

use crate::{error::Error, output};
use berth_api::{
    client::Client,
    message::{Reply, Request},
};
use berth_core::roots::Roots;
use clap::Subcommand;
use std::{path::PathBuf, time::Duration};

/// Deadline of an import. Archives of several gigabytes take minutes.
const IMPORT: Duration = Duration::from_secs(3600);

/// Operations on images.
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Import an OCI archive.
    Import {
        /// Path of the archive.
        file: PathBuf,
    },
}

/// `berth image import`: prints the names of the imported images.
pub(crate) async fn import(roots: &Roots, file: PathBuf) -> Result<(), Error> {
    let path = file.canonicalize().map_err(Error::io(format!("find {}", file.display())))?;
    let mut client = Client::connect(&roots.agent_socket()).await?;
    match client.ask(&Request::ImportImage { path }, IMPORT).await? {
        Reply::Imported { names } => output::put(&names.iter().map(|n| format!("{n}\n")).collect::<String>()),
        _ => Err(berth_api::Error::Unexpected.into()),
    }
}
