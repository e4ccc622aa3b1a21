//! Texts of the endpoints, rendered from readings. Pure.

pub mod agent;
pub mod cadvisor;
pub mod resource;
pub mod summary;

#[cfg(test)]
pub(crate) mod testing;
