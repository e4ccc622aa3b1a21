//! The commands: their arguments, and the expected exit codes and output.

use crate::agent::{Node, Ran, until};
use berth_api::{message::Size, view::PodView};
use berth_core::{
    event::{Event, EventRecord, Involved},
    time::Wall,
};
use nix::{
    pty::{Winsize, openpty},
    sys::{
        signal::Signal::SIGWINCH,
        termios::{LocalFlags, tcgetattr},
    },
};
use serde_json::json;
use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
};

pub(crate) const ALL: &[(&str, fn())] = &[
    ("without_agent_and_state_only_files_can_be_read", without_agent_and_state),
    ("a_living_agent_answers_everything", living),
    ("names_decide_the_exit_code", names),
    ("a_dead_agent_leaves_what_it_knew", dead),
    ("a_watch_shows_changes_and_ends_with_the_agent", watch),
    ("a_reader_who_goes_ends_a_command_quietly", closed_pipe),
    ("output_is_read_from_files", logs),
    ("following_ends_with_the_container", follow),
    ("a_command_gets_input_and_gives_its_exit_code", exec),
    ("a_terminal_is_raw_while_a_command_runs", terminal),
];

/// A process that stands for a container's, killed on drop.
struct Process(Child);

impl Process {
    fn start() -> Process {
        Process(Command::new("sleep").arg("600").spawn().unwrap())
    }

    fn start_time(&self) -> u64 {
        berth_sys::process::start_time(self.0.id()).unwrap().unwrap()
    }

    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn pod(name: &str, ready: bool, process: Option<&Process>) -> PodView {
    let id = "a".repeat(64);
    let state = match process {
        Some(_) => json!({"running": {"startedAt": "2026-01-02T03:04:05Z"}}),
        None => json!({"waiting": {"reason": "CrashLoopBackOff"}}),
    };
    let running = process.map(
        |p| json!({"name": "app", "id": id, "pid": p.0.id(), "start_time": p.start_time(), "attempt": 1}),
    );
    serde_json::from_value(json!({
        "uid": format!("uid-{name}"),
        "key": {"namespace": "default", "name": name},
        "ready": ready,
        "waiting_for": if ready { None } else { Some("container app: exited with code 1") },
        "next_try": if ready { None } else { Some(i64::MAX) },
        "as_of": 1_767_323_045_000_000_000i64,
        "object": {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
            "spec": {"containers": [{"name": "app", "image": "i:1"}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "app", "image": "i:1", "containerID": format!("containerd://{id}"),
                    "ready": ready, "restartCount": 1, "state": state}]},
        },
        "containers": running.into_iter().collect::<Vec<_>>(),
    }))
    .unwrap()
}

fn without_agent_and_state() {
    let node = Node::new();
    for args in [
        &["pods"][..],
        &["ps"],
        &["status"],
        &["events"],
        &["describe", "pod", "x"],
        &["images"],
        &["exec", "x", "--", "true"],
        &["image", "import", "/dev/null"],
        &["pods", "-w"],
    ] {
        node.run(args).is(3, "", "agent");
    }
    node.run(&["logs", "x"]).is(4, "", "no pod or container is named \"x\"");
    node.run(&["version"]).is(0, "not reached", "");
    node.run(&["version", "-o", "json"]).is(0, "\"serverVersion\": null", "");
    for args in [&["pods", "--nope"][..], &["nope"], &["exec", "x"], &["pods", "-o", "yaml"]] {
        node.run(args).is(2, "", "error");
    }
}

