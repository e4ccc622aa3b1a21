//! Blocking work: each piece on a thread of its own, which is given up when its time is over. A thread that waits for a
//! server that is gone cannot be ended; it stays until the server answers, and holds up nobody but the callers of the
//! same server.
//!
//! Invariant: at most [`MOST_A_SERVER`] threads wait for one server, and [`MOST_UNMOUNTS`] to be rid of it.

use crate::error::{Error, Result};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};
use tokio::{
    sync::{Semaphore, oneshot},
    time::{Instant, timeout_at},
};

/// Most threads that work on one server at a time.
const MOST_A_SERVER: usize = 16;

/// Most threads that unmount volumes of one server at a time: more, because the pods on it are to end, and each such
/// thread stays until the kernel has stored what the pod wrote.
const MOST_UNMOUNTS: usize = 256;

/// Starts threads.
#[derive(Debug, Default)]
pub(crate) struct Threads {
    servers: Mutex<HashMap<(String, usize), Arc<Semaphore>>>,
}

impl Threads {
    /// Runs blocking work for a server and returns its result. After `patience` the call returns and the work goes on;
    /// `overdue` then says what it is at.
    ///
    /// # Errors
    /// The work's own; what `overdue` gives; or no thread was to be had in time.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        server: &str,
        patience: Duration,
        work: impl FnOnce() -> Result<T> + Send + 'static,
        overdue: impl FnOnce(u64) -> Error,
    ) -> Result<T> {
        self.run_beside(MOST_A_SERVER, server, patience, work, overdue).await
    }

    /// As [`Threads::run`], for the unmount of a volume.
    ///
    /// # Errors
    /// As [`Threads::run`].
    pub(crate) async fn unmount(
        &self,
        server: &str,
        patience: Duration,
        work: impl FnOnce() -> Result<()> + Send + 'static,
        overdue: impl FnOnce(u64) -> Error,
    ) -> Result<()> {
        self.run_beside(MOST_UNMOUNTS, server, patience, work, overdue).await
    }

    async fn run_beside<T: Send + 'static>(
        &self,
        most: usize,
        server: &str,
        patience: Duration,
        work: impl FnOnce() -> Result<T> + Send + 'static,
        overdue: impl FnOnce(u64) -> Error,
    ) -> Result<T> {
        let end = Instant::now() + patience;
        let permit = match timeout_at(end, self.of(server, most).acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => {
                let reason = format!("{most} operations already wait for it");
                return Err(Error::Busy { what: format!("ask the server {server}"), reason });
            }
        };
        let (tell, told) = oneshot::channel();
        let started = thread::Builder::new().name("blocking".into()).spawn(move || {
            let result = work();
            drop(permit);
            // Nobody waits any more where the time was over.
            _ = tell.send(result);
        });
        started.map_err(|e| Error::file("start", "a thread", e))?;
        match timeout_at(end, told).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Cancelled("the operation")),
            Err(_) => Err(overdue(patience.as_secs())),
        }
    }

    fn of(&self, server: &str, most: usize) -> Arc<Semaphore> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        Arc::clone(servers.entry((server.to_owned(), most)).or_insert_with(|| Arc::new(Semaphore::new(most))))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn overdue(seconds: u64) -> Error {
        Error::Deadline { what: "wait".into(), seconds }
    }

    #[tokio::test]
    async fn stuck_work_is_given_up_and_holds_up_its_own_server_only() {
        let threads = Threads::default();
        let short = Duration::from_millis(20);
        let mut held = Vec::new();
        for _ in 0..MOST_A_SERVER {
            let (end, ended) = mpsc::channel::<()>();
            held.push(end);
            let stuck = threads.run("gone", short, move || Ok(ended.recv().is_ok()), overdue).await;
            assert!(matches!(stuck, Err(Error::Deadline { .. })), "{stuck:?}");
        }
        let full = threads.run("gone", short, || Ok(()), overdue).await;
        assert!(matches!(full, Err(Error::Busy { .. })), "{full:?}");
        threads.run("other", Duration::from_secs(60), || Ok(()), overdue).await.unwrap();
        drop(held);
        threads.run("gone", Duration::from_secs(60), || Ok(()), overdue).await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_an_error_of_its_caller() {
        let threads = Threads::default();
        let work = || -> Result<()> { std::panic::panic_any("on purpose") };
        assert!(threads.run("h", Duration::from_secs(60), work, overdue).await.is_err());
        threads.run("h", Duration::from_secs(60), || Ok(()), overdue).await.unwrap();
    }
}
