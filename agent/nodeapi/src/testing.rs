//! A reviewer, a node and streams for tests.

use crate::{
    AccessReview, Boxed, Caller, LogReader, LogRecord, LogRun, LogStart, NodeBackend, PodState, Process,
    ReviewError, Reviewer, RunningContainer, Statistics, StreamBackend, StreamRefusal, Unavailable,
    WantedStreams,
};
use berth_core::{sync::lock, time::Wall};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{
    net::TcpStream,
    sync::{Notify, watch},
};

/// A PEM text.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

/// Knows every token but `unknown` as the user of its text, and allows what it was told.
#[derive(Debug, Default)]
pub(crate) struct FakeReviewer {
    asked: Mutex<Vec<String>>,
    allowed: Mutex<BTreeSet<String>>,
    /// So many of the next reviews fail, and whether for the moment only.
    failing: Mutex<(u32, bool)>,
}

impl FakeReviewer {
    pub(crate) fn allow(&self, access: &str) {
        lock(&self.allowed).insert(access.into());
    }

    pub(crate) fn fail(&self, times: u32, transient: bool) {
        *lock(&self.failing) = (times, transient);
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        lock(&self.asked).clone()
    }

    fn ask(&self, what: String) -> Result<(), ReviewError> {
        lock(&self.asked).push(what);
        let mut failing = lock(&self.failing);
        if failing.0 == 0 {
            return Ok(());
        }
        failing.0 -= 1;
        Err(ReviewError { reason: "it is away".into(), transient: failing.1, retry_after: None })
    }
}

impl Reviewer for FakeReviewer {
    fn token<'a>(&'a self, token: &'a str) -> Boxed<'a, Result<Option<Caller>, ReviewError>> {
        Box::pin(async move {
            self.ask(format!("token {token}"))?;
            Ok((token != "unknown").then(|| Caller { name: token.into(), ..Caller::default() }))
        })
    }

    fn access<'a>(&'a self, review: &'a AccessReview) -> Boxed<'a, Result<bool, ReviewError>> {
        Box::pin(async move {
            let access = format!("{} {} {}", review.caller.name, review.verb, review.subresource);
            self.ask(access.clone())?;
            Ok(lock(&self.allowed).contains(&access))
        })
    }
}

/// A node with one pod `ns/p`, whose container `c` writes what the test gives it.
#[derive(Debug)]
pub(crate) struct FakeNode {
    pub(crate) pod: Mutex<Option<PodState>>,
    lines: Arc<Mutex<VecDeque<String>>>,
    written: Arc<Notify>,
    pub(crate) closed: watch::Sender<bool>,
    pub(crate) opened: Mutex<Vec<(LogRun, LogStart)>>,
}

impl Default for FakeNode {
    fn default() -> Self {
        let (closed, _) = watch::channel(false);
        FakeNode {
            pod: Mutex::default(),
            lines: Arc::default(),
            written: Arc::default(),
            closed,
            opened: Mutex::default(),
        }
    }
}

impl FakeNode {
    pub(crate) fn write(&self, line: &str) {
        lock(&self.lines).push_back(line.into());
        self.written.notify_one();
    }
}

struct FakeReader(Arc<Mutex<VecDeque<String>>>, Arc<Notify>);

impl LogReader for FakeReader {
    fn read(&mut self, emit: &mut dyn FnMut(LogRecord<'_>)) -> Result<bool, Unavailable> {
        let Some(line) = lock(&self.0).pop_front() else { return Ok(false) };
        emit(LogRecord { time: Wall(1), partial: false, text: line.as_bytes() });
        Ok(true)
    }

    fn changed(&mut self) -> Boxed<'_, ()> {
        Box::pin(self.1.notified())
    }
}

