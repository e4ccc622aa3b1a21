//! State machine of list and watch: decides the next request and interprets the answers. Pure.
//!
//! The driver calls [`ListWatch::next`] and carries out the step. It passes the result to the machine by
//! [`ListWatch::page`], [`ListWatch::answered`], [`ListWatch::line`] and [`ListWatch::ended`], and then calls
//! [`ListWatch::next`] again. Times are durations since the driver's start.
//!
//! - The first state comes by a streaming list (a watch with `sendInitialEvents`) if the server supports
//!   that, else by a list in pages. A server refuses streaming lists by 400 or 422, or by 500 if its etcd is
//!   too old, as HTTP status or as first event; the machine then lists in pages, and the driver records the
//!   refusal.
//! - A watch that has ended is opened again from the last version, at once. 410 (as HTTP status or as event)
//!   means that the server has forgotten this version: a new list from the newest state follows, at once the
//!   first time.
//! - Other failures wait for a random part of 0.8 s, doubling to 30 s, and at least for the time of the
//!   server's `Retry-After`. After two minutes without failure the wait starts at its minimum again
//!   (client-go's reflector). A broken connection is no failure here: connections have their own wait.

use super::{Change, Kind, ResourceVersion, wire};
use crate::{lines::LineTooLong, status::Refusal};
use read::{read, read_page};
use std::{ops::RangeInclusive, time::Duration};

mod read;

/// Objects per page, as in client-go.
const PAGE: u32 = 500;

/// First wait after a failure.
const FIRST_WAIT: Duration = Duration::from_millis(800);

/// Longest wait after a failure.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Duration of a good watch after which earlier failures no longer count.
const GOOD: Duration = Duration::from_secs(120);

/// A watch that the server ends sooner and without an event counts as a failure. Otherwise a server that ends
/// each watch at once would get requests in a loop.
const SHORT: Duration = Duration::from_secs(1);

/// Maximum silence within a streaming list. A server that does not support streaming lists may answer with a
/// plain watch, which has no end of the list.
const LIST_SILENCE: Duration = Duration::from_secs(30);

/// Time for which a watch may outlast its requested end.
const OVERTIME: Duration = Duration::from_secs(30);

/// Consecutive streaming lists that may break off before a list in pages is tried.
const STREAM_TRIES: u32 = 2;

/// Unreadable lines at one version before the set is listed again.
const UNREADABLE_TRIES: u32 = 2;

/// First wait after a refusal that probably ends soon.
const SOON: Duration = Duration::from_millis(50);

/// Reason of [`ListWatch::behind`] before the first answer.
const NOT_LISTED: &str = "not listed yet";

/// Options of a followed set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Bounds of the random time after which the server shall end a watch.
    pub watch_time: RangeInclusive<Duration>,
    /// Time since the start in which the machine repeats a request soon after 403 or 404, without reporting a
    /// failure. The authorizer of nodes learns of a pod's references after the pod is bound, so the first
    /// request for a ConfigMap or Secret may come too early.
    pub grace: Duration,
}

impl Options {
    /// For sets that change often: client-go's 5 to 10 minutes.
    pub fn set() -> Options {
        Options { watch_time: Duration::from_secs(300)..=Duration::from_secs(600), grace: Duration::ZERO }
    }

    /// For one ConfigMap or Secret: 30 to 60 minutes, since a node has many of them.
    pub fn single() -> Options {
        Options {
            watch_time: Duration::from_secs(1800)..=Duration::from_secs(3600),
            grace: Duration::from_secs(2),
        }
    }
}

/// The driver's next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Wait until this time.
    Wait(Duration),
    /// Request a page with this query.
    List {
        /// Parameters, without those of the kind.
        query: String,
    },
    /// Open a watch with this query.
    Watch {
        /// Parameters, without those of the kind.
        query: String,
        /// Maximum time between two lines until the list is complete.
        list_silence: Duration,
        /// Maximum time of the whole watch.
        at_most: Duration,
    },
}

