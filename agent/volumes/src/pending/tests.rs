use super::*;
use std::{
    fs::File,
    io::Read as _,
    os::fd::OwnedFd,
    sync::atomic::{AtomicU32, Ordering},
};

const SHORT: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(60);

fn wanted(server: &str, root: &str) -> Wanted {
    Wanted { root: root.into(), server: server.into(), what: format!("{server}:/srv") }
}

/// A mount that tells of its end: the other end of the pipe is at its end once the descriptor is closed.
fn mount_with_end() -> (OwnedFd, File) {
    let (reader, writer) = std::io::pipe().unwrap();
    (writer.into(), File::from(OwnedFd::from(reader)))
}

fn stuck(until: mpsc::Receiver<()>, mount: OwnedFd) -> impl FnOnce() -> Mounted + Send + 'static {
    move || {
        until.recv().ok();
        Ok(mount)
    }
}

fn never() -> Mounted {
    panic!("a second thread for the same mount")
}

#[test]
fn a_mount_that_hangs_is_told_of_and_had_later_from_the_same_thread() {
    let pending = PendingMounts::new(SHORT, LONG);
    let (release, until) = mpsc::channel();
    let (mount, mut end) = mount_with_end();
    let root = wanted("gone", "/pods/a/v");
    let error = pending.mount(&root, stuck(until, mount)).unwrap_err();
    assert_eq!(error, "the server does not answer");
    // Another server's mount is had at once.
    pending.mount(&wanted("other", "/pods/b/v"), || Ok(mount_with_end().0)).unwrap();
    release.send(()).unwrap();
    let mount = pending.mount(&root, never).unwrap();
    assert!(held(&pending.shared.begun).is_empty());
    drop(mount);
    end.read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn the_mount_of_a_pod_that_has_gone_is_dropped_as_it_comes() {
    let pending = PendingMounts::new(SHORT, SHORT);
    let (release, until) = mpsc::channel();
    let (mount, mut end) = mount_with_end();
    pending.mount(&wanted("gone", "/pods/a/v"), stuck(until, mount)).unwrap_err();
    pending.forget(Path::new("/pods/ab"));
    assert_eq!(held(&pending.shared.begun).len(), 1, "it is another pod's");
    pending.forget(Path::new("/pods/a"));
    assert!(held(&pending.shared.begun).is_empty());
    release.send(()).unwrap();
    end.read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn few_threads_wait_for_one_server_and_the_next_begins_as_one_ends() {
    let pending = PendingMounts::new(SHORT, SHORT);
    let mut releases = Vec::new();
    for n in 0..MOST_A_SERVER {
        let (release, until) = mpsc::channel();
        releases.push(release);
        let root = wanted("gone", &format!("/pods/{n}/v"));
        pending.mount(&root, stuck(until, mount_with_end().0)).unwrap_err();
        // Neither another try nor the end of the pod makes room.
        pending.mount(&root, never).unwrap_err();
        pending.forget(Path::new(&format!("/pods/{n}")));
    }
    let begun = AtomicU32::new(0);
    let full = pending.mount(&wanted("gone", "/pods/more/v"), never).unwrap_err();
    assert_eq!(full, format!("{MOST_A_SERVER} mounts already wait for this server"));
    let patient = PendingMounts { shared: Arc::clone(&pending.shared), first: LONG, again: LONG };
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            begun.fetch_add(1, Ordering::SeqCst);
            patient.mount(&wanted("gone", "/pods/more/v"), || Ok(mount_with_end().0))
        });
        while begun.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        releases.pop();
        waits.join().unwrap().unwrap();
    });
    drop(releases);
    let mut threads = held(&pending.shared.threads);
    while !threads.is_empty() {
        threads = pending.shared.ended.wait_timeout(threads, LONG).unwrap().0;
    }
}

#[test]
fn a_failure_is_its_callers_and_the_next_call_begins_anew() {
    let pending = PendingMounts::new(LONG, LONG);
    let root = wanted("here", "/pods/a/v");
    assert_eq!(pending.mount(&root, || Err("no such directory".into())).unwrap_err(), "no such directory");
    assert_eq!(pending.mount(&root, || panic!("on purpose")).unwrap_err(), "the mount ended early");
    pending.mount(&root, || Ok(mount_with_end().0)).unwrap();
}
