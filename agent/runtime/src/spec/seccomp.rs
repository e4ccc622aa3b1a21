//! The `RuntimeDefault` seccomp profile, as containerd 2.4 writes it into the spec.
//!
//! The profile is an allow-list of system call names. A few names are restricted by argument, and
//! capabilities allow more. Every other call fails with EPERM. `clone3` fails with ENOSYS, so that C
//! libraries fall back to `clone`, whose flags a filter can check.

use oci_spec::{
    OciSpecError,
    runtime::{
        Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
        LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
    },
};

/// System calls that are allowed with any arguments and capabilities.
const ALWAYS: &str = "accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 \
     clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
     clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 \
     epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old \
     eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate \
     fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync \
     fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync \
     ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat \
     getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups \
     getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid \
     getresgid32 getresuid getresuid32 getrlimit get_robust_list getrusage getsid getsockname getsockopt \
     get_thread_area gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init \
     inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents io_pgetevents \
     io_pgetevents_time64 ioprio_get ioprio_set io_setup io_submit ipc kill landlock_add_rule \
     landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount \
     listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lsm_get_self_attr lsm_list_modules \
     lsm_set_self_attr lstat lstat64 madvise membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod \
     mknodat mlock mlock2 mlockall map_shadow_stack mmap mmap2 mprotect mq_getsetattr mq_notify mq_open \
     mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl \
     msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect \
     open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect \
     poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 \
     pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg \
     recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 \
     restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn \
     rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr \
     sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval \
     sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler \
     sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 \
     sendmmsg sendmsg sendto setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 \
     setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid \
     setreuid32 setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setuid32 \
     setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask \
     sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat \
     sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun \
     timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime \
     timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask \
     uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid \
     waitpid write writev";

/// Socket families 1 (AF_UNIX) to this one are allowed. AF_ALG (38), the kernel's cryptography, is the first
/// gap.
const LAST_OF_FIRST_FAMILIES: u64 = 37;
/// Families allowed beyond the gap; without AF_VSOCK (40), which reaches past network namespaces.
const MORE_FAMILIES: [u64; 6] = [39, 41, 42, 43, 44, 45];
/// `personality` values: Linux, combined with 32-bit addresses and with uname 2.6, and the query.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x20000, 0x20008, 0xffff_ffff];
/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
const CLONE_NEW: u64 = 0x7e02_0000;
const ENOSYS: u32 = 38;

/// Additional system calls of a capability in the bounding set, in the order of that set.
fn by_capability(capability: &str) -> Option<&'static str> {
    Some(match capability {
        "CAP_DAC_READ_SEARCH" => "open_by_handle_at",
        "CAP_SYS_ADMIN" => {
            "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr \
             move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog \
             umount umount2 unshare"
        }
        "CAP_SYS_BOOT" => "reboot",
        "CAP_SYS_CHROOT" => "chroot",
        "CAP_SYS_MODULE" => "delete_module init_module finit_module",
        "CAP_SYS_PACCT" => "acct",
        "CAP_SYS_PTRACE" => "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
        "CAP_SYS_RAWIO" => "iopl ioperm",
        "CAP_SYS_TIME" => "settimeofday stime clock_settime clock_settime64",
        "CAP_SYS_TTY_CONFIG" => "vhangup",
        "CAP_SYS_NICE" => "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
        "CAP_SYSLOG" => "syslog",
        "CAP_BPF" => "bpf",
        "CAP_PERFMON" => "perf_event_open",
        _ => return None,
    })
}

fn architectures() -> Vec<Arch> {
    if cfg!(target_arch = "x86_64") {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
    } else if cfg!(target_arch = "aarch64") {
        vec![Arch::ScmpArchArm, Arch::ScmpArchAarch64]
    } else if cfg!(target_arch = "riscv64") {
        vec![Arch::ScmpArchRiscv64]
    } else {
        Vec::new()
    }
}

fn of_this_architecture() -> Option<&'static str> {
    if cfg!(target_arch = "x86_64") {
        Some("arch_prctl modify_ldt")
    } else if cfg!(target_arch = "aarch64") {
        Some("arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls")
    } else if cfg!(target_arch = "riscv64") {
        Some("riscv_flush_icache riscv_hwprobe")
    } else {
        None
    }
}

fn allow(names: &str, args: Vec<LinuxSeccompArg>) -> Result<LinuxSyscall, OciSpecError> {
    let rule = LinuxSyscallBuilder::default()
        .names(names.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .action(LinuxSeccompAction::ScmpActAllow);
    if args.is_empty() { rule.build() } else { rule.args(args).build() }
}

fn first_argument(op: LinuxSeccompOperator, value: u64) -> Result<Vec<LinuxSeccompArg>, OciSpecError> {
    Ok(vec![LinuxSeccompArgBuilder::default().index(0_usize).value(value).op(op).build()?])
}

/// The profile for a process whose bounding set is `bounding` (names with `CAP_`).
pub(super) fn default_profile(bounding: &[String]) -> Result<LinuxSeccomp, OciSpecError> {
    use LinuxSeccompOperator::{ScmpCmpEq, ScmpCmpLt, ScmpCmpMaskedEq};
    let mut rules = vec![allow(ALWAYS, Vec::new())?];
    rules.push(allow("socket", first_argument(ScmpCmpLt, LAST_OF_FIRST_FAMILIES + 1)?)?);
    for family in MORE_FAMILIES {
        rules.push(allow("socket", first_argument(ScmpCmpEq, family)?)?);
    }
    for personality in PERSONALITIES {
        rules.push(allow("personality", first_argument(ScmpCmpEq, personality)?)?);
    }
    // Since Linux 4.8 seccomp runs after ptrace may have changed the call, so a tracer cannot bypass the
    // filter.
    rules.push(allow("process_vm_readv process_vm_writev ptrace", Vec::new())?);
    if let Some(names) = of_this_architecture() {
        rules.push(allow(names, Vec::new())?);
    }
    for capability in bounding {
        if let Some(names) = by_capability(capability) {
            rules.push(allow(names, Vec::new())?);
        }
    }
    if !bounding.iter().any(|c| c == "CAP_SYS_ADMIN") {
        rules.push(allow("clone", first_argument(ScmpCmpMaskedEq, CLONE_NEW)?)?);
        rules.push(
            LinuxSyscallBuilder::default()
                .names(vec!["clone3".to_owned()])
                .action(LinuxSeccompAction::ScmpActErrno)
                .errno_ret(ENOSYS)
                .build()?,
        );
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .architectures(architectures())
        .syscalls(rules)
        .build()
}
