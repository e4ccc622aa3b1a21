//! Images of Kubernetes' own end-to-end tests, made from this machine's programs.
//!
//! The tests are told another registry for theirs ([`REGISTRIES`]), so every image has a name of this
//! project's own; versions are those that the tests ask for.

use anyhow::{Context, Result, ensure};
use berth_harness::oci::{Entry, Image};
use serde_json::json;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What `KUBE_TEST_REPO_LIST` names: registries of the tests' images.
pub(crate) const REGISTRIES: &str = "promoterE2eRegistry: berth.test/e2e\ngcRegistry: berth.test/e2e\n\
                                     gcEtcdRegistry: berth.test/e2e\n";

/// Beginning of every image's name.
const REGISTRY: &str = "berth.test/e2e/";

/// Programs of this machine in the image agnhost, as its own Dockerfile has them: some tests call them by exec.
const PROGRAMS: [(&str, &str); 6] = [
    ("/usr/bin/bash", "bin/bash"),
    ("/usr/bin/curl", "usr/bin/curl"),
    ("/bin/nc.openbsd", "usr/bin/nc"),
    ("/usr/bin/dig", "usr/bin/dig"),
    ("/usr/bin/ss", "usr/bin/ss"),
    ("/usr/bin/getent", "usr/bin/getent"),
];

/// Users of the image agnhost that tests ask for.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n\
                      user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\nuser-defined-in-image:x:1000:\n\
                     group-defined-in-image:x:50000:user-defined-in-image\n";

/// The images that `e2e.test --list-images` named (one a line) and that can be made here.
///
/// # Errors
/// A program of this machine or of the peers is missing.
pub(crate) fn all(bin: &Path, listed: &str) -> Result<Vec<Image>> {
    let bases = Bases::new(bin)?;
    let mut names: Vec<&str> = listed.lines().map(str::trim).filter(|l| l.starts_with(REGISTRY)).collect();
    names.sort_unstable();
    names.dedup();
    Ok(names.into_iter().filter_map(|name| bases.image(name)).collect())
}

/// What the images have in common.
struct Bases {
    busybox: Image,
    agnhost: Image,
}

impl Bases {
    fn new(bin: &Path) -> Result<Bases> {
        let busybox = Image::busybox("")?;
        let agnhost = agnhost(&busybox, bin)?;
        Ok(Bases { busybox, agnhost })
    }

    /// The image of this full name; `None` where it cannot be made from files of this machine.
    fn image(&self, full: &str) -> Option<Image> {
        let name = full.strip_prefix(REGISTRY)?.split(':').next()?;
        let path = json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
        Some(match name {
            "agnhost" => {
                self.agnhost.variant(full, json!({"Entrypoint": ["/agnhost"], "Cmd": ["pause"], "Env": path}))
            }
            "pause" => self.agnhost.variant(full, json!({"Entrypoint": ["/agnhost", "pause"], "Env": path})),
            "kitten" | "nautilus" => picture(&self.agnhost, full, name),
            // Answers on its port, which is all that is asked of it.
            "nginx" => self.busybox.variant(full, json!({"Cmd": ["httpd", "-f", "-p", "80"], "Env": path})),
            "busybox" => self.busybox.variant(full, json!({"Cmd": ["sh"], "Env": path})),
            "nonroot" => self.busybox.variant(full, json!({"Cmd": ["sh"], "Env": path, "User": "1234"})),
            "glibc-dns-testing" => self.agnhost.variant(full, json!({"Cmd": ["bash"], "Env": path})),
            "nonewprivs" => set_uid(&self.agnhost, full),
            _ => return None,
        })
    }
}

/// A web server that tells which picture it has.
fn picture(agnhost: &Image, full: &str, name: &str) -> Image {
    let mut image = agnhost.variant(full, json!({"Entrypoint": ["/agnhost"], "Cmd": ["test-webserver"]}));
    let data = json!({"image": format!("{name}.jpg")}).to_string();
    image
        .layers
        .push(vec![Entry::file("data.json", 0o644, data), Entry::file(&format!("{name}.jpg"), 0o644, name)]);
    image
}