impl NodeBackend for FakeNode {
    fn name(&self) -> &str {
        "n"
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<PodState> {
        let pod = lock(&self.pod).clone();
        pod.filter(|p| p.pod.key.namespace.as_str() == namespace && p.pod.key.name.as_str() == name)
    }

    fn runs(&self, _: &LogRun) -> bool {
        !*self.closed.borrow()
    }

    fn output_closed<'a>(&'a self, _: &'a LogRun) -> Boxed<'a, ()> {
        Box::pin(async {
            // The sender is alive as long as the node.
            self.closed.subscribe().wait_for(|closed| *closed).await.ok();
        })
    }

    fn open_log<'a>(
        &'a self,
        run: &'a LogRun,
        from: LogStart,
    ) -> Boxed<'a, Result<Box<dyn LogReader>, Unavailable>> {
        lock(&self.opened).push((run.clone(), from));
        let reader = FakeReader(Arc::clone(&self.lines), Arc::clone(&self.written));
        Box::pin(async { Ok(Box::new(reader) as Box<dyn LogReader>) })
    }

    fn sync_loop(&self) -> Result<(), String> {
        Ok(())
    }

    fn pods(&self) -> Boxed<'_, Result<Bytes, Unavailable>> {
        Box::pin(async { Ok("{\"kind\":\"PodList\"}".into()) })
    }

    fn running_pods(&self) -> Boxed<'_, Result<Bytes, Unavailable>> {
        Box::pin(async { Err(Unavailable("containerd is away".into())) })
    }

    fn flags(&self) -> String {
        "port 10250\n".to_owned()
    }

    fn status_page(&self) -> String {
        "Up  0 hr 00 min 01 sec\n".to_owned()
    }

    fn configuration(&self) -> Boxed<'_, Result<Bytes, Unavailable>> {
        Box::pin(async { Ok("{\"kubeletconfig\":{}}".into()) })
    }
}

/// Statistics that name their route.
pub(crate) struct FakeStatistics;

fn answer(text: &'static str) -> Boxed<'static, Result<Bytes, Unavailable>> {
    Box::pin(async move { Ok(text.into()) })
}

impl Statistics for FakeStatistics {
    fn summary(&self, only: bool) -> Boxed<'_, Result<Bytes, Unavailable>> {
        answer(if only { "cpu and memory" } else { "summary" })
    }

    fn metrics(&self) -> Boxed<'_, Result<Bytes, Unavailable>> {
        answer("metrics")
    }

    fn cadvisor(&self) -> Boxed<'_, Result<Bytes, Unavailable>> {
        answer("cadvisor")
    }

    fn resource(&self) -> Boxed<'_, Result<Bytes, Unavailable>> {
        answer("resource")
    }

    fn probes(&self) -> Boxed<'_, Result<Bytes, Unavailable>> {
        answer("probes")
    }
}

/// A node that runs no container. Ports of its pods are those that the test opens elsewhere, by their numbers.
#[derive(Default)]
pub(crate) struct FakePorts(pub(crate) BTreeMap<u16, SocketAddr>);

impl StreamBackend for FakePorts {
    fn container(&self, _pod: &PodState, name: &str) -> Result<RunningContainer, StreamRefusal> {
        Err(StreamRefusal::Failed(format!("container not found ({name:?})")))
    }

    fn exec(
        &self,
        _container: RunningContainer,
        _command: Vec<String>,
        _wanted: WantedStreams,
    ) -> Boxed<'_, Result<Process, String>> {
        Box::pin(async { Err("no container runs".to_owned()) })
    }

    fn attach(
        &self,
        _container: RunningContainer,
        _wanted: WantedStreams,
    ) -> Boxed<'_, Result<Process, String>> {
        Box::pin(async { Err("no container runs".to_owned()) })
    }

    fn connect<'a>(&'a self, _pod: &'a PodState, port: u16) -> Boxed<'a, Result<TcpStream, String>> {
        let address = self.0.get(&port).copied();
        Box::pin(async move {
            let address = address.ok_or("connection refused")?;
            TcpStream::connect(address).await.map_err(|e| e.to_string())
        })
    }
}
