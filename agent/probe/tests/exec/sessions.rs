//! Commands of clients: their streams, terminals and ends.

use crate::{
    cases::{Case, LOOK},
    fixture::{self, Container, Runc, prober, process, until},
};
use berth_probe::{ExecTarget, Prober, ProberConfig, Session, SessionError, Stdio};
use serde_json::json;
use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

pub(crate) const ALL: &[Case] = &[
    ("session_has_its_streams", session_has_its_streams),
    ("session_carries_100_mb_each_way", session_carries_100_mb_each_way),
    ("session_has_a_terminal", session_has_a_terminal),
    ("terminal_carries_10_mb_each_way", terminal_carries_10_mb_each_way),
    ("terminal_of_a_hostile_container", terminal_of_a_hostile_container),
    ("session_outlasts_the_deadline_of_its_start", session_outlasts_the_deadline_of_its_start),
    ("dropped_session_ends_with_its_tree", dropped_session_ends_with_its_tree),
    ("what_a_session_leaves_stays", what_a_session_leaves_stays),
    ("session_ends_with_the_agent", session_ends_with_the_agent),
    ("session_ends_by_the_helper_after_its_own", session_ends_by_the_helper_after_its_own),
    ("session_is_the_same_as_runc_exec", session_is_the_same_as_runc_exec),
    ("session_fails_in_the_words_of_runc", session_fails_in_the_words_of_runc),
    ("session_of_a_seccomp_filter_is_unsupported", session_of_a_seccomp_filter_is_unsupported),
    ("many_sessions_leave_nothing", many_sessions_leave_nothing),
    (
        "sessions_at_once_are_bounded_and_leave_room_for_probes",
        sessions_at_once_are_bounded_and_leave_room_for_probes,
    ),
];

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

struct Piped {
    session: Session,
    stdin: Option<File>,
    stdout: File,
    stderr: File,
}

async fn piped(prober: &Prober, target: &ExecTarget) -> Result<Piped, SessionError> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let ((input, stdin), (stdout, output), (stderr, errors)) = (pipe(), pipe(), pipe());
    let session = prober.session(target, Stdio::Given { input, output, errors }).await?;
    Ok(Piped { session, stdin: Some(stdin.into()), stdout: stdout.into(), stderr: stderr.into() })
}

