//! The record of a sandbox: what a sandbox's creation writes to the tmpfs, and the state that the record and
//! the kernel show together.

use super::{failed, kinds, sandbox_id};
use crate::NodeExecutor;
use berth_core::{
    error::Chain,
    ids::{BootId, PodUid, SandboxAttempt},
    model::{Pod, PodNamespaces},
    plan::{Failure, ObservedSandbox, SandboxState},
};
use berth_pods::NodeProcess;
use berth_sys::{
    ns::{self, NsKind},
    process,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
};

/// The stored record of a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    #[serde(rename = "incarnation")]
    pub(crate) sandbox_attempt: SandboxAttempt,
    pub(super) boot: BootId,
    pub(super) complete: bool,
    pub(super) ips: Vec<IpAddr>,
    pub(super) pause: Option<(u32, u64)>,
    /// The file names of the namespaces that a complete sandbox has pinned. Empty where the pod uses the
    /// host's namespaces only.
    #[serde(default)]
    pins: Vec<String>,
}

impl SandboxRecord {
    /// The record of a sandbox whose creation begins.
    pub(super) fn begun(
        sandbox_attempt: SandboxAttempt,
        boot: &BootId,
        namespaces: &PodNamespaces,
    ) -> SandboxRecord {
        let shared_pid = namespaces.share_pid.then_some(NsKind::Pid);
        let pins = kinds(namespaces).into_iter().chain(shared_pid);
        SandboxRecord {
            sandbox_attempt,
            boot: boot.clone(),
            complete: false,
            ips: Vec::new(),
            pause: None,
            pins: pins.map(|k| k.file_name().to_owned()).collect(),
        }
    }

    fn parse(text: &[u8]) -> Result<SandboxRecord, String> {
        serde_json::from_slice(text).map_err(|e| e.to_string())
    }

