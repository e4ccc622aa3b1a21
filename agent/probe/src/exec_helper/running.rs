//! One command, from the request until nothing of it is left.

use super::cgroup::{self, CommandCgroup};
use crate::net::kernels_words;
use berth_api::exec::{ExecOutcome, ExecTarget, MAX_OUTPUT, Reply};
use berth_sys::exec::{self, Command, Container, Process, Report, Stage};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, waitid},
};
use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Instant,
};

/// Bytes of output that are read at a time before other commands are served.
const READ_PER_TURN: usize = 256 * 1024;

pub(super) struct Entry<'a> {
    pub(super) id: u64,
    pub(super) deadline: Instant,
    pub(super) target: &'a ExecTarget,
    pub(super) number: u64,
}

pub(super) struct Running {
    pub(super) id: u64,
    deadline: Instant,
    first: Option<Process>,
    command: Option<Process>,
    /// Whether there ever was a second process, which may have ended since.
    started: bool,
    /// Pipe for reports, open until the command runs or has failed to start.
    reports: Option<OwnedFd>,
    output: Option<OwnedFd>,
    text: Vec<u8>,
    failed: Option<String>,
    answered: bool,
    cgroup: Option<CommandCgroup>,
    /// When the rest of the cgroup is killed and removed again.
    retry: Option<Instant>,
}

/// Starts a command in its container.
pub(super) fn start(entry: Entry<'_>) -> Result<Running, ExecOutcome> {
    let not_run = |what: &str, e: &dyn std::error::Error| {
        ExecOutcome::NotRun(format!("cannot {what}: {}", kernels_words(&e)))
    };
    let target = entry.target;
    let gone = || ExecOutcome::NotRun("the container has ended".to_owned());
    let command = command(target)?;
    let pid = i32::try_from(target.pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
    let init = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(Errno::SRCH) => return Err(gone()),
        Err(e) => return Err(not_run("find the container", &e)),
    };
    // The pidfd is open already, so from here on the pid cannot be another process's.
    match berth_sys::process::start_time(target.pid) {
        Ok(Some(start)) if start == target.start_time => {}
        Ok(_) => return Err(gone()),
        Err(e) => return Err(not_run("find the container", &e)),
    }
    own_user_namespace(target.pid)?;
    let mut created = cgroup::create(&target.cgroup_dirs, entry.number)
        .map_err(|e| not_run("create the command's cgroup", &e))?;
    let container = Container { init: init.as_fd(), pid, cgroup_procs: &created.procs };
    match exec::enter(&container, &command) {
        Ok(entering) => Ok(Running {
            id: entry.id,
            deadline: entry.deadline,
            first: Some(entering.first),
            command: None,
            started: false,
            reports: Some(entering.reports),
            output: Some(entering.output),
            text: Vec::new(),
            failed: None,
            answered: false,
            cgroup: Some(created.cgroup),
            retry: None,
        }),
        Err(e) => {
            created.cgroup.remove();
            Err(not_run("enter the container", &e))
        }
    }
}

/// A container with its own user namespace needs its ids mapped, which is not supported.
fn own_user_namespace(pid: u32) -> Result<(), ExecOutcome> {
    let theirs = fs::read_link(format!("/proc/{pid}/ns/user"));
    match (theirs, fs::read_link("/proc/self/ns/user")) {
        (Ok(theirs), Ok(ours)) if theirs == ours => Ok(()),
        (Ok(_), Ok(_)) => Err(ExecOutcome::Unsupported("the container has a user namespace".to_owned())),
        (Err(e), _) | (_, Err(e)) => Err(ExecOutcome::NotRun(format!("cannot find the container: {e}"))),
    }
}

fn command(target: &ExecTarget) -> Result<Command, ExecOutcome> {
    let texts =
        |texts: &[String]| texts.iter().map(|t| CString::new(t.as_str())).collect::<Result<Vec<_>, _>>();
    let nul = |_| ExecOutcome::NotRun("the command holds a NUL character".to_owned());
    let process = &target.process;
    if target.command.is_empty() {
        return Err(ExecOutcome::NotRun("the command is empty".to_owned()));
    }
    Ok(Command {
        argv: texts(&target.command).map_err(nul)?,
        env: texts(&process.env).map_err(nul)?,
        cwd: CString::new(process.cwd.as_str()).map_err(nul)?,
        uid: process.uid,
        gid: process.gid,
        groups: process.groups.clone(),
        umask: process.umask,
        capabilities: process.capabilities,
        no_new_privs: process.no_new_privs,
        rlimits: process.rlimits.iter().map(|l| (l.resource, l.soft, l.hard)).collect(),
        oom_score_adj: process.oom_score_adj,
        find_home: !process.env.iter().any(|e| e.strip_prefix("HOME=").is_some_and(|h| !h.is_empty())),
    })
}