fn rest(mut file: File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

/// Makes a terminal blocking, and returns its end.
fn blocking(session: &mut Session) -> File {
    let terminal: OwnedFd = session.terminal.as_ref().unwrap().try_clone().unwrap();
    rustix::io::ioctl_fionbio(&terminal, false).unwrap();
    terminal.into()
}

/// Reads a terminal to its end, which the kernel tells as an error.
fn all_of(mut terminal: &File) -> String {
    let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = terminal.read(&mut chunk) {
        text.extend_from_slice(&chunk[..n]);
    }
    String::from_utf8(text).unwrap()
}

/// Reads a terminal until a text has come.
fn read_until(mut terminal: &File, wanted: &str) -> String {
    let (mut text, mut chunk) = (String::new(), [0; 4096]);
    while !text.contains(wanted) {
        let n = terminal.read(&mut chunk).unwrap_or_else(|e| panic!("{e}: no {wanted} in {text}"));
        text += std::str::from_utf8(&chunk[..n]).unwrap();
    }
    text
}

fn session_has_its_streams() {
    let container = Container::start();
    runtime().block_on(async {
        let prober = prober(&container);
        let script = "cat; echo err >&2; ls /proc/self/fd >&2; exit 3";
        let mut all = piped(&prober, &container.shell(&process(), script)).await.unwrap();
        assert_ne!(all.session.pid, 0);
        all.stdin.take().unwrap().write_all(b"hello\n").unwrap();
        assert_eq!(rest(all.stdout), "hello\n");
        // `ls` itself holds the directory that it lists.
        assert_eq!(rest(all.stderr), "err\n0\n1\n2\n3\n");
        assert_eq!(all.session.wait().await, Ok(3));
        assert_eq!(all.session.wait().await, Ok(3), "it can be asked again");
        let mut killed = piped(&prober, &container.shell(&process(), "kill -9 $$")).await.unwrap();
        assert_eq!(killed.session.wait().await, Ok(137));
        // A command that was born and has ended before its caller looks.
        for _ in 0..50 {
            let mut quick = piped(&prober, &container.target(&process(), &["false"])).await.unwrap();
            assert_eq!(quick.session.wait().await, Ok(1));
        }
        let mut user = process();
        user["user"] = json!({"uid": 1000, "gid": 1000});
        let target = container.shell(&user, "echo again >/proc/self/fd/2 && cat /proc/self/fd/0");
        let mut all = piped(&prober, &target).await.unwrap();
        all.stdin.take().unwrap().write_all(b"input\n").unwrap();
        assert_eq!((rest(all.stdout), rest(all.stderr)), ("input\n".to_owned(), "again\n".to_owned()));
        assert_eq!(all.session.wait().await, Ok(0));
    });
    until("nothing is left", || container.clean());
}

fn session_carries_100_mb_each_way() {
    const BYTES: usize = 100_000_000;
    let container = Container::start();
    runtime().block_on(async {
        let prober = prober(&container);
        let mut all = piped(&prober, &container.target(&process(), &["cat"])).await.unwrap();
        let mut stdin = all.stdin.take().unwrap();
        let pattern = |at: usize| u8::try_from(at.wrapping_mul(31) >> 3 & 0xFF).unwrap();
        let sent: Vec<u8> = (0..BYTES).map(pattern).collect();
        let wanted = sent.clone();
        let writer = thread::spawn(move || stdin.write_all(&sent).unwrap());
        let mut got = Vec::new();
        all.stdout.read_to_end(&mut got).unwrap();
        writer.join().unwrap();
        assert!(got == wanted, "{} bytes came back", got.len());
        assert_eq!(all.session.wait().await, Ok(0));
    });
    until("nothing is left", || container.clean());
}

fn session_has_a_terminal() {
    let container = Container::start();
    runtime().block_on(async {
        let prober = prober(&container);
        let mut user = process();
        user["user"] = json!({"uid": 1000, "gid": 1000});
        let script = "tty; ls -ln $(tty); ls -1 /proc/self/fd; echo there >/dev/tty; echo go; read x; stty size; \
                      trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 1; done";
        // The shell takes a ^C that comes before it has started `sleep` once that ends.
        let target = container.shell(&user, script);
        let mut session = prober.session(&target, Stdio::Terminal).await.unwrap();
        let terminal = blocking(&mut session);
        let text = read_until(&terminal, "go\r\n");
        for wanted in ["/dev/pts/0\r\n", "crw--w----    1 1000 ", "\r\n0\r\n1\r\n2\r\n3\r\n", "there\r\n"] {
            assert!(text.contains(wanted), "{wanted:?} in {text}");
        }
        session.resize(132, 43).unwrap();
        (&terminal).write_all(b"x\n").unwrap();
        let text = read_until(&terminal, "ready\r\n");
        assert!(text.contains("43 132\r\n"), "{text}");
        (&terminal).write_all(b"\x03").unwrap();
        let text = all_of(&terminal);
        assert!(text.contains("caught\r\n"), "{text}");
        assert_eq!(session.wait().await, Ok(5));
    });
    until("nothing is left", || container.clean());
}

fn terminal_carries_10_mb_each_way() {
    const BYTES: usize = 10_000_000;
    let container = Container::start();
    runtime().block_on(async {
        let prober = prober(&container);
        let script = format!("stty raw -echo; echo ready; head -c {BYTES}");
        let mut session =
            prober.session(&container.shell(&process(), &script), Stdio::Terminal).await.unwrap();
        let terminal = blocking(&mut session);
        let mut got = read_until(&terminal, "ready\n").len() - "ready\n".len();
        let mut to = terminal.try_clone().unwrap();
        let writer = thread::spawn(move || to.write_all(&vec![b'x'; BYTES]).unwrap());
        got += all_of(&terminal).len();
        writer.join().unwrap();
        assert_eq!(got, BYTES);
        assert_eq!(session.wait().await, Ok(0));
    });
    until("nothing is left", || container.clean());
}

/// Whatever is in the place of the terminals' file system, nothing of it is opened as a terminal.
fn terminal_of_a_hostile_container() {
    let container = Container::start();
    let inside = |script: &str| {
        let target = format!("{}", container.pid);
        let args = ["--target", &target, "--mount", "sh", "-c", script];
        assert!(Command::new("nsenter").args(args).status().unwrap().success(), "{script}");
    };
    runtime().block_on(async {
        let prober = prober(&container);
        let target = container.target(&process(), &["true"]);
        let refused = async |what: &str| {
            let refused = prober.session(&target, Stdio::Terminal).await;
            let Err(SessionError::Failed(why)) = refused else { panic!("{what}: {refused:?}") };
            assert!(why.contains("cannot make the command's terminal"), "{what}: {why}");
        };
        inside("/bin/busybox mount --bind /dev/null /dev/pts/ptmx");
        refused("a mount over the multiplexer").await;
        inside("/bin/busybox umount /dev/pts/ptmx; /bin/busybox mount -t tmpfs tmpfs /dev/pts; /bin/busybox mkfifo /dev/pts/ptmx");
        refused("another file system").await;
        inside("/bin/busybox umount /dev/pts; /bin/busybox mount -t tmpfs tmpfs /dev/pts; /bin/busybox ln -s /dev/null /dev/pts/ptmx");
        refused("a link").await;
    });
    until("nothing is left", || container.clean());
}

fn session_outlasts_the_deadline_of_its_start() {
    let container = Container::start();
    runtime().block_on(async {
        let prober = prober(&container);
        let begun = Instant::now();
        let mut all = piped(&prober, &container.shell(&process(), "sleep 11; exit 9")).await.unwrap();
        assert_eq!(all.session.wait().await, Ok(9));
        assert!(begun.elapsed() > Duration::from_secs(11));
    });
}

fn dropped_session_ends_with_its_tree() {
    let container = Container::start();
    runtime().block_on(async {
        let prober = prober(&container);
        let script = "sleep 1000 & setsid sleep 1000 & (sleep 1000 & sleep 1000) & sleep 1000";
        let target = container.shell(&process(), script);
        let session = prober.session(&target, Stdio::Terminal).await.unwrap();
        until("all run", || container.others().len() >= 5);
        drop(session);
        until("all are killed", || container.others().is_empty());
        until("nothing is left", || container.clean());
    });
}

fn what_a_session_leaves_stays() {
    let container = Container::start();
    runtime().block_on(async {
        let prober = prober(&container);
        let script = "sleep 1000 >/dev/null 2>&1 & exit 0";
        let mut all = piped(&prober, &container.shell(&process(), script)).await.unwrap();
        assert_eq!(all.session.wait().await, Ok(0));
        drop(all);
        thread::sleep(Duration::from_millis(300));
        let left = container.others();
        assert_eq!(left.len(), 1, "it is the container's");
        // The cgroup stays as long.
        assert_eq!(container.groups().len(), 1);
        fixture::kill(left[0]);
        until("nothing is left", || container.clean());
    });
}

/// Runs a probe until the next helper answers.
async fn next_helper(prober: &Prober, container: &Container) {
    let again = container.target(&process(), &["true"]);
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        match prober.exec(&again, Duration::from_secs(5)).await {
            Ok(berth_probe::ExecOutcome::Exited { code: 0, .. }) => return,
            other => assert!(Instant::now() < end, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A command whose client holds its streams: a hangup would end nothing of it.
const RUNS: &str = "sleep 1000 & while :; do sleep 1000; done";
/// A command that ends and leaves a process.
const LEAVES: &str = "sleep 1000 >/dev/null 2>&1 & exit 0";

fn session_ends_with_the_agent() {
    let container = Container::start();
    let agent = runtime();
    let running = agent.block_on(async {
        let prober = prober(&container);
        let running = piped(&prober, &container.shell(&process(), RUNS)).await.unwrap();
        let mut left = piped(&prober, &container.shell(&process(), LEAVES)).await.unwrap();
        assert_eq!(left.session.wait().await, Ok(0));
        until("both run", || container.others().len() == 4);
        running
    });
    // The agent's death closes the helper's socket and drops nothing before it, as the end of its tasks does here.
    drop(agent);
    until("the helper ended", || fixture::helper().is_none());
    until("its client's command is killed", || container.others().len() == 1);
    drop(running);
    fixture::kill(container.others()[0]);
}

fn session_ends_by_the_helper_after_its_own() {
    let container = Container::start();
    runtime().block_on(async {
        let prober = prober(&container);
        let mut running = piped(&prober, &container.shell(&process(), RUNS)).await.unwrap();
        let mut left = piped(&prober, &container.shell(&process(), LEAVES)).await.unwrap();
        assert_eq!(left.session.wait().await, Ok(0));
        until("both run", || container.others().len() == 4);
        fixture::kill(fixture::helper().unwrap());
        assert!(running.session.wait().await.is_err());
        next_helper(&prober, &container).await;
        until("its client's command is killed", || container.others().len() == 1);
        until("its cgroup is removed", || container.groups().len() == 1);
        // What stays is no longer waited for once it has ended.
        fixture::kill(container.others()[0]);
        next_helper(&prober, &container).await;
    });
}

fn runc_container() -> (Runc, serde_json::Value) {
    let container = Runc::start();
    let spec: serde_json::Value =
        serde_json::from_slice(&fs::read(container.bundle.path().join("config.json")).unwrap()).unwrap();
    (container, spec)
}

fn session_is_the_same_as_runc_exec() {
    let (container, spec) = runc_container();
    runtime().block_on(async {
        let prober = Prober::new(ProberConfig::new(std::env::current_exe().unwrap(), vec![])).unwrap();
        for user in [json!({"uid": 0, "gid": 0, "additionalGids": [0, 10]}), json!({"uid": 1000, "gid": 7})] {
            let mut process = spec["process"].clone();
            process["user"] = user.clone();
            process["args"] = json!(["sh", "-c", LOOK]);
            let theirs = container.exec(&process);
            let target = container.target(&process);
            let mut all = piped(&prober, &target).await.unwrap();
            let ours = rest(all.stdout);
            assert_eq!(ours, theirs, "{user}");
            assert_eq!(all.session.wait().await, Ok(0));
            let mut session = prober.session(&target, Stdio::Terminal).await.unwrap();
            assert_eq!(all_of(&blocking(&mut session)).replace("\r\n", "\n"), theirs, "{user}");
            assert_eq!(session.wait().await, Ok(0));
        }
    });
}

fn session_fails_in_the_words_of_runc() {
    let (container, spec) = runc_container();
    let root = fs::read_link(container.bundle.path().join("root-of")).unwrap();
    for (name, text) in [("lost", "#!/nonesuch\n"), ("garbage", "garbage")] {
        let file = root.join("bin").join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    runtime().block_on(async {
        let prober = Prober::new(ProberConfig::new(std::env::current_exe().unwrap(), vec![])).unwrap();
        for program in ["nonesuch", "/bin/nonesuch", "/bin", "/bin/forbidden", "forbidden", "/bin/busybox/x"]
        {
            let mut process = spec["process"].clone();
            process["args"] = json!([program]);
            // The log's text is in quotes.
            let theirs = container.exec(&process).replace("\\\"", "\"");
            let ours = match piped(&prober, &container.target(&process)).await {
                Err(SessionError::Failed(why)) => why,
                other => panic!("{program}: {:?}", other.map(|piped| piped.session)),
            };
            let (before, reason) = ours.split_once("container process: ").unwrap();
            assert_eq!(before, "OCI runtime exec failed: exec failed: unable to start ");
            assert!(theirs.contains(reason), "{program}: runc says {theirs}, ours is {ours}");
        }
        // Found, but not to be executed: this is told by the process itself.
        for program in ["/bin/lost", "lost", "/bin/garbage"] {
            let mut process = spec["process"].clone();
            process["args"] = json!([program]);
            let mut all = piped(&prober, &container.target(&process)).await.unwrap();
            assert_eq!(rest(all.stderr), container.exec(&process));
            assert_eq!(all.session.wait().await, Ok(255));
        }
    });
}

fn session_of_a_seccomp_filter_is_unsupported() {
    let container = Container::start();
    let mut target = container.target(&process(), &["true"]);
    target.process.seccomp = Some(json!({"defaultAction": "SCMP_ACT_ALLOW"}));
    let refused = runtime().block_on(prober(&container).session(&target, Stdio::Terminal));
    assert!(matches!(refused, Err(SessionError::Unsupported(_))), "{refused:?}");
}

fn many_sessions_leave_nothing() {
    const ROUNDS: u32 = 200;
    let container = Container::start();
    runtime().block_on(async {
        let prober = prober(&container);
        let target = container.target(&process(), &["true"]);
        let one = async || {
            let mut all = piped(&prober, &target).await.unwrap();
            assert_eq!(all.session.wait().await, Ok(0));
            let mut session = prober.session(&target, Stdio::Terminal).await.unwrap();
            assert_eq!(session.wait().await, Ok(0));
        };
        one().await;
        until("the first is gone", || container.clean());
        let helper = fixture::helper().unwrap();
        let count = |dir: &str| fs::read_dir(dir).unwrap().count();
        let fds = || (count(&format!("/proc/{helper}/fd")), count("/proc/self/fd"));
        let (before, started) = (fds(), Instant::now());
        for _ in 0..ROUNDS {
            one().await;
        }
        println!("a session of `true`: {} us", started.elapsed().as_micros() / u128::from(2 * ROUNDS));
        until("nothing is left", || container.clean());
        until("descriptors are as before", || fds() == before);
        assert!(Path::new(&format!("/proc/{helper}")).exists(), "it is the same helper");
    });
}

fn sessions_at_once_are_bounded_and_leave_room_for_probes() {
    const MAX: usize = 128;
    let container = Container::start();
    runtime().block_on(async {
        let prober = prober(&container);
        let target = container.target(&process(), &["cat"]);
        let mut open = Vec::new();
        for _ in 0..MAX {
            open.push(piped(&prober, &target).await.unwrap());
        }
        let refused = piped(&prober, &target).await.map(|all| all.session);
        assert!(matches!(refused, Err(SessionError::Unsupported(_))), "{refused:?}");
        let probe = container.target(&process(), &["true"]);
        let outcome = prober.exec(&probe, Duration::from_secs(10)).await;
        assert!(matches!(outcome, Ok(berth_probe::ExecOutcome::Exited { code: 0, .. })), "{outcome:?}");
        open.truncate(MAX - 1);
        let end = Instant::now() + Duration::from_secs(5);
        while let Err(error) = piped(&prober, &target).await {
            assert!(Instant::now() < end, "an ended session makes room: {error}");
        }
        drop(open);
        until("nothing is left", || container.clean());
    });
}