fn living() {
    let process = Process::start();
    let mut node = Node::new();
    node.start(true);
    node.run(&["pods"]).is(0, "", "No pods.");
    node.run(&["status"]).is(0, "No problems.", "");
    node.cache.publish(pod("web", true, Some(&process)));
    node.run(&["status"]).is(0, "1: 1 Running; 1 ready", "");
    node.cache.publish(pod("crash", false, None));
    node.run(&["status"]).is(
        1,
        "pod default/crash is not ready: container app: exited with code 1; next try in",
        "",
    );
    node.run(&["pods"]).is(0, "container app: exited with code 1; next try in", "");
    node.run(&["pods", "-o", "name"]).is(0, "default/crash\ndefault/web\n", "");
    node.run(&["pods", "-o", "json"]).is(0, "\"kind\": \"List\"", "");
    node.run(&["pods", "web", "-o", "json"]).is(0, "\"kind\": \"Pod\"", "");
    node.run(&["ps"]).is(0, &process.0.id().to_string(), "");
    node.run(&["describe", "pod", "web"]).is(0, "Name:                 web", "");
    node.run(&["images"]).is(0, "i:1", "");
    node.run(&["image", "import", "/dev/null"]).is(0, "imported null\n", "");
    node.run(&["image", "import", "/nowhere"]).is(1, "", "find /nowhere: No such file");
    image_commands(&node);
    let view = pod("web", true, None);
    node.cache.event(EventRecord {
        involved: Involved::Pod { key: view.key, uid: view.uid },
        event: Event::warning("BackOff", "rests"),
        first: Wall(1),
        last: Wall(2),
        count: 2,
    });
    node.run(&["events"]).is(0, "BackOff", "");
    node.run(&["events", "crash"]).is(0, "", "No events.");
    node.run(&["describe", "pod", "web", "-o", "json"]).is(0, "\"reason\": \"BackOff\"", "");
    node.run(&["version"]).is(0, "agent  ", "");
    node.stop();
    node.start(false);
    node.run(&["status"]).is(1, "containerd: does not answer", "");
    node.run(&["images"]).is(1, "", "containerd does not answer");
}

fn image_commands(node: &Node) {
    let pulled = node.run(&["image", "pull", "i:9"]);
    pulled.is(0, "i:9@sha256:aa\n", "0123456789ab is unpacked (2.0 KiB)");
    node.run(&["image", "pull", "absent"]).is(1, "", "failed to pull: not found");
    node.run(&["image", "rm", "a", "b"]).is(0, "a\nb\n", "");
    node.run(&["image", "rm"]).is(2, "", "required");
    node.run(&["image", "tag", "i:1", "i:3"]).is(0, "i:3\n", "");
    node.run(&["image", "inspect", "i:1"]).is(0, "Name:                 i:1", "");
    node.run(&["image", "inspect", "i:1", "-o", "json"]).is(0, "\"names\"", "");
    // A pod that waits for a pull says how far it is.
    let mut slow = pod("slow", false, None);
    *slow.object.pointer_mut("/spec/containers/0/image").unwrap() = json!("i:2");
    let uid = slow.uid.clone();
    node.cache.publish(slow);
    for command in [&["pods"][..], &["describe", "pod", "slow"]] {
        node.run(command).is(0, "container app: pulling i:2: 1 of 2 layers, 4.0 MiB of 6.0 MiB", "");
    }
    node.cache.remove(&uid);
}

fn names() {
    let mut node = Node::new();
    node.start(true);
    for name in ["web-0", "web-1", "db"] {
        node.cache.publish(pod(name, true, None));
    }
    node.run(&["pods", "default/web-1"]).is(0, "web-1", "");
    node.run(&["pods", "d"]).is(0, "db", "");
    node.run(&["pods", "web"]).is(2, "", "\"web\" fits several: default/web-0, default/web-1");
    node.run(&["pods", "none"]).is(4, "", "no pod or container is named \"none\"");
    node.run(&["describe", "pod", "none"]).is(4, "", "none");
    node.run(&["ps", "web-0/nope"]).is(4, "", "nope");
}

fn dead() {
    let (mut first, second) = (Process::start(), Process::start());
    let mut node = Node::new();
    node.start(true);
    node.cache.publish(pod("falls", true, Some(&first)));
    node.cache.publish(pod("stays", true, Some(&second)));
    node.stop();
    let alive = berth_api::files::last_alive(&node.roots).unwrap();
    assert!(berth_sys::clock::wall().0 - alive.0 < 60_000_000_000);
    let page = std::fs::File::options().write(true).open(berth_api::files::node_file(&node.roots)).unwrap();
    let when = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_767_323_105);
    page.set_modified(when).unwrap();
    let banner = "agent not running; as of 2026-01-02T03:05:05Z";
    node.run(&["pods", "falls"]).is(0, "1/1", banner);
    first.end();
    node.run(&["pods", "falls"]).is(0, "container app ended while the agent was not running", banner);
    node.run(&["pods", "stays"]).is(0, "Running", banner);
    node.run(&["ps"]).is(0, "ContainerStatusUnknown (137)", banner);
    let ps = node.run(&["ps", "-o", "json"]);
    let ps: serde_json::Value = serde_json::from_str(&ps.out).unwrap();
    let pids: Vec<_> = ps["items"].as_array().unwrap().iter().map(|c| c["pid"].as_u64()).collect();
    assert_eq!(pids, [None, Some(second.0.id().into())]);
    node.run(&["describe", "pod", "stays"]).is(0, "(agent not running)", banner);
    node.run(&["status"]).is(1, "the agent is not running; pods run on", "");
    node.run(&["status", "-o", "json"]).is(1, "\"running\": false", "");
    node.run(&["events"]).is(0, "", banner);
    node.run(&["exec", "stays", "--", "true"]).is(3, "", "reach the agent");
    node.run(&["images"]).is(3, "", "reach the agent");
    node.run(&["pods", "none"]).is(4, "", "none");
}