impl Running {
    /// Descriptors that are watched for input.
    pub(super) fn watched(&self) -> Vec<BorrowedFd<'_>> {
        let processes = [&self.first, &self.command].into_iter().flatten().map(|p| p.fd.as_fd());
        let pipes = [&self.reports, &self.output].into_iter().flatten().map(OwnedFd::as_fd);
        processes.chain(pipes).collect()
    }

    /// Time of the next action without input.
    pub(super) fn next_action(&self) -> Option<Instant> {
        let deadline = (!self.answered).then_some(self.deadline);
        deadline.into_iter().chain(self.retry).min()
    }

    /// Whether nothing of the command is left.
    pub(super) fn is_done(&self) -> bool {
        self.answered
            && self.cgroup.is_none()
            && self.first.is_none()
            && self.command.is_none()
            // While the pipe is open, a second process may still be reported.
            && self.reports.is_none()
    }

    /// Kills the command, because its caller no longer waits.
    pub(super) fn cancel(&mut self) {
        if !self.answered {
            self.answered = true;
            self.destroy();
        }
    }

    /// Advances without waiting. Returns the reply once.
    pub(super) fn advance(&mut self, now: Instant) -> Option<Reply> {
        self.read_reports();
        self.read_output();
        reap(&mut self.first);
        let ended = reap(&mut self.command);
        let outcome = if self.answered { None } else { self.outcome(ended, now) };
        if outcome.is_some() {
            self.answered = true;
            self.output = None;
        }
        if self.answered && self.retry.is_none_or(|at| at <= now) {
            self.clear(now);
        }
        outcome.map(|outcome| Reply { id: self.id, outcome })
    }

    fn outcome(&mut self, ended: Option<WaitIdStatus>, now: Instant) -> Option<ExecOutcome> {
        if ended.is_some() {
            // The process may have reported a failure and ended after the reports were read.
            self.read_reports();
        }
        if let Some(why) = self.failed.take() {
            return Some(ExecOutcome::NotRun(why));
        }
        if let Some(status) = ended {
            // The last output may have come after the pipe was read.
            self.read_output();
            let output = self.take_output();
            return Some(match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => ExecOutcome::Exited { code, output },
                (None, Some(signal)) => ExecOutcome::Killed { signal, output },
                (None, None) => ExecOutcome::NotRun("the command's end is not known".to_owned()),
            });
        }
        if now < self.deadline {
            return None;
        }
        let started = self.command.is_some() && self.reports.is_none();
        self.destroy();
        Some(if started {
            ExecOutcome::TimedOut { output: self.take_output() }
        } else {
            ExecOutcome::NotRun(
                "the command did not start in time; the container may be frozen or out of memory".to_owned(),
            )
        })
    }

    fn take_output(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.text)).into_owned()
    }

    fn read_reports(&mut self) {
        while let Some(reports) = &self.reports {
            match exec::read_report(reports) {
                Ok(Some(Report::Started(pid))) => {
                    self.started = true;
                    match Process::of(pid) {
                        Ok(process) => self.command = Some(process),
                        Err(e) => self.failed = Some(format!("cannot watch the command: {e}")),
                    }
                }
                Ok(Some(Report::Failed(stage, errno))) => self.failed = Some(explain(stage, errno)),
                Ok(None) => {
                    self.reports = None;
                    if !self.started && self.failed.is_none() {
                        self.failed = Some("the command was ended before it started".to_owned());
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => {
                    self.reports = None;
                    self.failed.get_or_insert(format!("cannot watch the command: {e}"));
                }
            }
        }
    }

    /// Reads the output, keeps its first part and discards the rest, so that the command never
    /// waits for a reader.
    fn read_output(&mut self) {
        let mut seen = 0;
        let mut chunk = [0u8; 16 * 1024];
        while let Some(output) = self.output.as_ref().filter(|_| seen < READ_PER_TURN) {
            match rustix::io::read(output, &mut chunk) {
                Ok(n @ 1..) => {
                    let room = MAX_OUTPUT.saturating_sub(self.text.len()).min(n);
                    self.text.extend_from_slice(chunk.get(..room).unwrap_or_default());
                    seen += n;
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => self.output = None,
            }
        }
    }

    /// Kills all processes of the command.
    fn destroy(&mut self) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
        // These processes may not have entered the cgroup.
        for process in [&self.first, &self.command].into_iter().flatten() {
            cgroup::kill_process(process.fd.as_fd());
        }
    }

    /// After the reply: kills remaining processes and removes the cgroup.
    fn clear(&mut self, now: Instant) {
        self.retry = None;
        self.output = None;
        let Some(cgroup) = &mut self.cgroup else { return };
        if cgroup.remove() {
            self.cgroup = None;
            return;
        }
        self.retry = Some(now + cgroup.backoff());
        self.destroy();
    }
}

/// Reaps a process and returns its status once. From then on its pid may be reused.
fn reap(process: &mut Option<Process>) -> Option<WaitIdStatus> {
    let held = process.as_ref()?;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    match waitid(WaitId::PidFd(held.fd.as_fd()), options) {
        Ok(None) | Err(Errno::INTR) => None,
        Ok(status) => {
            *process = None;
            status
        }
        Err(error) => {
            tracing::error!(pid = held.pid.as_raw_nonzero().get(), %error, "cannot wait for a child");
            *process = None;
            None
        }
    }
}

/// Reaps second processes whose first process was killed before it could report them.
pub(super) fn reap_strays() {
    while let Ok(Some(_)) = waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {}
}

fn explain(stage: Stage, errno: Errno) -> String {
    let what = match stage {
        Stage::Descriptors => "set up the command's descriptors",
        Stage::Cgroup => "join the container's cgroup",
        Stage::Namespaces if errno == Errno::SRCH => return "the container has ended".to_owned(),
        Stage::Namespaces => "join the container's namespaces",
        Stage::Rlimit => "set the command's resource limits",
        Stage::WorkingDirectory => "change to the container's working directory",
        Stage::Bounding | Stage::Capabilities => "set the command's capabilities",
        Stage::Credentials => "set the command's user and groups",
        Stage::NoNewPrivs => "set no_new_privs",
        Stage::Fork => "start a process in the container",
        Stage::Exec => "execute the command",
    };
    format!("cannot {what}: {}", kernels_words(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn under_way(reports: OwnedFd, deadline: Instant) -> Running {
        Running {
            id: 1,
            deadline,
            first: None,
            command: None,
            started: true,
            reports: Some(reports),
            output: None,
            text: Vec::new(),
            failed: None,
            answered: false,
            cgroup: None,
            retry: None,
        }
    }

    /// Status of a child that exits with this code.
    fn ended(code: &str) -> WaitIdStatus {
        let mut shell = std::process::Command::new("/bin/sh");
        let mut child = shell.args(["-c", &format!("exit {code}")]).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let status =
            waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap().unwrap();
        child.wait().unwrap();
        status
    }

    /// Between two system calls of the helper, its child may report that execve failed, and exit.
    #[test]
    fn a_failure_reported_just_before_the_end_counts_and_the_exit_code_does_not() {
        let deadline = Instant::now() + Duration::from_secs(60);
        for told in [true, false] {
            let (reports, to) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
            let mut running = under_way(reports, deadline);
            running.read_reports();
            assert_eq!(running.outcome(None, Instant::now()), None);
            if told {
                let [a, b, c, d] = Errno::NOENT.raw_os_error().to_le_bytes();
                rustix::io::write(&to, &[Stage::Exec as u8, a, b, c, d]).unwrap();
            }
            drop(to);
            let outcome = running.outcome(Some(ended("127")), Instant::now()).unwrap();
            let wanted = if told {
                ExecOutcome::NotRun(explain(Stage::Exec, Errno::NOENT))
            } else {
                ExecOutcome::Exited { code: 127, output: String::new() }
            };
            assert_eq!(outcome, wanted);
        }
    }
}
