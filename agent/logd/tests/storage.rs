//! Log files, limits, full disks, interrupted handovers, and removal.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail as tests do")]

mod support;

use berth_core::time::Wall;
use berth_logd::{StreamSpec, format::Stream, reader};
use rustix::{fs::FlockOperation, process::Signal};
use std::{
    io::{Read, Write},
    os::unix::{fs::MetadataExt, fs::PermissionsExt, net::UnixStream},
    path::PathBuf,
    sync::Mutex,
    time::{Duration, Instant},
};
use support::*;

#[test]
fn role() {
    act_or_check();
}

#[tokio::test]
async fn files_have_the_names_modes_and_links_of_the_contract() {
    let node = Node::new();
    let _logd = node.start().await;
    let client = node.client();
    let spec = StreamSpec { stdin: true, ..node.spec("web") };
    let paths = client.register(spec.clone()).await.unwrap();
    assert_eq!(client.register(spec.clone()).await.unwrap(), paths, "registering again answers the same");
    assert!(client.register(StreamSpec { tty: true, ..spec.clone() }).await.is_err());
    let log = node.roots.pod_logs.join("ns_web_uid-web/app/0.log");
    assert_eq!(paths.log, log);
    assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(log.parent().unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o755);
    let link = node.roots.container_log_links.join(format!("web_ns_app-{}.log", spec.id));
    assert_eq!(std::fs::read_link(&link).unwrap(), log);
    let stdin = paths.stdin.clone().unwrap();
    // Opening the reading end alone does not block, because logd holds the FIFO.
    std::fs::File::open(&stdin).unwrap();
    let mut shim = Shim::open(&paths);
    write!(shim.out, "a\n\nb").unwrap();
    writeln!(shim.err.as_ref().unwrap(), "e").unwrap();
    let listed = client.list().await.unwrap();
    assert_eq!((listed.len(), &listed[0].spec), (1, &spec));
    let report = client.finish(&spec.id).await.unwrap();
    assert_eq!((report.known, report.bytes, report.lost), (true, 6, 0));
    assert!(!client.finish(&spec.id).await.unwrap().known);
    assert_eq!(node.raw(&spec, Stream::Stdout), b"a\n\nb");
    assert_eq!(node.raw(&spec, Stream::Stderr), b"e\n");
    assert!(!stdin.exists());
    assert_eq!(std::fs::read_dir(node.roots.runtime_state.join("logd/streams")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(node.roots.runtime_state.join("logd/carry")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_container_whose_row_cannot_be_removed_stays_known() {
    let node = Node::new();
    let mut logd = node.start().await;
    let client = node.client();
    let spec = node.spec("web");
    let paths = client.register(spec.clone()).await.unwrap();
    let mut shim = Shim::open(&paths);
    write!(shim.out, "last words").unwrap();
    drop(shim);
    let row = node.roots.runtime_state.join(format!("logd/streams/{}.json", spec.id));
    let text = std::fs::read(&row).unwrap();
    // unlink(2) refuses a directory.
    std::fs::remove_file(&row).unwrap();
    std::fs::create_dir(&row).unwrap();
    client.finish(&spec.id).await.unwrap_err();
    assert_eq!(client.list().await.unwrap().len(), 1, "a container is known as long as its row exists");
    std::fs::remove_dir(&row).unwrap();
    std::fs::write(&row, text).unwrap();
    assert!(client.finish(&spec.id).await.unwrap().known);
    assert_eq!(node.raw(&spec, Stream::Stdout), b"last words");
    assert!(!row.exists());
    // The next logd does not resume the container either.
    logd.kill();
    let _next = node.start().await;
    assert_eq!(node.client().list().await.unwrap().len(), 0);
}

#[tokio::test]
async fn removing_a_pod_removes_its_log_links_and_nothing_else() {
    let node = Node::new();
    let _logd = node.start().await;
    let client = node.client();
    let (gone, kept) = (node.spec("gone"), node.spec("gone-not"));
    for spec in [&gone, &kept] {
        client.register(spec.clone()).await.unwrap();
    }
    let foreign = node.roots.container_log_links.join("gone_ns_other-1.log");
    std::os::unix::fs::symlink("/elsewhere", &foreign).unwrap();
    client.remove_pod(&gone.key, &gone.uid).await.unwrap();
    client.remove_pod(&gone.key, &gone.uid).await.unwrap();
    // A directory cannot have a name of 300 bytes: nothing is left to remove, and the pod can be
    // removed.
    let long = berth_core::ids::PodKey { name: "a".repeat(253).parse().unwrap(), ..gone.key.clone() };
    client.remove_pod(&long, &gone.uid).await.unwrap();
    assert!(!node.roots.pod_log_dir(&gone.key, &gone.uid).exists());
    assert!(!node.roots.container_log_links.join(format!("gone_ns_app-{}.log", gone.id)).exists_or_link());
    assert!(foreign.exists_or_link());
    assert_eq!(node.files(&kept).len(), 1);
    assert_eq!(client.list().await.unwrap().len(), 1);
    client.remove_attempt(&kept).await.unwrap();
    assert_eq!(node.files(&kept).len(), 0);
    assert_eq!(std::fs::read_dir(&node.roots.container_log_links).unwrap().count(), 1);
}

trait ExistsOrLink {
    fn exists_or_link(&self) -> bool;
}

impl ExistsOrLink for PathBuf {
    fn exists_or_link(&self) -> bool {
        self.symlink_metadata().is_ok()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_is_exact_and_old_files_are_compressed() {
    let mut node = Node::new();
    node.max_size = 100_000;
    let _logd = node.start().await;
    let client = node.client();
    let spec = node.spec("rotates");
    let mut shim = Shim::open(&client.register(spec.clone()).await.unwrap());
    let written = numbered(260_000, "\n");
    let bytes = written.clone();
    let shim = tokio::task::spawn_blocking(move || {
        shim.out.write_all(&bytes).unwrap();
        shim
    });
    let mut shim = shim.await.unwrap();
    wait_for("all to be written", || node.raw(&spec, Stream::Stdout) == written);
    // Rotated files other than the newest are compressed when nothing else is to be done.
    wait_for("compression", || {
        let files = node.files(&spec);
        let gz = files.iter().filter(|f| f.extension().is_some_and(|e| e == "gz")).count();
        files.len() > 2 && gz == files.len() - 2
    });
    assert_eq!(node.raw(&spec, Stream::Stdout), written);
    for file in node.files(&spec) {
        let size = content(&file).unwrap().len();
        // The file is full: the shortest record of the next file would not have fit.
        let full = size > 100_000 - 20_100 || file.extension().is_some_and(|e| e == "log");
        assert!(size <= 100_000 && full, "{file:?} has {size} bytes");
    }
    // More output than the limit of files holds: the end of it stays.
    let more = numbered(2_000_000, "\n");
    let bytes = more.clone();
    tokio::task::spawn_blocking(move || shim.out.write_all(&bytes).unwrap()).await.unwrap();
    client.finish(&spec.id).await.unwrap();
    wait_for("the limit of files", || node.files(&spec).len() == 5);
    let read = node.raw(&spec, Stream::Stdout);
    assert!(more.ends_with(&read) && read.len() > 250_000, "{} bytes are left", read.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_costs_records_but_blocks_nobody() {
    let node = Node::new();
    let tmpfs = Tmpfs::mount(node.roots.pod_logs.clone(), 400_000);
    let logd = node.start().await;
    let client = node.client();
    let spec = node.spec("full");
    let mut shim = Shim::open(&client.register(spec.clone()).await.unwrap());
    let hog = tmpfs.0.join("hog");
    std::fs::write(&hog, vec![0; 200_000]).unwrap();
    let written = numbered(3_000_000, "\n");
    let bytes = written.clone();
    let (mut shim, slowest) = tokio::task::spawn_blocking(move || {
        let slowest = shim.write_at(&bytes, 30_000_000);
        (shim, slowest)
    })
    .await
    .unwrap();
    assert!(slowest < Duration::from_millis(500), "a write took {slowest:?}");
    let status = client.list().await.unwrap().remove(0);
    assert!(status.lost > 0 && status.failing.as_ref().unwrap().contains("No space left"), "{status:?}");
    std::fs::remove_file(&hog).unwrap();
    // Little output is written again without a retry from outside.
    let until = Instant::now() + Duration::from_secs(5);
    while client.list().await.unwrap()[0].failing.is_some() {
        assert!(Instant::now() < until);
        shim.out.write_all(b"trickle\n").unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    shim.out.write_all(b"after\n").unwrap();
    let report = client.finish(&spec.id).await.unwrap();
    let text = content(&spec.log_path(&node.roots)).unwrap();
    for line in text.split_inclusive(|b| *b == b'\n') {
        assert!(berth_logd::format::parse(line).is_some(), "torn: {:?}", String::from_utf8_lossy(line));
    }
    let text = String::from_utf8(text).unwrap();
    let notices: Vec<&str> = text.lines().filter(|l| l.contains("stderr F berth logd: ")).collect();
    assert_eq!(notices.len(), 1, "one line tells of the loss");
    assert!(notices[0].contains(&format!("berth logd: {} records of output were lost here", report.lost)));
    assert!(text.ends_with("stdout F after\n"));
    let raw = node.raw(&spec, Stream::Stdout);
    let kept =
        raw.split_inclusive(|b| *b == b'\n').filter(|l| written.windows(l.len()).any(|w| w == *l)).count();
    assert!(kept > 500, "{kept} lines were kept");
    drop(logd);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_takeover_leaves_the_old_logd_active() {
    let node = Node::new();
    let mut old = node.start().await;
    let client = node.client();
    let spec = node.spec("kept");
    let mut shim = Shim::open(&client.register(spec.clone()).await.unwrap());
    let frame = |json: &str| [&u32::try_from(json.len()).unwrap().to_le_bytes(), json.as_bytes()].concat();
    let ask = || {
        let mut new = UnixStream::connect(node.roots.logd_socket()).unwrap();
        new.write_all(&frame(r#"{"v":1,"seq":1,"body":{"op":"takeover"}}"#)).unwrap();
        let mut head = [0; 4];
        new.read_exact(&mut head).unwrap();
        new
    };
    // The new logd ends before it commits.
    drop(ask());
    shim.out.write_all(b"one\n").unwrap();
    assert_eq!(client.ping().await.unwrap().pid, old.0.id());
    // The new logd is slow: the old one resumes within a second, and a late commit is not answered.
    let mut dawdler = ask();
    let since = Instant::now();
    shim.out.write_all(b"two\n").unwrap();
    assert_eq!(client.ping().await.unwrap().pid, old.0.id());
    assert!(since.elapsed() < Duration::from_millis(1500), "the old one waited {:?}", since.elapsed());
    // The old logd may have closed the connection already. Either way no release can be read.
    let _refused = dawdler.write_all(&frame(r#"{"v":1,"body":{"op":"commit"}}"#));
    let mut rest = Vec::new();
    let _reset = dawdler.read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).contains("released"));
    wait_for("both lines", || node.raw(&spec, Stream::Stdout) == b"one\ntwo\n");
    // A later takeover still succeeds.
    let new = node.start().await;
    old.ended();
    shim.out.write_all(b"three").unwrap();
    client.finish(&spec.id).await.unwrap();
    assert_eq!(node.raw(&spec, Stream::Stdout), b"one\ntwo\nthree");
    drop(new);
}

/// New logds are killed at any moment of their takeover. A logd is active after each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takeovers_killed_at_any_moment_leave_a_logd_active() {
    let node = Node::new();
    let mut running = vec![node.start().await];
    let client = node.client();
    let spec = node.spec("passed-on");
    let mut shim = Shim::open(&client.register(spec.clone()).await.unwrap());
    let mut written = Vec::new();
    let mut takeovers = 0;
    for n in 0..24_u64 {
        let mut new = node.spawn_with(node.role());
        let line = format!("line {n} {}\n", "x".repeat(100));
        shim.out.write_all(line.as_bytes()).unwrap();
        written.extend_from_slice(line.as_bytes());
        tokio::time::sleep(Duration::from_micros(1500 * n)).await;
        let old_ended = running.iter_mut().all(|l| l.0.try_wait().unwrap().is_some());
        if old_ended {
            takeovers += 1;
            running = vec![new];
        } else {
            new.kill();
            // If the new logd is killed after the commit, both have ended or are about to, and the
            // agent starts another. Before the commit, the old one answers.
            let until = Instant::now() + Duration::from_secs(5);
            while client.ping_within(Duration::from_secs(2)).await.is_err() {
                assert!(Instant::now() < until, "no logd is active");
                if running.iter_mut().all(|l| l.0.try_wait().unwrap().is_some()) {
                    running = vec![node.start().await];
                }
            }
        }
        client.ping().await.unwrap();
    }
    client.finish(&spec.id).await.unwrap();
    assert!(takeovers > 0, "no takeover came through");
    assert_bound(&written, &node.raw(&spec, Stream::Stdout), 24 * 200);
    println!("{takeovers} of 24 takeovers came through");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_restarts_a_logd_that_dies() {
    let node = Node::new();
    let client = node.client();
    let started: Mutex<Vec<Logd>> = Mutex::default();
    let spawn = async || {
        started.lock().unwrap().push(node.spawn_with(node.role()));
        Ok(())
    };
    let spec = node.spec("supervised");
    let life = async {
        let mut shim = Shim::open(&client.register(spec.clone()).await.unwrap());
        shim.out.write_all(b"one\nbeg").unwrap();
        for n in 1..=3 {
            assert_eq!(started.lock().unwrap().len(), n);
            started.lock().unwrap().last_mut().unwrap().kill();
            let since = Instant::now();
            let listed = client.list().await;
            let listed = listed.unwrap_or_else(|e| {
                panic!("{e:?} {} started: {}", started.lock().unwrap().len(), node.messages())
            });
            assert_eq!(listed.len(), 1);
            assert!(since.elapsed() < Duration::from_secs(1), "nobody read for {:?}", since.elapsed());
        }
        shim.out.write_all(b"un\n").unwrap();
        client.finish(&spec.id).await.unwrap();
        assert_eq!(node.raw(&spec, Stream::Stdout), b"one\nbegun\n");
    };
    tokio::select! {
        () = life => {}
        _never = berth_logd::supervise(&node.roots, &client, spawn) => {}
    }
}

#[tokio::test]
async fn state_that_cannot_be_read_is_set_aside() {
    let node = Node::new();
    let mut logd = node.start().await;
    let spec = node.spec("torn");
    let client = node.client();
    let mut shim = Shim::open(&client.register(spec.clone()).await.unwrap());
    logd.kill();
    let streams = node.roots.runtime_state.join("logd/streams");
    std::fs::write(streams.join("x.json"), "{\"v\":1,\"spec\":{\"id\"").unwrap();
    let mut log = std::fs::OpenOptions::new().append(true).open(spec.log_path(&node.roots)).unwrap();
    log.write_all(b"2026-01-01T00:00:00.000000000Z stdo").unwrap();
    let _logd = node.start().await;
    shim.out.write_all(b"whole\n").unwrap();
    client.finish(&spec.id).await.unwrap();
    assert!(streams.join("x.bad").exists());
    assert_eq!(node.raw(&spec, Stream::Stdout), b"whole\n", "a torn record must not swallow the next");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_reads_over_rotations_and_compression() {
    let mut node = Node::new();
    node.max_size = 100_000;
    let _logd = node.start().await;
    let client = node.client();
    let spec = node.spec("followed");
    let mut shim = Shim::open(&client.register(spec.clone()).await.unwrap());
    let written = numbered(1_500_000, "\n");
    let set = reader::LogSet::open(&node.roots, &spec.key, &spec.uid, &spec.container, spec.attempt).unwrap();
    let expected = written.len();
    let reader = std::thread::spawn(move || {
        let mut follow = set.follow(reader::ReadFrom::Start).unwrap();
        let mut raw = Vec::new();
        let until = Instant::now() + Duration::from_secs(15);
        while raw.len() < expected && Instant::now() < until {
            follow
                .next(Duration::from_millis(200), &mut |record| {
                    raw.extend_from_slice(record.text);
                    if !record.partial {
                        raw.push(b'\n');
                    }
                })
                .unwrap();
        }
        (raw, follow.missed())
    });
    let bytes = written.clone();
    tokio::task::spawn_blocking(move || shim.write_at(&bytes, 600_000)).await.unwrap();
    let (raw, missed) = tokio::task::spawn_blocking(|| reader.join().unwrap()).await.unwrap();
    assert_eq!(missed, 0, "no file may be missed");
    assert!(raw == written, "{} of {} bytes were followed", raw.len(), written.len());
    client.finish(&spec.id).await.unwrap();
}

#[tokio::test]
async fn a_tail_counts_lines_over_rotated_files() {
    let mut node = Node::new();
    node.max_size = 30_000;
    let _logd = node.start().await;
    let client = node.client();
    let spec = node.spec("tailed");
    let mut shim = Shim::open(&client.register(spec.clone()).await.unwrap());
    let mut written = Vec::new();
    for n in 0..600 {
        writeln!(written, "{n} {}", "x".repeat(if n % 50 == 0 { 17_000 } else { 40 })).unwrap();
    }
    shim.out.write_all(&written[..200_000]).unwrap();
    shim.out.write_all(&written[200_000..]).unwrap();
    client.finish(&spec.id).await.unwrap();
    let set = reader::LogSet::open(&node.roots, &spec.key, &spec.uid, &spec.container, spec.attempt).unwrap();
    let kept = node.raw(&spec, Stream::Stdout);
    assert!(node.files(&spec).len() == 5 && written.ends_with(&kept));
    let all = kept.split_inclusive(|b| *b == b'\n').collect::<Vec<_>>();
    for lines in [0, 1, 49, 51, 150, 100_000] {
        let mut raw = Vec::new();
        let mut count = |r: berth_logd::format::Record<'_>| {
            raw.extend_from_slice(r.text);
            if !r.partial {
                raw.push(b'\n');
            }
        };
        set.read(reader::ReadFrom::Tail(lines), &mut count).unwrap();
        let from = all.len().saturating_sub(usize::try_from(lines).unwrap());
        assert!(raw == all[from..].concat(), "the last {lines} lines");
    }
    let mut none = 0;
    set.read(reader::ReadFrom::Since(Wall(i64::MAX)), &mut |_| none += 1).unwrap();
    assert_eq!(none, 0);
    assert_eq!(reader::pods(&node.roots).unwrap(), [(spec.key.clone(), spec.uid.clone())]);
    assert_eq!(
        reader::containers(&node.roots, &spec.key, &spec.uid).unwrap(),
        std::slice::from_ref(&spec.container)
    );
    assert_eq!(reader::attempts(&node.roots, &spec.key, &spec.uid, &spec.container).unwrap(), [spec.attempt]);
}

#[tokio::test]
async fn a_stopped_logd_keeps_its_lock() {
    let node = Node::new();
    let logd = node.start().await;
    let lock = std::fs::File::open(node.roots.runtime_state.join("logd/lock")).unwrap();
    logd.stop();
    assert!(rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err());
    assert!(node.client().ping_within(Duration::from_millis(50)).await.is_err());
    logd.signal(Signal::CONT);
    node.client().ping().await.unwrap();
    assert_eq!(lock.metadata().unwrap().mode() & 0o777, 0o600);
}
