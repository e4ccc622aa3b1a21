//! Independent client of the agent's local socket, without the project's own client code. A frame is a length
//! (u32, little endian) and a JSON document.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

/// A connection to the agent.
#[derive(Debug)]
pub struct Socket(UnixStream);

impl Socket {
    /// Connects and sends the greeting.
    ///
    /// # Errors
    /// The agent does not answer within five seconds.
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
    /// The agent has closed the connection.
    pub fn send(&mut self, message: &Value) -> Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let mut frame = u32::try_from(bytes.len())?.to_le_bytes().to_vec();
        frame.extend(bytes);
        self.0.write_all(&frame).context("write to the agent's socket")
    }

    /// Reads the next message.
    ///
    /// # Errors
    /// The agent has closed the connection, or the read timeout passed.
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
    /// The connection is closed or the answer is of another kind.
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

    /// Events of one pod, oldest first.
    ///
    /// # Errors
    /// The connection is closed or the answer is of another kind.
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
    /// The connection is closed.
    pub fn watch(mut self) -> Result<Watch> {
        self.send(&json!({"op": "pods", "watch": true}))?;
        Ok(Watch(self))
    }
}

/// A watch over all pods.
#[derive(Debug)]
pub struct Watch(Socket);

/// A change that a watch reports.
#[derive(Debug, Clone)]
pub enum Change {
    /// The pod as it is now.
    Pod(Box<Pod>),
    /// Nothing of this pod (`namespace/name`) is left.
    Removed(String),
    /// Marker without a pod: the initial state is complete, or (`resync`) is sent from the beginning.
    Other,
}

impl Watch {
    /// The next change; `None` where none came before `end`.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn next(&mut self, end: Instant) -> Result<Option<Change>> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        // The timeout covers only the wait for a frame; a frame that has begun is read to its end.
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

    /// Follows the watch until `found` returns a value.
    ///
    /// # Errors
    /// `found` returned no value within `patience`, or the connection is closed.
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

/// A pod as the agent reports it.
#[derive(Debug, Clone)]
pub struct Pod(pub Value);

impl Pod {
    /// Full name, `namespace/name`.
    pub fn name(&self) -> String {
        key(&self.0["key"])
    }

    /// UID of the pod.
    pub fn uid(&self) -> String {
        self.0["uid"].as_str().unwrap_or_default().to_owned()
    }

    /// Status of the `v1.Pod`.
    pub fn status(&self) -> &Value {
        &self.0["object"]["status"]
    }

    /// Value of `status.phase`.
    pub fn phase(&self) -> &str {
        self.status()["phase"].as_str().unwrap_or_default()
    }

    /// Value of `status.podIP`; empty until the pod has an address.
    pub fn ip(&self) -> &str {
        self.status()["podIP"].as_str().unwrap_or_default()
    }

    /// Status of a condition: `True`, `False` or `Unknown`; empty where the pod has no such condition.
    pub fn condition(&self, kind: &str) -> &str {
        let conditions = self.status()["conditions"].as_array();
        let found = conditions.and_then(|all| all.iter().find(|c| c["type"] == kind));
        found.and_then(|c| c["status"].as_str()).unwrap_or_default()
    }

    /// Whether condition Ready is True.
    pub fn ready(&self) -> bool {
        self.condition("Ready") == "True"
    }

    /// The agent's reason why the pod is not Ready.
    pub fn waiting_for(&self) -> &str {
        self.0["waiting_for"].as_str().unwrap_or_default()
    }

    /// Status of a container, init container or sidecar; null where the pod has none of this name.
    pub fn container(&self, name: &str) -> &Value {
        let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
        let mut all = lists.iter().filter_map(|l| self.status()[*l].as_array()).flatten();
        all.find(|c| c["name"] == name).unwrap_or(&Value::Null)
    }

    /// Number of restarts of a container.
    pub fn restarts(&self, container: &str) -> u64 {
        self.container(container)["restartCount"].as_u64().unwrap_or(0)
    }

    /// Exit code of a container's current or last termination.
    pub fn exit_code(&self, container: &str) -> Option<i64> {
        let c = self.container(container);
        c["state"]["terminated"]["exitCode"].as_i64().or(c["lastState"]["terminated"]["exitCode"].as_i64())
    }

    /// Processes of the pod's containers by container name: pid and start time.
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
