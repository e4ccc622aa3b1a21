//! One command, from the request until nothing of it is left.

use super::{
    cgroup::{self, CommandCgroup},
    entry::{command, own_user_namespace, streams_of},
    explain::{explain, explain_to_client},
};
use crate::net::kernels_words;
use berth_api::exec::{ExecOutcome, ExecTarget, MAX_OUTPUT, Reply};
use berth_sys::exec::{self, Container, Process, Report, Streams};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, waitid},
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Instant,
};

/// Bytes of output that are read at a time before other commands are served.
const READ_PER_TURN: usize = 256 * 1024;

/// What kind of command is started.
pub(super) enum Kind<'a> {
    /// Its output is kept, and it ends at its deadline.
    Captured,
    /// It belongs to a client with these descriptors; the deadline is that of its start.
    Session(&'a [OwnedFd]),
}

pub(super) struct Entry<'a> {
    pub(super) id: u64,
    pub(super) deadline: Instant,
    pub(super) target: &'a ExecTarget,
    pub(super) number: u64,
    pub(super) kind: &'a Kind<'a>,
}

pub(super) struct Running {
    pub(super) id: u64,
    /// None for a session that runs.
    deadline: Option<Instant>,
    /// The program's name, of a session.
    session: Option<String>,
    first: Option<Process>,
    command: Option<Process>,
    /// The second process, which may have ended since.
    started: Option<Pid>,
    /// Whether the caller of a session has still to be told that the command runs.
    untold: bool,
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
pub(super) fn start(entry: &Entry<'_>) -> Result<Running, ExecOutcome> {
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
    let (streams, session) = match entry.kind {
        Kind::Captured => (Streams::Captured, None),
        Kind::Session(given) => {
            (streams_of(given)?, Some(target.command.first().cloned().unwrap_or_default()))
        }
    };
    let mut created = cgroup::create(&target.cgroup_dirs, entry.number, session.is_some())
        .map_err(|e| not_run("create the command's cgroup", &e))?;
    let container = Container { init: init.as_fd(), pid, cgroup_procs: &created.procs };
    match exec::enter(&container, &command, streams) {
        Ok(entering) => Ok(Running {
            id: entry.id,
            deadline: Some(entry.deadline),
            untold: session.is_some(),
            session,
            first: Some(entering.first),
            command: None,
            started: None,
            reports: Some(entering.reports),
            output: entering.output,
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

impl Running {
    /// Descriptors that are watched for input.
    pub(super) fn watched(&self) -> Vec<BorrowedFd<'_>> {
        let processes = [&self.first, &self.command].into_iter().flatten().map(|p| p.fd.as_fd());
        let pipes = [&self.reports, &self.output].into_iter().flatten().map(OwnedFd::as_fd);
        processes.chain(pipes).collect()
    }

    /// Whether the command is a client's.
    pub(super) fn is_session(&self) -> bool {
        self.session.is_some()
    }

    /// Whether what is left after the command's end stays.
    pub(super) fn stays(&self) -> bool {
        self.cgroup.as_ref().is_some_and(CommandCgroup::keeps)
    }

    /// Whether the command has ended or was given up.
    pub(super) fn is_answered(&self) -> bool {
        self.answered
    }

    /// Time of the next action without input.
    pub(super) fn next_action(&self) -> Option<Instant> {
        let deadline = self.deadline.filter(|_| !self.answered);
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

    /// Kills the command, because its caller no longer waits. A session may have ended in this moment, by the hangup of
    /// its terminal: what is left of it was not to stay.
    pub(super) fn cancel(&mut self) {
        if !self.answered || self.stays() {
            self.answered = true;
            self.retry = None;
            self.destroy();
        }
    }

    /// Advances without waiting. Returns the outcome once, and before it that a session's command runs.
    pub(super) fn advance(&mut self, now: Instant) -> Vec<Reply> {
        self.read_reports();
        self.read_output();
        reap(&mut self.first);
        let ended = reap(&mut self.command);
        let outcome = if self.answered { None } else { self.outcome(ended, now) };
        if let Some(outcome) = &outcome {
            self.answered = true;
            self.output = None;
            // Of a command that never ran there is nothing that could stay.
            if let (ExecOutcome::NotRun(_), Some(cgroup)) = (outcome, &mut self.cgroup) {
                cgroup.doom();
            }
        }
        if self.answered && self.retry.is_none_or(|at| at <= now) {
            self.clear(now);
        }
        let runs = self.reports.is_none() && !matches!(outcome, Some(ExecOutcome::NotRun(_)));
        let told = self.started.filter(|_| runs && std::mem::take(&mut self.untold));
        let pid = told.and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok());
        let started = pid.map(|pid| Reply::Started { id: self.id, pid });
        if self.session.is_some() && runs {
            self.deadline = None;
        }
        let ended = outcome.map(|outcome| Reply::Ended { id: self.id, outcome });
        started.into_iter().chain(ended).collect()
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
        let started = self.command.is_some() && self.reports.is_none();
        // A session that runs has no deadline, also where it began to run in this moment.
        if self.deadline.is_none_or(|deadline| now < deadline) || started && self.session.is_some() {
            return None;
        }
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
                    self.started = Some(pid);
                    match Process::of(pid) {
                        Ok(process) => self.command = Some(process),
                        Err(e) => self.failed = Some(format!("cannot watch the command: {e}")),
                    }
                }
                Ok(Some(Report::Failed(stage, errno))) => {
                    self.failed = Some(match &self.session {
                        Some(program) => explain_to_client(stage, errno, program),
                        None => explain(stage, errno),
                    });
                }
                Ok(None) => {
                    self.reports = None;
                    if self.started.is_none() && self.failed.is_none() {
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
        if let Some(cgroup) = &mut self.cgroup {
            cgroup.doom();
            cgroup.kill();
        }
        // These processes may not have entered the cgroup.
        for process in [&self.first, &self.command].into_iter().flatten() {
            cgroup::kill_process(process.fd.as_fd());
        }
    }

    /// After the outcome: kills remaining processes, unless they stay, and removes the cgroup.
    fn clear(&mut self, now: Instant) {
        self.retry = None;
        self.output = None;
        let Some(cgroup) = &mut self.cgroup else { return };
        if cgroup.remove() {
            self.cgroup = None;
            return;
        }
        self.retry = Some(now + cgroup.backoff());
        if !cgroup.keeps() {
            self.destroy();
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use berth_sys::exec::Stage;
    use std::time::Duration;

    fn under_way(reports: OwnedFd, deadline: Instant) -> Running {
        Running {
            id: 1,
            deadline: Some(deadline),
            session: None,
            first: None,
            command: None,
            started: Pid::from_raw(1),
            untold: false,
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