/// The end of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The server ended the watch in order.
    Closed,
    /// The connection broke, or none is open. The pool opens another connection.
    Disconnected(String),
    /// The request failed on a connection that stays open, or had no answer in time.
    Failed(String),
    /// The server refuses the request.
    Refused(Refusal),
    /// A page is larger than the limit of an answer.
    PageTooLarge,
    /// A line is longer than the limit.
    LineTooLong(LineTooLong),
}

/// The kind of the next request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// The start of a list, whose form (pages or stream) is not chosen yet.
    Start,
    /// Pages: the token of the next page, and whether the first page has come.
    Pages { token: Option<String>, begun: bool },
    /// A streaming list.
    Stream { begun: bool },
    /// News since `version`.
    Watch { version: ResourceVersion },
}

/// Time of the next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Now,
    At(Duration),
    /// After a random part of this time, and no less than `least` after `from`.
    BackOff {
        from: Duration,
        wait: Duration,
        least: Duration,
    },
}

/// State machine of one set.
#[derive(Debug)]
pub struct ListWatch {
    options: Options,
    state: State,
    due: Due,
    page: u32,
    /// The open watch: its start, and whether a line has come.
    open: Option<(Duration, bool)>,
    /// Consecutive failures, without two good minutes between them.
    failures: u32,
    /// Time since which watches are good.
    good_since: Option<Duration>,
    /// Streaming lists that broke off since the last complete list.
    broken_streams: u32,
    /// Consecutive unreadable lines.
    unreadable: u32,
    /// Number of refusals within the time of grace.
    early: u32,
    behind: Option<String>,
    /// The HTTP status if `behind` is a refusal by the server.
    refused: Option<u16>,
    refuses_streaming: bool,
}

impl ListWatch {
    /// A machine that lists the set first.
    pub fn new(options: Options) -> ListWatch {
        ListWatch::at(options, State::Start)
    }

    /// A machine whose consumer has the set as of this version. The consumer gets only news as long as the
    /// server remembers the version, else a list.
    pub fn resume(options: Options, version: ResourceVersion) -> ListWatch {
        ListWatch::at(options, State::Watch { version })
    }

    fn at(options: Options, state: State) -> ListWatch {
        ListWatch {
            options,
            state,
            due: Due::Now,
            page: PAGE,
            open: None,
            failures: 0,
            good_since: None,
            broken_streams: 0,
            unreadable: 0,
            early: 0,
            behind: Some(NOT_LISTED.to_owned()),
            refused: None,
            refuses_streaming: false,
        }
    }

    /// The next step at the time `now`. `dice` is a random number. `streams`: whether the server is assumed
    /// to support streaming lists.
    pub fn next(&mut self, now: Duration, dice: u64, streams: bool) -> Step {
        self.open = None;
        if let Due::BackOff { from, wait, least } = self.due {
            self.due = Due::At(from.saturating_add(least).saturating_add(part(wait, dice)));
        }
        match self.due {
            Due::At(until) if now < until => return Step::Wait(until),
            _ => self.due = Due::Now,
        }
        if self.state == State::Start {
            self.state = if streams && self.broken_streams < STREAM_TRIES {
                State::Stream { begun: false }
            } else {
                State::Pages { token: None, begun: false }
            };
        }
        let (first, last) = (*self.options.watch_time.start(), *self.options.watch_time.end());
        let time = first.saturating_add(part(last.saturating_sub(first), dice)).as_secs().max(1);
        let watch = |query: String| Step::Watch {
            query: format!("watch=1&allowWatchBookmarks=true&timeoutSeconds={time}&{query}"),
            list_silence: LIST_SILENCE,
            at_most: Duration::from_secs(time).saturating_add(OVERTIME),
        };
        match &self.state {
            State::Pages { token: None, .. } => Step::List { query: format!("limit={}", self.page) },
            State::Pages { token: Some(token), .. } => {
                Step::List { query: format!("limit={}&continue={}", self.page, wire::encoded(token)) }
            }
            State::Stream { .. } | State::Start => {
                watch("sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=".to_owned())
            }
            State::Watch { version } => watch(format!("resourceVersion={}", wire::encoded(version.as_str()))),
        }
    }