/// A program that tells its user and has the set-uid bit.
fn set_uid(agnhost: &Image, full: &str) -> Image {
    let mut image = agnhost.variant(full, json!({"Cmd": ["/nnp", "nonewprivs"]}));
    let program = agnhost.layers.iter().flatten().find(|e| e.path == "agnhost").cloned();
    image.layers.push(program.into_iter().map(|e| Entry { path: "nnp".into(), mode: 0o6755, ..e }).collect());
    image
}

fn agnhost(busybox: &Image, bin: &Path) -> Result<Image> {
    let mut image = busybox.clone();
    let program = bin.join("agnhost");
    let program = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    image.layers.push(vec![
        Entry::file("agnhost", 0o755, program),
        // Tests that replace the entry point call it by this name.
        Entry::symlink("agnhost-2", "agnhost"),
        Entry::dir("uploads", 0o755),
        // A page that tests ask its web server for.
        Entry::file("localhost.crt", 0o644, "none\n"),
        Entry::file("etc/passwd", 0o644, PASSWD),
        Entry::file("etc/group", 0o644, GROUP),
        // Without it, getent asks DNS before the hosts file.
        Entry::file("etc/nsswitch.conf", 0o644, "hosts: files dns\n"),
    ]);
    // Busybox' shell would run its own applets instead of the programs below.
    let mut layer = vec![Entry::symlink("bin/sh", "bash")];
    let mut libraries = BTreeSet::new();
    for (from, to) in PROGRAMS {
        let bytes = fs::read(from).with_context(|| format!("cannot read {from}"))?;
        // Replaces busybox' link of the same name.
        let applet = Path::new(to).file_name().map(|n| Path::new("bin").join(n));
        if applet.is_some_and(|a| busybox.layers.iter().flatten().any(|e| Path::new(&e.path) == a)) {
            layer.push(Entry::symlink(&format!("bin/{}", name_of(to)), &format!("/{to}")));
        }
        layer.push(Entry::file(to, 0o755, bytes));
        libraries.extend(needed(Path::new(from))?);
    }
    for path in libraries {
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        layer.push(Entry::file(path.to_string_lossy().trim_start_matches('/'), 0o755, bytes));
    }
    image.layers.push(layer);
    Ok(image)
}

fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Libraries of a program, and its loader.
fn needed(program: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd").arg(program).stdin(Stdio::null()).output().context("cannot run ldd")?;
    ensure!(
        out.status.success(),
        "ldd {}: {}",
        program.display(),
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(paths(&String::from_utf8_lossy(&out.stdout)))
}

/// Paths in the output of ldd: `name => /path (0x…)` or `/path (0x…)`.
fn paths(text: &str) -> Vec<PathBuf> {
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_as_ldd_prints_them() {
        let text =
            "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)\n\t/lib64/ld.so.2 (0x7f)\n";
        assert_eq!(paths(text), [PathBuf::from("/lib/x/libc.so.6"), PathBuf::from("/lib64/ld.so.2")]);
        assert!(paths("\tstatically linked\n").is_empty());
    }

    #[test]
    fn images_that_cannot_be_made_are_left_out() {
        let image = Image {
            name: String::new(),
            layers: vec![vec![Entry::file("agnhost", 0o755, "x")]],
            config: json!({}),
        };
        let bases = Bases { busybox: image.clone(), agnhost: image };
        assert!(bases.image("berth.test/e2e/volume/nfs:1").is_none());
        assert!(bases.image("elsewhere/agnhost:1").is_none());
        let made = bases.image("berth.test/e2e/nonewprivs:1.4").unwrap();
        assert_eq!(made.layers.last().unwrap()[0].mode, 0o6755);
        assert_eq!(bases.image("berth.test/e2e/agnhost:2").unwrap().name, "berth.test/e2e/agnhost:2");
    }
}
