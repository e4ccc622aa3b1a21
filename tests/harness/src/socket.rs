//! The agent's local socket, spoken without the project's own client: frames of a length (u32, little endian) and JSON.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

/// A connection.
#[derive(Debug)]
pub struct Socket(UnixStream);

impl Socket {
    /// Connects and greets.
    ///
    /// # Errors
    /// Nobody answers within five seconds.
    pub fn connect(path: &Path) -> Result<Socket> {
        let stream = UnixStream::connect(path).with_context(|| format!("connect to {}", path.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        let mut socket = Socket(stream);
        socket.send(&json!({"protocol": 1, "oldest": 1, "version": "harness"}))?;
        let hello = socket.receive()?;
        ensure!(hello["protocol"].is_u64(), "not a greeting: {hello}");
        Ok(socket)
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The other side is gone.
    pub fn send(&mut self, message: &Value) -> Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let mut frame = u32::try_from(bytes.len())?.to_le_bytes().to_vec();
        frame.extend(bytes);
        self.0.write_all(&frame).context("write to the agent's socket")
    }

    /// The next message.
    ///
    /// # Errors
    /// The other side is gone, or silent beyond the time set.
    pub fn receive(&mut self) -> Result<Value> {
        let mut head = [0; 4];
        self.0.read_exact(&mut head).context("read from the agent's socket")?;
        let length = usize::try_from(u32::from_le_bytes(head))?;
        ensure!(length <= 64 << 20, "a frame of {length} bytes");
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).context("read from the agent's socket")?;
        serde_json::from_slice(&bytes).context("a frame")
    }

    /// All pods by `namespace/name`.
    ///
    /// # Errors
    /// The agent is gone or answers otherwise.
    pub fn pods(&mut self) -> Result<BTreeMap<String, Pod>> {
        self.send(&json!({"op": "pods"}))?;
        let mut pods = BTreeMap::new();
        loop {
            let mut reply = self.receive()?;
            match reply["kind"].as_str() {
                Some("pod") => {
                    let pod = Pod(reply["pod"].take());
                    pods.insert(pod.name(), pod);
                }
                Some("synced") => return Ok(pods),
                _ => bail!("the agent answers {reply}"),
            }
        }
    }

    /// What happened to one pod, oldest first.
    ///
    /// # Errors
    /// The agent is gone or answers otherwise.
    pub fn events(&mut self, uid: &str) -> Result<Vec<Value>> {
        self.send(&json!({"op": "events", "pod": uid}))?;
        let mut reply = self.receive()?;
        match reply["events"].take() {
            Value::Array(events) => Ok(events),
            _ => bail!("the agent answers {reply}"),
        }
    }

    /// Turns the connection into a watch.
    ///
    /// # Errors
    /// The agent is gone.
    pub fn watch(mut self) -> Result<Watch> {
        self.send(&json!({"op": "pods", "watch": true}))?;
        Ok(Watch(self))
    }
}

/// A watch over all pods.
#[derive(Debug)]
pub struct Watch(Socket);

/// What a watch tells.
#[derive(Debug, Clone)]
pub enum Change {
    /// A pod as it is now.
    Pod(Box<Pod>),
    /// Nothing of that pod (`namespace/name`) is left.
    Removed(String),
    /// All that there was at the beginning has been told; `resync` begins anew.
    Other,
}

impl Watch {
    /// The next change; `None` where none came until `end`.
    ///
    /// # Errors
    /// The agent is gone.
    pub fn next(&mut self, end: Instant) -> Result<Option<Change>> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        // Only the wait for the next frame is limited: one that has begun is read to its end.
        self.0.0.set_read_timeout(Some(left))?;
        let mut peeked = [0];
        match nix::sys::socket::recv(
            std::os::fd::AsRawFd::as_raw_fd(&self.0.0),
            &mut peeked,
            nix::sys::socket::MsgFlags::MSG_PEEK,
        ) {
            Ok(0) => bail!("the agent closed the watch"),
            Ok(_) => {}
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Ok(None),
            Err(e) => return Err(e).context("read from the agent's socket"),
        }
        self.0.0.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut reply = self.0.receive()?;
        Ok(Some(match reply["kind"].as_str() {
            Some("pod") => Change::Pod(Box::new(Pod(reply["pod"].take()))),
            Some("removed") => Change::Removed(key(&reply["key"])),
            Some("error") => bail!("the agent answers {reply}"),
            _ => Change::Other,
        }))
    }