    /// Records that the watch was answered by 200.
    pub fn answered(&mut self, now: Duration) {
        self.open = Some((now, false));
        if matches!(self.state, State::Watch { .. }) {
            self.good(now);
        }
    }

    /// Whether the watch stays open. After an event `ERROR` or an unreadable line the driver drops the watch
    /// and calls [`ListWatch::next`].
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether a list is in progress, so that silence of a stream is a failure.
    pub fn is_listing(&self) -> bool {
        matches!(self.state, State::Stream { .. })
    }

    /// The reason why the consumer's set may be behind the server's; `None` if the set is current.
    pub fn behind(&self) -> Option<&str> {
        self.behind.as_deref()
    }

    /// The HTTP status of the refusal, if the reason of [`ListWatch::behind`] is one.
    pub fn refusal(&self) -> Option<u16> {
        self.refused.filter(|_| self.behind.is_some())
    }

    /// Whether the server has refused streaming lists since the last call.
    pub fn take_refusal_of_streaming(&mut self) -> bool {
        std::mem::take(&mut self.refuses_streaming)
    }

    /// Interprets a page of the list. All objects of the page are read before the first change is returned.
    pub fn page<K: Kind>(&mut self, kind: &K, body: &[u8], now: Duration) -> Vec<Change<K::Item>> {
        let State::Pages { token, begun } = &self.state else { return Vec::new() };
        let (asked, begun) = (token.clone(), *begun);
        match read_page(kind, body, asked.as_deref(), begun) {
            Ok((changes, next, version)) => {
                self.state = match next {
                    Some(token) => State::Pages { token: Some(token), begun: true },
                    None => State::Watch { version },
                };
                if matches!(self.state, State::Watch { .. }) {
                    self.broken_streams = 0;
                    self.unreadable = 0;
                }
                changes
            }
            Err(why) => {
                self.state = State::Start;
                self.fail(now, why, None);
                Vec::new()
            }
        }
    }

    /// Interprets a line of the watch.
    pub fn line<K: Kind>(&mut self, kind: &K, line: &[u8], now: Duration) -> Vec<Change<K::Item>> {
        if self.open.is_none() || line.is_empty() {
            return Vec::new();
        }
        match self.event(kind, line, now) {
            Ok(changes) => changes,
            Err(why) => {
                self.unreadable = self.unreadable.saturating_add(1);
                if self.is_listing() || self.unreadable >= UNREADABLE_TRIES {
                    self.start_again();
                }
                self.fail(now, why, None);
                Vec::new()
            }
        }
    }

    fn event<K: Kind>(
        &mut self,
        kind: &K,
        line: &[u8],
        now: Duration,
    ) -> Result<Vec<Change<K::Item>>, String> {
        let event: wire::Event<'_> =
            serde_json::from_slice(line).map_err(|e| format!("cannot read a line of the watch: {e}"))?;
        if event.kind == "ERROR" {
            self.refused(Refusal::of_event(event.object.get().as_bytes()), now);
            return Ok(Vec::new());
        }
        let mut changes = Vec::new();
        if let State::Stream { begun: begun @ false } = &mut self.state {
            *begun = true;
            changes.push(Change::Begin);
        }
        let version = match &*event.kind {
            "ADDED" | "MODIFIED" => {
                let (version, change) = read(kind, event.object, false)?;
                changes.push(change);
                version
            }
            "DELETED" => {
                let (version, change) = read(kind, event.object, true)?;
                changes.push(change);
                version
            }
            "BOOKMARK" => {
                let (version, end) = wire::bookmark(event.object)?;
                if end && self.is_listing() {
                    changes.push(Change::Complete(version.clone()));
                    self.state = State::Watch { version: version.clone() };
                    self.broken_streams = 0;
                    self.good(now);
                }
                version
            }
            // A kind of event of a newer server.
            _ => return Ok(changes),
        };
        // The versions of a list's objects are in no order and say nothing about the set's version.
        if let State::Watch { version: last } = &mut self.state {
            *last = version;
        }
        self.unreadable = 0;
        if let Some((_, had_line)) = &mut self.open {
            *had_line = true;
        }
        Ok(changes)
    }

