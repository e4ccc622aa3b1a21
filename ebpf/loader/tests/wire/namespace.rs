//! Network namespaces, each with a thread that runs the test's work in it.

use nix::{
    sched::{CloneFlags, unshare},
    unistd::gettid,
};
use std::{
    process::Command,
    sync::mpsc::{Sender, channel},
    thread,
};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace. Dropping the value ends the thread and with it the namespace.
pub(crate) struct Namespace {
    tid: i32,
    jobs: Sender<Job>,
}

impl Namespace {
    pub(crate) fn new() -> Namespace {
        let (jobs, queue) = channel::<Job>();
        let (say, said) = channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            for (file, value) in [
                ("ipv4/ip_forward", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/all/accept_dad", "0"),
            ] {
                std::fs::write(format!("/proc/sys/net/{file}"), value).unwrap();
            }
            ip("link set lo up");
            say.send(gettid().as_raw()).unwrap();
            for job in queue {
                job();
            }
        });
        Namespace { tid: said.recv().unwrap(), jobs }
    }

    /// Runs `what` in the namespace and waits for the result.
    pub(crate) fn run<T: Send + 'static>(&self, what: impl FnOnce() -> T + Send + 'static) -> T {
        let (say, said) = channel();
        self.jobs
            .send(Box::new(move || {
                // The receiver is gone if the test has failed.
                let _heard = say.send(what());
            }))
            .unwrap();
        said.recv().unwrap()
    }

    pub(crate) fn ip(&self, args: &str) {
        let args = args.to_owned();
        self.run(move || ip(&args));
    }

    /// Creates a veth pair: `name` here, `eth0` there.
    pub(crate) fn connect(&self, there: &Namespace, name: &str, macs: (&str, &str)) {
        let tid = there.tid;
        let (here, far) = macs;
        self.ip(&format!(
            "link add {name} address {here} type veth peer name eth0 address {far} netns {tid}"
        ));
        self.ip(&format!("link set {name} up"));
        there.ip("link set eth0 up");
    }
}

fn ip(args: &str) {
    let done = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {args}: {}", String::from_utf8_lossy(&done.stderr));
}
