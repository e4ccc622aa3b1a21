//! Kills of a child before a counted change of its pins or links.
//!
//! The thread of the child that works is traced with ptrace(2), so that a kill hits the same place however
//! busy the machine is.

use nix::{
    sys::{
        ptrace::{self, Options},
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, gettid},
};
use std::{
    fs,
    io::{self, BufRead, BufReader, Read as _},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
};

/// Before the id of the thread in the child's output.
const THREAD: &str = "traced thread: ";

/// Commands of bpf(2) that change pins or links: `BPF_OBJ_PIN`, `BPF_LINK_CREATE`, `BPF_LINK_UPDATE`.
const CHANGING: [u64; 3] = [6, 28, 29];

/// Waits in the child until the parent traces this thread.
pub(super) fn wait_for_tracer() {
    println!("{THREAD}{}", gettid());
    io::stdin().read_line(&mut String::new()).unwrap();
}

/// A child whose working thread is traced.
pub(super) struct Traced {
    child: Child,
    thread: Pid,
    /// Open until the end, as the child would fail to print otherwise.
    _output: BufReader<ChildStdout>,
}

impl Traced {
    /// Starts a child that calls [`wait_for_tracer`].
    pub(super) fn start(command: &mut Command) -> Traced {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let thread = output
            .by_ref()
            .lines()
            .find_map(|line| line.unwrap().split_once(THREAD).map(|(_, id)| id.parse().unwrap()));
        let thread = Pid::from_raw(thread.expect("the child names its thread"));
        ptrace::seize(thread, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL).unwrap();
        ptrace::interrupt(thread).unwrap();
        Traced { child, thread, _output: output }
    }

    /// Lets the child run, and kills it before change number `at`, counted from 0. Without `at` the child runs
    /// to its end. Returns the number of changes before the end.
    pub(super) fn run(mut self, at: Option<usize>) -> (usize, ExitStatus) {
        let mut changes = 0;
        loop {
            let signal = match waitpid(self.thread, Some(WaitPidFlag::__WALL)).unwrap() {
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => break,
                WaitStatus::PtraceSyscall(_) if is_change(self.child.id(), self.thread) => {
                    if at == Some(changes) {
                        // The kernel does not begin the call of a thread that is killed here.
                        self.child.kill().unwrap();
                        continue;
                    }
                    changes += 1;
                    None
                }
                WaitStatus::PtraceEvent(..) => {
                    // The thread is stopped for the first time: it may go on.
                    drop(self.child.stdin.take());
                    None
                }
                WaitStatus::Stopped(_, signal) => Some(signal),
                _ => None::<Signal>,
            };
            ptrace::syscall(self.thread, signal).unwrap();
        }
        (changes, self.child.wait().unwrap())
    }
}

/// Whether the thread is about to change a pin, a link or a directory of pins.
fn is_change(process: u32, thread: Pid) -> bool {
    if ptrace::syscall_info(thread).unwrap().op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return false;
    }
    let call = fs::read_to_string(format!("/proc/{process}/task/{thread}/syscall")).unwrap();
    let mut fields = call.split_whitespace();
    let number: i64 = fields.next().unwrap().parse().unwrap();
    if number == libc::SYS_bpf {
        let command = fields.next().unwrap().trim_start_matches("0x");
        return CHANGING.contains(&u64::from_str_radix(command, 16).unwrap());
    }
    #[cfg(target_arch = "x86_64")]
    if [libc::SYS_rename, libc::SYS_unlink, libc::SYS_symlink, libc::SYS_mkdir, libc::SYS_rmdir]
        .contains(&number)
    {
        return true;
    }
    [libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_unlinkat, libc::SYS_symlinkat, libc::SYS_mkdirat]
        .contains(&number)
}
