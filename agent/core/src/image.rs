//! Images of registries, as data: the credentials for them, and the words of events about their pulls. Pure.

mod credential;
mod docker_config;
mod keyring;
mod pulling;

pub use credential::{Credential, Hidden};
pub use docker_config::{DockerConfig, DockerConfigError};
pub use keyring::Keyring;
pub use pulling::{LayerProgress, LayerState, PullProgress, go_duration};
