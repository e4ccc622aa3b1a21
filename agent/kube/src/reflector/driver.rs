//! Driver of the list and watch machine: carries out the machine's steps on a pool of connections.
//!
//! One future per followed set, run as a task of the set's owner. The future ends when the consumer drops its
//! end of the channel. A slow consumer delays only its own watch: the driver holds at most one line and the
//! channel's changes.

use super::{Change, End, Kind, ListWatch, Step};
use crate::{
    Error,
    lines::Lines,
    pool::{Body, Pool},
    request::Request,
};
use berth_core::time::Now;
use http_body_util::BodyExt;
use std::time::Duration;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout_at},
};

/// Whether the consumer's set equals the server's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// The set is listed and watched.
    Ok {
        /// Start of this state.
        since: Now,
    },
    /// The set may be behind. Objects that were listed before stay.
    Behind {
        /// Start of this state.
        since: Now,
        /// The reason, on one line.
        why: String,
        /// The HTTP status if the server refused the request, rather than that it could not be reached or understood.
        refused: Option<u16>,
    },
}

impl Health {
    /// Health of a set that was not requested yet.
    pub fn unknown() -> Health {
        Health::Behind { since: berth_sys::clock::now(), why: "not listed yet".to_owned(), refused: None }
    }
}

/// Follows a set until the consumer has dropped its end of the channel.
pub async fn follow<K: Kind>(
    kind: K,
    pool: Pool,
    machine: ListWatch,
    changes: mpsc::Sender<Change<K::Item>>,
    health: watch::Sender<Health>,
) {
    let gone = changes.clone();
    let mut driver = Driver { kind, pool, machine, changes, health, begun: Instant::now() };
    tokio::select! {
        () = gone.closed() => {}
        () = driver.run() => {}
    }
}

struct Driver<K: Kind> {
    kind: K,
    pool: Pool,
    machine: ListWatch,
    changes: mpsc::Sender<Change<K::Item>>,
    health: watch::Sender<Health>,
    begun: Instant,
}

/// The consumer has dropped its end of the channel.
struct Gone;

impl<K: Kind> Driver<K> {
    async fn run(&mut self) {
        while self.step().await.is_ok() {
            if self.machine.take_refusal_of_streaming() {
                self.pool.refuses_streaming_lists();
            }
            self.report_health();
        }
    }

    async fn step(&mut self) -> Result<(), Gone> {
        let now = self.now();
        match self.machine.next(now, rand::random(), self.pool.streams_lists()) {
            Step::Wait(until) => sleep_until(self.begun + until).await,
            Step::List { query } => {
                let answer = self.pool.send(&Request::list(self.target(&query))).await;
                let now = self.now();
                match answer {
                    Ok(answer) => {
                        let changes = self.machine.page(&self.kind, &answer.body, now);
                        self.hand_over(changes).await?;
                    }
                    Err(error) => self.machine.ended(end(error), now),
                }
            }
            Step::Watch { query, list_silence, at_most } => {
                match self.pool.watch(&self.target(&query)).await {
                    Ok(body) => self.watch(body, list_silence, at_most).await?,
                    Err(error) => {
                        let now = self.now();
                        self.machine.ended(end(error), now);
                    }
                }
            }
        }
        Ok(())
    }

    async fn watch(&mut self, mut body: Body, list_silence: Duration, at_most: Duration) -> Result<(), Gone> {
        let now = self.now();
        self.machine.answered(now);
        self.report_health();
        let mut lines = Lines::default();
        let until = Instant::now() + at_most;
        while self.machine.is_open() {
            let listing = self.machine.is_listing();
            let deadline = if listing { until.min(Instant::now() + list_silence) } else { until };
            let frame = timeout_at(deadline, body.frame()).await;
            let now = self.now();
            let end = match frame {
                Err(_) if listing => End::Failed("a streaming list stands still".to_owned()),
                Err(_) | Ok(None) => End::Closed,
                Ok(Some(Err(error))) if error.connection => End::Disconnected(error.to_string()),
                Ok(Some(Err(error))) => End::Failed(error.to_string()),
                Ok(Some(Ok(frame))) => {
                    let Some(data) = frame.data_ref() else { continue };
                    match lines.push(data) {
                        Ok(()) => {
                            self.take(&mut lines, now).await?;
                            if listing && !self.machine.is_listing() {
                                self.report_health();
                            }
                            continue;
                        }
                        Err(error) => End::LineTooLong(error),
                    }
                }
            };
            self.machine.ended(end, now);
        }
        Ok(())
    }

    /// Passes all complete lines to the machine, and their changes to the consumer.
    async fn take(&mut self, lines: &mut Lines, now: Duration) -> Result<(), Gone> {
        while self.machine.is_open() {
            let Some(line) = lines.next_line() else { break };
            let changes = self.machine.line(&self.kind, line, now);
            self.hand_over(changes).await?;
        }
        Ok(())
    }

    async fn hand_over(&self, changes: Vec<Change<K::Item>>) -> Result<(), Gone> {
        for change in changes {
            self.changes.send(change).await.map_err(|_closed| Gone)?;
        }
        Ok(())
    }

    fn target(&self, query: &str) -> String {
        let of_kind = self.kind.query();
        let and = if of_kind.is_empty() { "" } else { "&" };
        format!("{}?{of_kind}{and}{query}", self.kind.path())
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Publishes the health if it has changed.
    fn report_health(&self) {
        let (behind, refused) = (self.machine.behind(), self.machine.refusal());
        self.health.send_if_modified(|health| {
            let new = match (&*health, behind) {
                (Health::Ok { .. }, None) => return false,
                (Health::Behind { why, .. }, Some(now)) if why == now => return false,
                (Health::Behind { since, .. }, Some(why)) => {
                    Health::Behind { since: *since, why: why.to_owned(), refused }
                }
                (Health::Behind { .. }, None) => Health::Ok { since: berth_sys::clock::now() },
                (Health::Ok { .. }, Some(why)) => {
                    Health::Behind { since: berth_sys::clock::now(), why: why.to_owned(), refused }
                }
            };
            *health = new;
            true
        });
    }
}

/// Converts an error of a request for the machine.
fn end(error: Error) -> End {
    match error {
        Error::Refused { refusal, .. } => End::Refused(refusal),
        Error::TooLarge { .. } => End::PageTooLarge,
        Error::Unreachable { .. } | Error::Broken { connection: true, .. } => {
            End::Disconnected(error.to_string())
        }
        other => End::Failed(berth_core::error::Chain(&other).to_string()),
    }
}
