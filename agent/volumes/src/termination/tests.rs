use super::*;
use crate::testing::{Node, container, pod};
use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
};

fn with_file(node: &Node, bytes: &[u8]) -> Option<String> {
    let (p, c) = (pod("web"), container("main"));
    let path = node.volumes.termination_file(&p, &c, Attempt(0)).unwrap();
    fs::write(&path, bytes).unwrap();
    node.volumes.termination_message(&p, &c, Attempt(0)).unwrap()
}

#[test]
fn the_end_of_the_file_is_the_message() {
    let node = Node::new();
    assert_eq!(with_file(&node, b""), None);
    assert_eq!(with_file(&node, b"done\n").as_deref(), Some("done\n"));
    let long = [b"x".repeat(5000), b"y".repeat(4095), b"z".to_vec()].concat();
    let got = with_file(&node, &long).unwrap();
    assert_eq!((got.len(), got.ends_with("yz"), got.contains('x')), (4096, true, false));
    let wide = with_file(&node, "€".repeat(2000).as_bytes()).unwrap();
    assert_eq!(wide, "€".repeat(1365), "whole characters only");
    let broken = with_file(&node, &[0xff; 9000]).unwrap();
    assert_eq!(broken, "\u{fffd}".repeat(1365));
    assert_eq!(with_file(&node, b"a\xffb\0").as_deref(), Some("a\u{fffd}b\0"));
}

#[test]
fn every_cut_is_text_of_at_most_4096_bytes() {
    for pattern in ["a", "é", "€", "😀", "aé€😀"] {
        for extra in 0..8 {
            let text = format!("{}{}", "b".repeat(extra), pattern.repeat(5000));
            let bytes = text.as_bytes();
            let end = &bytes[bytes.len().saturating_sub(MAX_MESSAGE + 3)..];
            let got = message(end);
            assert!(got.len() <= MAX_MESSAGE && got.len() > MAX_MESSAGE - 4, "{pattern} {extra}");
            assert!(text.ends_with(&got), "{pattern} {extra}");
        }
    }
}

#[test]
fn only_a_regular_file_is_read() {
    let node = Node::new();
    let (p, c) = (pod("web"), container("main"));
    assert_eq!(node.volumes.termination_message(&p, &c, Attempt(0)).unwrap(), None, "never made");
    let path = node.volumes.termination_file(&p, &c, Attempt(0)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o666);
    let secret = node.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let replacements: [&dyn Fn(); 3] = [
        &|| symlink(&secret, &path).unwrap(),
        &|| {
            rustix::fs::mknodat(
                rustix::fs::CWD,
                &path,
                rustix::fs::FileType::Fifo,
                Mode::from_raw_mode(0o666),
                0,
            )
            .unwrap();
        },
        &|| fs::create_dir(&path).unwrap(),
    ];
    for (n, replace) in replacements.iter().enumerate() {
        drop(fs::remove_file(&path));
        replace();
        assert!(node.volumes.termination_message(&p, &c, Attempt(0)).is_err(), "{n}");
    }
}

#[test]
fn a_second_call_keeps_the_message_and_old_attempts_go() {
    let node = Node::new();
    let (p, c) = (pod("web"), container("main"));
    for n in 0..5 {
        fs::write(node.volumes.termination_file(&p, &c, Attempt(n)).unwrap(), format!("attempt {n}"))
            .unwrap();
        node.volumes.termination_file(&p, &c, Attempt(n)).unwrap();
    }
    let message = |n| node.volumes.termination_message(&p, &c, Attempt(n)).unwrap();
    assert_eq!(message(4).as_deref(), Some("attempt 4"));
    assert_eq!(message(3).as_deref(), Some("attempt 3"));
    assert_eq!(message(2), None);
}
