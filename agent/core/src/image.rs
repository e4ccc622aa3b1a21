//! Images of registries, as data: the credentials for them and where these come from, the words of events about their pulls, and which images are
//! removed. Pure.

pub mod collect;
mod credential;
mod docker_config;
mod keyring;
pub mod provider;
pub mod pull_record;
mod pulling;

pub use credential::{Credential, CredentialSource, Hidden, ObjectCoordinates, Sourced};
pub use docker_config::{DockerConfig, DockerConfigError};
pub use keyring::Keyring;
pub use pulling::{LayerProgress, LayerState, PullProgress, go_duration};