fn watch() {
    let mut node = Node::new();
    node.start(true);
    node.cache.publish(pod("one", false, None));
    let mut child = node.spawn(&["pods", "-w"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().starts_with("NAMESPACE   NAME"));
    assert!(lines.next().unwrap().contains("CrashLoopBackOff"));
    node.cache.publish(pod("one", true, None));
    assert!(lines.next().unwrap().starts_with("default     one"));
    node.cache.remove(&pod("one", true, None).uid);
    assert!(lines.next().unwrap().contains("Removed"));
    node.stop();
    assert_eq!(lines.next(), None);
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

fn closed_pipe() {
    let mut node = Node::new();
    node.start(true);
    for n in 0..300 {
        let mut view = pod(&format!("p{n}"), true, None);
        view.object["metadata"]["annotations"] = json!({"filler": "x".repeat(1000)});
        node.cache.publish(view);
    }
    let mut child = node.spawn(&["pods", "-o", "json"]);
    let mut some = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    Ran::of(child.wait_with_output().unwrap()).is(0, "", "");
}

fn logs() {
    let mut node = Node::new();
    let view = pod("web", true, None);
    let line = |n: u32, text: &str| format!("2026-01-02T03:04:0{n}.000000000Z stdout F {text}\n");
    node.write_log(&view, "app", 0, &line(0, "first run"));
    node.write_log(&view, "app", 1, &[line(1, "a"), line(2, "b"), line(3, "c")].concat());
    // Without agent and containerd the command has only the files.
    node.run(&["logs", "web"]).is(0, "a\nb\nc\n", "");
    node.run(&["logs", "-p", "default/web/app"]).is(0, "first run\n", "");
    assert_eq!(node.run(&["logs", "--tail", "1", "web"]).out, "c\n");
    assert_eq!(node.run(&["logs", "--since", "2026-01-02T03:04:02Z", "web"]).out, "b\nc\n");
    assert_eq!(node.run(&["logs", "--since", "2026-01-02T03:04:02Z", "--tail", "5", "web"]).out, "b\nc\n");
    node.run(&["logs", "--timestamps", "--tail", "1", "web"]).is(0, "2026-01-02T03:04:03.000000000Z c\n", "");
    node.run(&["logs", "web", "-c", "none"]).is(4, "", "container none of pod default/web has no output");
    node.run(&["logs", "web", "--since", "never"]).is(2, "", "neither a duration");
    node.write_log(&view, "side", 0, &line(1, "s"));
    node.run(&["logs", "web"]).is(2, "", "pod default/web has several containers: choose one of app, side");
    node.run(&["logs", "-p", "web/side"]).is(
        4,
        "",
        "container side of pod default/web has no previous attempt",
    );
    // The id of a container is known to the agent only.
    node.start(true);
    node.cache.publish(pod("web", true, None));
    node.run(&["logs", "aaaaaaaa", "--tail", "1"]).is(0, "c\n", "");
}

fn follow() {
    let mut process = Process::start();
    let mut node = Node::new();
    node.start(true);
    let view = pod("web", true, Some(&process));
    node.cache.publish(view.clone());
    let line = |text: &str| format!("2026-01-02T03:04:05.000000000Z stdout F {text}\n");
    node.write_log(&view, "app", 1, &line("one"));
    let mut child = node.spawn(&["logs", "-f", "web"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "one");
    // The log is rotated while the agent is down.
    node.stop();
    let dir = node.roots.pod_log_dir(&view.key, &view.uid).join("app");
    std::fs::rename(dir.join("1.log"), dir.join("1.log.20260102-030405")).unwrap();
    node.write_log(&view, "app", 1, &line("two"));
    assert_eq!(lines.next().unwrap(), "two");
    process.end();
    node.write_log(&view, "app", 1, &line("last words"));
    assert_eq!(lines.next().unwrap(), "last words");
    assert_eq!(lines.next(), None);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

fn exec() {
    let mut node = Node::new();
    node.start(true);
    node.cache.publish(pod("web", true, None));
    let script = "cat; echo problem >&2; exit 42";
    let mut child = node.spawn(&["exec", "-i", "web", "--", "sh", "-c", script]);
    let input = "line\n".repeat(50_000);
    let mut to = child.stdin.take().unwrap();
    let text = input.clone();
    let writer = std::thread::spawn(move || to.write_all(text.as_bytes()).unwrap());
    let ran = Ran::of(child.wait_with_output().unwrap());
    writer.join().unwrap();
    assert_eq!((ran.code, ran.out == input, ran.err.as_str()), (Some(42), true, "problem\n"));
    node.run(&["exec", "default/web/app", "--", "echo", "-n", "x y"]).is(0, "x y", "");
    node.run(&["exec", "web", "-c", "other", "--", "true"]).is(4, "", "it does not run");
    node.run(&["exec", "none", "--", "true"]).is(4, "", "none");
    node.run(&["exec", "web", "--", "/no/such/program"]).is(1, "", "spawn: No such file");
    // Output that cannot be written ends the session, and with it the command.
    let mut child = node.spawn(&["exec", "web", "--", "yes"]);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!((line.as_str(), child.wait().unwrap().code()), ("y\n", Some(141)));
    for command in ["echo hi", "head -c 3000000 /dev/zero"] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let ran = node.command(&["exec", "web", "--", "sh", "-c", command]).stdout(full).output().unwrap();
        let error = String::from_utf8_lossy(&ran.stderr);
        assert!(error.contains("write the output: No space left on device"), "{command}: {error}");
        assert_eq!(ran.status.code(), Some(1), "{command}");
    }
    // A background child holds the command's output open, but not the client.
    node.run(&["exec", "web", "--", "sh", "-c", "sleep 20 & echo done"]).is(0, "done\n", "");
    // The command ends when its client ends.
    let mut child = node.spawn(&["exec", "web", "--", "sh", "-c", "echo $$; exec sleep 600"]);
    let mut pid = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut pid).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let pid = pid.trim().parse().unwrap();
    until("the command is gone", || berth_sys::process::start_time(pid).unwrap().is_none());
    until("no FIFO is left", || {
        let names = std::fs::read_dir(&node.roots.runtime_state).unwrap().map(|e| e.unwrap().file_name());
        !names.into_iter().any(|n| n.to_string_lossy().starts_with("exec-"))
    });
}

fn terminal() {
    let mut node = Node::new();
    node.start(true);
    node.cache.publish(pod("web", true, None));
    let size = Winsize { ws_row: 40, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).unwrap();
    let echoes = || tcgetattr(&pty.slave).unwrap().local_flags.contains(LocalFlags::ECHO);
    assert!(echoes());
    // The held lock delays the agent's answer, so that the command stays in its first step.
    let held = node.sizes.lock().unwrap();
    let mut child = node
        .command(&["exec", "-it", "web", "--", "sh", "-c", "read line; echo got $line; exit 3"])
        .stdin(Stdio::from(pty.slave.try_clone().unwrap()))
        .spawn()
        .unwrap();
    // The handler must be installed before the size is sent, or a change in between would be lost.
    until("it listens for changes of the size", || catches(child.id(), SIGWINCH));
    drop(held);
    until("the terminal is raw", || !echoes());
    assert_eq!(*node.sizes.lock().unwrap(), [Size { width: 100, height: 40 }]);
    set_size(&pty.master, 80, 24);
    // The terminal is not the command's controlling one, so the kernel sends no SIGWINCH.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, SIGWINCH).unwrap();
    until("the new size is told", || node.sizes.lock().unwrap().contains(&Size { width: 80, height: 24 }));
    let mut master = File::from(pty.master.try_clone().unwrap());
    master.write_all(b"word\n").unwrap();
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert_eq!((out.as_str(), child.wait().unwrap().code()), ("got word\n", Some(3)));
    assert!(echoes(), "the terminal is as it was");
}

/// Whether a process has a handler for a signal.
fn catches(pid: u32, signal: nix::sys::signal::Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() >> (signal as i32 - 1) & 1 == 1
}

fn set_size(master: &std::os::fd::OwnedFd, columns: u16, rows: u16) {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size).unwrap();
}