    /// Follows until `found` says so.
    ///
    /// # Errors
    /// It does not within `patience`, or the agent is gone.
    pub fn until(
        &mut self,
        what: &str,
        patience: Duration,
        mut found: impl FnMut(&Change) -> bool,
    ) -> Result<()> {
        let end = Instant::now() + patience;
        while let Some(change) = self.next(end)? {
            if found(&change) {
                return Ok(());
            }
        }
        bail!("waited {} s in vain until {what}", patience.as_secs())
    }
}

fn key(key: &Value) -> String {
    format!("{}/{}", key["namespace"].as_str().unwrap_or_default(), key["name"].as_str().unwrap_or_default())
}

/// A pod as the agent tells it.
#[derive(Debug, Clone)]
pub struct Pod(pub Value);

impl Pod {
    /// `namespace/name`.
    pub fn name(&self) -> String {
        key(&self.0["key"])
    }

    /// Its UID.
    pub fn uid(&self) -> String {
        self.0["uid"].as_str().unwrap_or_default().to_owned()
    }

    /// The `v1.Pod`'s status.
    pub fn status(&self) -> &Value {
        &self.0["object"]["status"]
    }

    /// `status.phase`.
    pub fn phase(&self) -> &str {
        self.status()["phase"].as_str().unwrap_or_default()
    }

    /// `status.podIP`; empty before there is one.
    pub fn ip(&self) -> &str {
        self.status()["podIP"].as_str().unwrap_or_default()
    }

    /// The status of a condition: `True`, `False`, `Unknown`; empty where there is none.
    pub fn condition(&self, kind: &str) -> &str {
        let conditions = self.status()["conditions"].as_array();
        let found = conditions.and_then(|all| all.iter().find(|c| c["type"] == kind));
        found.and_then(|c| c["status"].as_str()).unwrap_or_default()
    }

    /// Whether condition Ready is True.
    pub fn ready(&self) -> bool {
        self.condition("Ready") == "True"
    }

    /// Why it is not Ready, as the agent says.
    pub fn waiting_for(&self) -> &str {
        self.0["waiting_for"].as_str().unwrap_or_default()
    }

    /// The status of one of its containers, init containers and sidecars among them; null where there is none.
    pub fn container(&self, name: &str) -> &Value {
        let lists = ["containerStatuses", "initContainerStatuses"];
        let mut all = lists.iter().filter_map(|l| self.status()[*l].as_array()).flatten();
        all.find(|c| c["name"] == name).unwrap_or(&Value::Null)
    }

    /// How often a container was restarted.
    pub fn restarts(&self, container: &str) -> u64 {
        self.container(container)["restartCount"].as_u64().unwrap_or(0)
    }

    /// The exit code of a container's present or last end.
    pub fn exit_code(&self, container: &str) -> Option<i64> {
        let c = self.container(container);
        c["state"]["terminated"]["exitCode"].as_i64().or(c["lastState"]["terminated"]["exitCode"].as_i64())
    }

    /// The processes of its containers by name: pid and start time.
    pub fn processes(&self) -> BTreeMap<String, crate::process::Process> {
        let mut found = BTreeMap::new();
        for c in self.0["containers"].as_array().into_iter().flatten() {
            if let (Some(name), Some(pid), Some(start)) =
                (c["name"].as_str(), c["pid"].as_u64(), c["start_time"].as_u64())
            {
                let pid = u32::try_from(pid).unwrap_or(0);
                found.insert(name.to_owned(), crate::process::Process { pid, start });
            }
        }
        found
    }
}
