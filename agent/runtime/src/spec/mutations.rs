//! Mutations of an image's inputs: its configuration up to the spec, and its user databases.

use super::{testing::pod, *};
use berth_core::{
    ids::{Attempt, SandboxAttempt},
    resources::ContainerResources,
};
use berth_harness::{
    mutate::{Bytes, Reached, bytes, json::Corpus, run},
    rng::Rng,
};
use serde::de::IgnoredAny;
use serde_json::json;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\nnobody:x:65534:65534::/:\n";
const GROUP: &str = "root:x:0:\nstaff:x:50:app,nobody\naudio:x:29:app\nnogroup:x:65534:\n";

#[test]
fn mutated_image_configurations() {
    let full = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": ["/a", "b"], "Cmd": ["c"], "Env": ["PATH=/bin", "A=b=c", "D="], "User": "app:staff",
            "WorkingDir": "/w", "Volumes": {"/v": {}, "/w/x": {}}, "StopSignal": "SIGQUIT",
            "Labels": {"x": "y"}, "ExposedPorts": {"80/tcp": {}}, "Healthcheck": null,
        },
        "rootfs": {"type": "layers", "diff_ids": ["sha256:00"]},
    });
    let small = json!({"config": {"Cmd": ["sh"], "Entrypoint": null, "User": "7", "Env": []}});
    let texts =
        ["root", "0", "4294967296", "app", "/proc/self/fd/7", "A", "=", "PATH=", "a\0b", "SIGRTMIN+3"];
    let corpus = Corpus::new(vec![full, small], &texts);
    let made = |text: &[u8]| -> Option<Result<Spec, String>> {
        let image = ImageConfig::parse(text).ok()?;
        let pod = pod();
        let container = &pod.containers[0];
        let files = UserFiles { passwd: Some(PASSWD), group: Some(GROUP) };
        let host = HostFacts::default();
        let user = match resolve_user(&pod, container, &image.user, files) {
            Ok(user) => user,
            Err(e) => return Some(Err(e.to_string())),
        };
        let spec = build(&SpecInput {
            pod: &pod,
            container,
            id: &ContainerId::derive(&pod.uid, SandboxAttempt(0), &container.name, Attempt(0)),
            image: &image,
            user: &user,
            env: &[],
            command: &[],
            args: &[],
            mounts: &[],
            devices: &[],
            namespaces: &NamespacePaths::default(),
            cgroups_path: "/kubepods/podu1/c",
            resources: &ContainerResources::of(&pod, container, host.cgroup_facts()),
            oom_score_adj: 0,
            hostname: "p",
            seccomp_file: None,
            host: &host,
            shim_group: "u1",
        });
        Some(spec.map_err(|e| e.to_string()))
    };
    for document in corpus.documents() {
        made(document.to_string().as_bytes()).unwrap().unwrap();
    }
    run(
        "image configurations",
        |rng| corpus.text(rng),
        |text| match made(text) {
            None if serde_json::from_slice::<IgnoredAny>(text).is_err() => Reached::Syntax,
            None => Reached::Checks,
            Some(Err(why)) => {
                assert!(!why.is_empty());
                Reached::Checks
            }
            Some(Ok(spec)) => {
                let process = spec.process().as_ref().unwrap();
                assert!(process.cwd().is_absolute() && !process.cwd().starts_with("/proc/self/fd"));
                let (args, env) = (process.args().as_ref().unwrap(), process.env().as_ref().unwrap());
                assert!(!args.is_empty());
                assert!(args.iter().chain(env).all(|t| !t.contains('\0')));
                assert!(env.iter().all(|e| e.contains('=')), "{env:?}");
                // An image has no influence beyond its process.
                assert_eq!(spec.annotations().as_ref().unwrap().len(), 1);
                Reached::Taken
            }
        },
    );
}

/// Input of a user's resolution.
#[derive(Debug)]
struct Who {
    user: String,
    non_root: bool,
    passwd: Bytes,
    group: Bytes,
}

fn database(rng: &mut Rng, text: &str) -> Bytes {
    const PIECES: &[&[u8]] = &[
        b":",
        b"\n",
        b",",
        b"0",
        b"-1",
        b"+0",
        b"2147483648",
        b"4294967296",
        b"app",
        b"root",
        b"x",
        b" ",
        b"\r",
        b"\0",
        b"#",
        "\u{2028}".as_bytes(),
    ];
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    match rng.below(6) {
        0 => drop(lines.remove(rng.index(lines.len()))),
        1 => lines.reverse(),
        2 => lines.push(lines[rng.index(lines.len())]),
        _ => {}
    }
    let mut raw = lines.concat().into_bytes();
    if rng.below(4) > 0 {
        bytes(rng, &mut raw, PIECES);
    }
    if rng.below(2000) == 0 {
        raw = raw.repeat((1 << 20) / raw.len().max(1));
    }
    Bytes(raw)
}

fn who(rng: &mut Rng) -> Who {
    const USERS: [&str; 10] = ["app", "nobody", "", "0", "1000", "65534:x", "root", "+7", "-1", "4294967296"];
    let mut user = rng.pick(&USERS).as_bytes().to_vec();
    if rng.below(4) == 0 {
        bytes(rng, &mut user, &[b":", b"0", b"a", b" "]);
    }
    Who {
        user: String::from_utf8_lossy(&user).into_owned(),
        non_root: rng.below(4) == 0,
        passwd: database(rng, PASSWD),
        group: database(rng, GROUP),
    }
}

#[test]
fn mutated_user_databases() {
    run("user databases", who, |who| {
        let mut pod = pod();
        pod.security.run_as_non_root = Some(who.non_root);
        // Converted as for files read from an image.
        let (passwd, group) = (String::from_utf8_lossy(&who.passwd), String::from_utf8_lossy(&who.group));
        let files = UserFiles { passwd: Some(&passwd), group: Some(&group) };
        match resolve_user(&pod, &pod.containers[0], &who.user, files) {
            Err(UserError::BadEntry { .. } | UserError::FileTooLarge { .. }) => Reached::Syntax,
            Err(_) => Reached::Checks,
            Ok(user) => {
                assert!(
                    [user.uid, user.gid].iter().chain(&user.additional_gids).all(|id| *id <= i32::MAX as u32)
                );
                assert!(user.additional_gids.is_sorted() && user.additional_gids.contains(&user.gid));
                assert!(!(who.non_root && user.uid == 0));
                if user.uid == 0 {
                    // Root comes only from a plain zero, in the image's user or in that user's own line.
                    let zero = |t: &str| {
                        let t = t.strip_prefix('+').unwrap_or(t);
                        !t.is_empty() && t.bytes().all(|b| b == b'0')
                    };
                    let name = who.user.split(':').next().unwrap_or_default();
                    let line = |l: &str| {
                        let mut fields = l.trim().split(':');
                        fields.next() == Some(name) && fields.nth(1).is_some_and(zero)
                    };
                    assert!(name.is_empty() || zero(name) || passwd.lines().any(line));
                }
                Reached::Taken
            }
        }
    });
}