    /// Whether every namespace that the record names is pinned.
    fn is_pinned(&self, dir: &Path) -> Result<bool, Failure> {
        for kind in NsKind::ALL.into_iter().filter(|k| self.pins.iter().any(|p| p == k.file_name())) {
            if !ns::is_pinned(dir, kind).map_err(|e| Failure::new("InternalError", Chain(&e)))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn pause_alive(&self) -> Result<bool, Failure> {
        let Some((pid, start)) = self.pause else { return Ok(false) };
        process::alive(pid, start).map_err(|e| Failure::new("InternalError", Chain(&e)))
    }

    pub(super) fn process(&self) -> Option<NodeProcess> {
        self.pause.map(|(pid, start_time)| NodeProcess { pid, start_time })
    }

    pub(super) fn seen(self, state: SandboxState) -> ObservedSandbox {
        ObservedSandbox { sandbox_attempt: self.sandbox_attempt, state, ips: self.ips }
    }
}

/// The largest record in bytes that is read.
const MAX_RECORD_BYTES: usize = 64 << 10;

impl NodeExecutor {
    pub(crate) fn record_path(&self, uid: &PodUid) -> PathBuf {
        self.config.roots.sandbox_record(uid)
    }

    /// The record of the pod's sandbox. An unreadable record is set aside under `.bad` and counts as none.
    pub(crate) fn sandbox_record(&self, uid: &PodUid) -> Result<Option<SandboxRecord>, Failure> {
        let path = self.record_path(uid);
        let internal = |what: &str, e: &dyn std::error::Error| {
            Failure::new("InternalError", format!("cannot {what} {}: {}", path.display(), Chain(e)))
        };
        if !path.try_exists().map_err(|e| internal("look for", &e))? {
            return Ok(None);
        }
        let text = berth_sys::fs::read_limited(&path, MAX_RECORD_BYTES).map_err(|e| internal("read", &e))?;
        match SandboxRecord::parse(&text) {
            Ok(record) => Ok(Some(record)),
            Err(why) => {
                tracing::warn!(file = %path.display(), why, "cannot read a sandbox's record: set aside");
                std::fs::rename(&path, path.with_extension("bad")).map_err(|e| internal("set aside", &e))?;
                Ok(None)
            }
        }
    }

    pub(super) fn write_record(&self, uid: &PodUid, record: &SandboxRecord) -> Result<(), Failure> {
        let path = self.record_path(uid);
        let parent = self.config.roots.sandbox_records_dir();
        std::fs::create_dir_all(&parent).map_err(|e| failed("create the records' directory", &e))?;
        let text = serde_json::to_vec(record).map_err(|e| failed("encode the sandbox's record", &e))?;
        berth_sys::fs::write_atomic(&path, &text, 0o600).map_err(|e| failed("write the sandbox's record", &e))
    }

    /// The state of the pod's sandbox, checked against the kernel. `lives` is the pod and the sandbox attempt
    /// in which its containers run. Where no record can be read, the record is rebuilt from the pins, the
    /// network and the pause process.
    pub(crate) fn see_sandbox(
        &self,
        uid: &PodUid,
        lives: Option<(&Pod, SandboxAttempt)>,
    ) -> Result<Option<ObservedSandbox>, Failure> {
        let dir = self.config.roots.sandbox_dir(uid);
        let record = match self.sandbox_record(uid)? {
            Some(record) => record,
            None => {
                match lives
                    .map(|(pod, sandbox_attempt)| self.rebuild(pod, sandbox_attempt))
                    .transpose()?
                    .flatten()
                {
                    Some(record) => {
                        tracing::warn!(%uid, "cannot read the sandbox's record: rebuilt from its pins, network and pause process");
                        self.write_record(uid, &record)?;
                        record
                    }
                    None if dir.exists() => {
                        // A part of a sandbox is left. `Broken` makes the plan tear down that part.
                        let sandbox_attempt = lives.map(|(_, i)| i).unwrap_or_default();
                        let own = PodNamespaces::default();
                        return Ok(Some(
                            SandboxRecord::begun(sandbox_attempt, &self.config.boot, &own)
                                .seen(SandboxState::Broken),
                        ));
                    }
                    None => return Ok(None),
                }
            }
        };
        let whole = record.complete && record.boot == self.config.boot && record.is_pinned(&dir)?;
        let state = match (whole, record.pause_alive()?) {
            (false, _) => SandboxState::Broken,
            (true, true) => SandboxState::Ready,
            (true, false) => SandboxState::NoPause,
        };
        if let Some(pause) = record.process().filter(|_| state == SandboxState::Ready) {
            self.watch_pause(uid, pause);
        }
        Ok(Some(record.seen(state)))
    }

    /// Rebuilds the record of a complete sandbox from its pins, its network attachment and its pause process.
    /// `None` where the pins or the attachment are missing.
    fn rebuild(&self, pod: &Pod, sandbox_attempt: SandboxAttempt) -> Result<Option<SandboxRecord>, Failure> {
        let mut record = SandboxRecord::begun(sandbox_attempt, &self.config.boot, &pod.namespaces);
        record.ips = if pod.namespaces.host_network {
            self.node().ips.clone()
        } else {
            match self.network.attachment(&sandbox_id(&pod.uid, sandbox_attempt)?) {
                Some(attachment) => attachment.ips,
                None => return Ok(None),
            }
        };
        if !record.is_pinned(&self.config.roots.sandbox_dir(&pod.uid))? {
            return Ok(None);
        }
        record.pause = self.stray_pauses(&pod.uid)?.first().map(|p| (p.pid, p.start_time));
        record.complete = true;
        Ok(Some(record))
    }

    /// The pods that have a sandbox or a part of one.
    pub(crate) fn sandboxes(&self) -> BTreeSet<PodUid> {
        let roots = &self.config.roots;
        let mut found = BTreeSet::new();
        for (dir, extension) in [(roots.sandbox_records_dir(), Some("json")), (roots.sandboxes_dir(), None)] {
            let Ok(entries) = std::fs::read_dir(dir) else { continue };
            found.extend(entries.filter_map(|e| {
                let path = e.ok()?.path();
                let ours = path.extension().and_then(|e| e.to_str()) == extension;
                PodUid::new(path.file_stem()?.to_str()?).ok().filter(|_| ours)
            }));
        }
        found
    }

    /// The CNI container ids of these pods' sandboxes.
    pub(crate) fn sandbox_ids(&self, uids: impl Iterator<Item = PodUid>) -> BTreeSet<String> {
        uids.filter_map(|u| {
            let record = self.sandbox_record(&u).ok()??;
            sandbox_id(&u, record.sandbox_attempt).ok()
        })
        .collect()
    }
}
