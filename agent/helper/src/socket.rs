//! A helper's local socket.

use std::{
    fs::Permissions,
    io,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::Path,
};
use tokio::{io::AsyncReadExt as _, net::UnixStream};

/// Listens on a socket of mode 0600 at `path`, in place of any file there.
///
/// # Errors
/// The old file cannot be removed, or the socket cannot be bound.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    berth_sys::fs::remove_if_there(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Returns when the helper closes a connection, because it ended or was replaced. Returns at once if
/// nothing listens.
pub async fn closed(path: &Path) {
    if let Ok(mut stream) = UnixStream::connect(path).await {
        // A helper sends nothing unasked, so any result of the read is the end of the connection.
        let _end = stream.read_u8().await;
    }
}
