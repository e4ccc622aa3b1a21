//! The local socket, for the commands for people, and the published state behind it.
//!
//! - [`watch_cache`] holds the published pods and events, and wakes their watchers.
//! - [`socket`] owns the listening socket and one task per connection.
//! - [`status_files`] writes the published state to files, for commands while no agent runs.

mod connection;
pub mod socket;
pub mod status_files;
pub mod watch_cache;
