//! FIFOs, devices, links and directories in the place of the files that the node keeps for a pod.

use super::*;
use crate::testing::{container, facts, pod};
use berth_core::ids::Attempt;

#[test]
fn attack_on_the_files_that_the_node_keeps_for_a_pod() {
    let node = Node::on_tmpfs();
    let outside = Outside::new(&node);
    let (p, c) = (pod("web"), container("main"));
    node.volumes.prepare_files(&p, &facts()).unwrap();
    let message = node.volumes.termination_file(&p, &c, Attempt(0)).unwrap();
    fs::write(&message, "ended").unwrap();
    let (files, messages) = (node.pod_dir(&p), message.parent().unwrap().to_owned());
    let name = message.file_name().unwrap().to_str().unwrap().to_owned();
    let names = decoys(&files, &outside);
    decoys(&messages, &outside);
    let open = |dir: &Path| crate::os::open_dir(dir).unwrap();
    let (files, messages) = (open(&files), open(&messages));
    let attack = |n: u32| {
        // Each exchange is undone by the next one: with all files exchanged at random, hardly any round would find
        // them all in their places.
        let n = n / 2;
        let decoy = names[n as usize / 4 % names.len()];
        match n % 4 {
            0 => exchange(&messages, &name, decoy),
            1 => exchange(&files, "etc-hosts", decoy),
            2 => exchange(&files, "resolv.conf", decoy),
            _ => exchange(&files, "hostname", decoy),
        }
    };
    let (mut read, mut written) = (0, 0);
    race_until(rounds(2_000), attack, |n| {
        let text = node.volumes.termination_message(&p, &c, Attempt(0));
        assert!(!matches!(&text, Ok(Some(text)) if text.contains("precious")), "round {n}");
        read += u32::from(text.is_ok());
        _ = node.volumes.termination_file(&p, &c, Attempt(0));
        let mut changed = facts();
        changed.ips.truncate(n as usize % 2);
        written += u32::from(node.volumes.prepare_files(&p, &changed).is_ok());
        read > 10 && written > 10
    });
    println!("{read} read, {written} written");
    assert!(read > 10 && written > 10, "no race: {read} read, {written} written");
    outside.assert_untouched();
    assert_eq!(fs::metadata("/dev/null").unwrap().mode() & 0o7777, 0o666);
}

/// The mode of a device of the container would be the one of its file otherwise.
#[test]
fn only_a_regular_file_becomes_the_file_of_a_termination_message() {
    let node = Node::new();
    let (p, c) = (pod("web"), container("main"));
    let path = node.volumes.termination_file(&p, &c, Attempt(0)).unwrap();
    for make in
        [null as fn(&Path), fifo, |at| fs::create_dir(at).unwrap(), |at| symlink("/dev/null", at).unwrap()]
    {
        fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap();
        make(&path);
        let before = fs::symlink_metadata(&path).unwrap().mode();
        at_once("a termination message", || node.volumes.termination_file(&p, &c, Attempt(0))).unwrap_err();
        assert!(
            at_once("a termination message", || node.volumes.termination_message(&p, &c, Attempt(0)))
                .is_err()
        );
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode(), before);
    }
}