    /// Records the end of the request.
    pub fn ended(&mut self, end: End, now: Duration) {
        let open = self.open.take();
        match end {
            End::Refused(refusal) => self.refused(refusal, now),
            End::Closed => {
                let short = open.is_some_and(|(since, line)| !line && now.saturating_sub(since) < SHORT);
                if self.is_listing() {
                    self.start_again();
                    self.fail(now, "the server ends a streaming list before it is complete".to_owned(), None);
                } else if short {
                    self.fail(now, "the server ends the watch at once".to_owned(), None);
                }
            }
            End::Disconnected(why) => {
                if self.is_listing() {
                    self.start_again();
                }
                self.behind = Some(why);
                self.refused = None;
                self.good_since = None;
            }
            End::Failed(why) => {
                if self.is_listing() {
                    self.start_again();
                }
                self.fail(now, why, None);
            }
            End::PageTooLarge => {
                let why = format!("a page of {} objects is too large", self.page);
                self.page = (self.page / 8).max(1);
                self.state = State::Start;
                self.fail(now, why, None);
            }
            End::LineTooLong(error) => {
                self.start_again();
                self.fail(now, error.to_string(), None);
            }
        }
    }

    fn refused(&mut self, refusal: Refusal, now: Duration) {
        self.open = None;
        if self.state == (State::Stream { begun: false }) && matches!(refusal.code, 400 | 422 | 500) {
            self.refuses_streaming = true;
            self.state = State::Pages { token: None, begun: false };
            return;
        }
        if matches!(refusal.code, 403 | 404) && now < self.options.grace {
            self.due = Due::At(now.saturating_add(doubled(SOON, self.early)));
            self.early = self.early.saturating_add(1);
            return;
        }
        let retry_after = refusal.retry_after;
        if refusal.is_expired() {
            let first = self.failures == 0 || self.was_good(now);
            self.start_again();
            // The set itself is not refused, only the version from which it was asked for.
            self.fail(now, refusal.to_string(), retry_after);
            if first {
                self.due = Due::Now;
            }
            return;
        }
        if self.is_listing() {
            self.start_again();
        }
        self.fail(now, refusal.to_string(), retry_after);
        self.refused = Some(refusal.code);
    }

    /// Starts a new list of the set at the next due time.
    fn start_again(&mut self) {
        if self.is_listing() {
            self.broken_streams = self.broken_streams.saturating_add(1);
        }
        self.state = State::Start;
    }

    fn good(&mut self, now: Duration) {
        self.behind = None;
        self.good_since.get_or_insert(now);
    }

    fn was_good(&self, now: Duration) -> bool {
        self.good_since.is_some_and(|since| now.saturating_sub(since) >= GOOD)
    }

    fn fail(&mut self, now: Duration, why: String, retry_after: Option<Duration>) {
        if self.was_good(now) {
            self.failures = 0;
        }
        self.open = None;
        self.good_since = None;
        self.due = Due::BackOff {
            from: now,
            wait: doubled(FIRST_WAIT, self.failures).min(LONGEST_WAIT),
            least: retry_after.unwrap_or_default(),
        };
        self.failures = self.failures.saturating_add(1);
        self.behind = Some(why);
        self.refused = None;
    }
}

/// The time, doubled this many times.
fn doubled(time: Duration, times: u32) -> Duration {
    time.saturating_mul(2_u32.saturating_pow(times.min(16)))
}

/// A part of the time, evenly distributed over `dice`.
fn part(time: Duration, dice: u64) -> Duration {
    let thousandths = u32::try_from(dice % 1001).unwrap_or(1000);
    time.saturating_mul(thousandths) / 1000
}
