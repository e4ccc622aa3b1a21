//! Images made from files: OCI archives for containerd, byte for byte the same each time.
//!
//! Nothing is downloaded. Tar entries are written unchanged, also malicious ones (`..`, absolute links),
//! because tests need them.

use crate::rng::Rng;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fs, path::Path, process::Command};

/// Content of a layer at one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Regular file with these bytes.
    File(Vec<u8>),
    /// Empty directory.
    Dir,
    /// Symbolic link to this text.
    Symlink(String),
    /// Hard link to this path of the same layer.
    Hardlink(String),
}

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path as written into the archive; at most 100 bytes.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Uid and gid of the owner.
    pub owner: (u32, u32),
    /// Type and content of the entry.
    pub kind: Kind,
}

impl Entry {
    /// A file owned by root.
    pub fn file(path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> Entry {
        Entry { path: path.into(), mode, owner: (0, 0), kind: Kind::File(bytes.into()) }
    }

    /// A file of random bytes, which compression does not shorten; equal seeds give equal bytes.
    pub fn noise(path: &str, seed: u64, length: usize) -> Entry {
        let mut rng = Rng::new(seed);
        let bytes = std::iter::repeat_with(|| rng.draw().to_le_bytes()).flatten().take(length);
        Entry::file(path, 0o644, bytes.collect::<Vec<u8>>())
    }

    /// A directory owned by root.
    pub fn dir(path: &str, mode: u32) -> Entry {
        Entry { path: path.into(), mode, owner: (0, 0), kind: Kind::Dir }
    }

    /// A symbolic link.
    pub fn symlink(path: &str, to: &str) -> Entry {
        Entry { path: path.into(), mode: 0o777, owner: (0, 0), kind: Kind::Symlink(to.into()) }
    }
}

/// An image: layers from the bottom up, and `config` of its configuration (`Entrypoint`, `Env`, …).
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Full name, for example `docker.io/library/busybox:latest`.
    pub name: String,
    /// Layers of the image, the lowest first.
    pub layers: Vec<Vec<Entry>>,
    /// `config` of the image configuration.
    pub config: Value,
}

impl Image {
    /// Debian's static busybox: all applets in `/bin`, the usual empty directories, root and `nobody`.
    ///
    /// # Errors
    /// `/bin/busybox` (package `busybox-static`) is missing or does not run.
    pub fn busybox(name: &str) -> Result<Image> {
        const BUSYBOX: &str = "/bin/busybox";
        let bytes = fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX} (package busybox-static)"))?;
        let listed = Command::new(BUSYBOX).arg("--list").output().context("list busybox's applets")?;
        ensure!(listed.status.success(), "{BUSYBOX} --list failed");
        let mut layer: Vec<Entry> = ["bin", "dev", "etc", "proc", "root", "sys", "var"]
            .iter()
            .map(|d| Entry::dir(d, 0o755))
            .collect();
        layer.push(Entry::dir("tmp", 0o1777));
        layer.push(Entry::file("bin/busybox", 0o755, bytes));
        for applet in String::from_utf8_lossy(&listed.stdout).lines().filter(|a| *a != "busybox") {
            layer.push(Entry::symlink(&format!("bin/{applet}"), "busybox"));
        }
        layer.push(Entry::file(
            "etc/passwd",
            0o644,
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        ));
        layer.push(Entry::file("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n"));
        Ok(Image {
            name: name.into(),
            layers: vec![layer],
            config: json!({"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"]}),
        })
    }

    /// The same image under another name, with another `config`.
    pub fn variant(&self, name: &str, config: Value) -> Image {
        Image { name: name.into(), layers: self.layers.clone(), config }
    }
}

/// Writes an OCI archive of the images.
///
/// # Errors
/// The file cannot be written, or an entry does not fit into a tar header.
pub fn write_archive(path: &Path, images: &[Image]) -> Result<()> {
    let mut blobs: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut layers = Vec::new();
    let mut manifests = Vec::new();
    for image in images {
        manifests.push(add_image(&mut blobs, &mut layers, image)?);
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    let mut entries = vec![
        Entry::file("oci-layout", 0o644, r#"{"imageLayoutVersion":"1.0.0"}"#),
        Entry::file("index.json", 0o644, serde_json::to_vec(&index)?),
        Entry::dir("blobs", 0o755),
        Entry::dir("blobs/sha256", 0o755),
    ];
    entries.extend(
        blobs.into_iter().map(|(hex, bytes)| Entry::file(&format!("blobs/sha256/{hex}"), 0o644, bytes)),
    );
    fs::write(path, tar(&entries)?).with_context(|| format!("write {}", path.display()))
}

/// The digest of bytes, as images name content.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

/// The configuration of an image with these layers.
pub fn config_document(image: &Image, diff_ids: &[String]) -> Value {
    json!({
        "os": "linux",
        "architecture": architecture(),
        "config": image.config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Adds a blob and returns its descriptor.
fn add(blobs: &mut BTreeMap<String, Vec<u8>>, media_type: &str, bytes: Vec<u8>) -> Value {
    let hex = hex(&bytes);
    let descriptor = json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len()});
    blobs.insert(hex, bytes);
    descriptor
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Layers that are in the archive, each with its descriptor.
type Layers<'a> = Vec<(&'a [Entry], Value)>;

/// Adds a layer, unless another image has brought it, and returns its descriptor.
fn add_layer<'a>(
    blobs: &mut BTreeMap<String, Vec<u8>>,
    known: &mut Layers<'a>,
    entries: &'a [Entry],
) -> Result<Value> {
    if let Some((_, descriptor)) = known.iter().find(|(layer, _)| *layer == entries) {
        return Ok(descriptor.clone());
    }
    let descriptor = add(blobs, "application/vnd.oci.image.layer.v1.tar", tar(entries)?);
    known.push((entries, descriptor.clone()));
    Ok(descriptor)
}

fn add_image<'a>(
    blobs: &mut BTreeMap<String, Vec<u8>>,
    known: &mut Layers<'a>,
    image: &'a Image,
) -> Result<Value> {
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    for entries in &image.layers {
        let layer = add_layer(blobs, known, entries)?;
        // Not compressed, so that the layer's digest equals the diff ID.
        diff_ids.push(layer["digest"].as_str().unwrap_or_default().to_owned());
        layers.push(layer);
    }
    let platform = json!({"os": "linux", "architecture": architecture()});
    let config = serde_json::to_vec(&config_document(image, &diff_ids))?;
    let config = add(blobs, "application/vnd.oci.image.config.v1+json", config);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": layers,
    });
    let mut descriptor =
        add(blobs, "application/vnd.oci.image.manifest.v1+json", serde_json::to_vec(&manifest)?);
    descriptor["platform"] = platform;
    descriptor["annotations"] = json!({"io.containerd.image.name": image.name});
    Ok(descriptor)
}

/// A tar archive (ustar) of the entries, in their order, with all times zero.
///
/// # Errors
/// A path or link is longer than 100 bytes.
pub fn tar(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for entry in entries {
        let (flag, link, bytes): (u8, &str, &[u8]) = match &entry.kind {
            Kind::File(bytes) => (b'0', "", bytes),
            Kind::Hardlink(to) => (b'1', to, &[]),
            Kind::Symlink(to) => (b'2', to, &[]),
            Kind::Dir => (b'5', "", &[]),
        };
        out.extend_from_slice(&header(entry, flag, link, bytes.len())?);
        out.extend_from_slice(bytes);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    Ok(out)
}

fn header(entry: &Entry, flag: u8, link: &str, size: usize) -> Result<[u8; 512]> {
    ensure!(entry.path.len() <= 100, "path {:?} does not fit into a tar header", entry.path);
    ensure!(link.len() <= 100, "link {link:?} does not fit into a tar header");
    let mut block = [0_u8; 512];
    let mut put = |at: usize, bytes: &[u8]| {
        for (slot, byte) in block.iter_mut().skip(at).zip(bytes) {
            *slot = *byte;
        }
    };
    put(0, entry.path.as_bytes());
    put(100, format!("{:07o}\0", entry.mode).as_bytes());
    put(108, format!("{:07o}\0", entry.owner.0).as_bytes());
    put(116, format!("{:07o}\0", entry.owner.1).as_bytes());
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    // The checksum counts its own field as blanks.
    put(148, b"        ");
    put(156, &[flag]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    for (slot, byte) in block.iter_mut().skip(148).zip(format!("{sum:06o}\0 ").bytes()) {
        *slot = byte;
    }
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tar_reads_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [
            Entry::dir("d", 0o755),
            Entry::file("d/f", 0o640, "hello"),
            Entry::symlink("d/s", "f"),
            Entry { kind: Kind::Hardlink("d/f".into()), ..Entry::file("d/h", 0o640, "") },
        ];
        let path = dir.path().join("x.tar");
        fs::write(&path, tar(&entries).unwrap()).unwrap();
        let done = Command::new("tar").arg("-xf").arg(&path).arg("-C").arg(dir.path()).status().unwrap();
        assert!(done.success());
        assert_eq!(fs::read_to_string(dir.path().join("d/h")).unwrap(), "hello");
        assert_eq!(fs::read_link(dir.path().join("d/s")).unwrap(), Path::new("f"));
    }

    #[test]
    fn an_archive_is_the_same_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let image = Image {
            name: "docker.io/library/x:1".into(),
            layers: vec![vec![Entry::file("a", 0o644, "a")]],
            config: json!({"Cmd": ["/a"]}),
        };
        for name in ["one", "two"] {
            write_archive(&dir.path().join(name), std::slice::from_ref(&image)).unwrap();
        }
        let one = fs::read(dir.path().join("one")).unwrap();
        assert_eq!(one, fs::read(dir.path().join("two")).unwrap());
        assert_eq!(one.len() % 512, 0);
    }

    #[test]
    fn images_of_one_archive_share_their_layers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let image = Image {
            name: "docker.io/library/x:1".into(),
            layers: vec![vec![Entry::file("a", 0o644, vec![b'a'; 100_000])]],
            config: json!({}),
        };
        let mut other = image.variant("docker.io/library/y:1", json!({"Cmd": ["/a"]}));
        other.layers.push(vec![Entry::file("b", 0o644, "b")]);
        write_archive(&path, &[image, other]).unwrap();
        let listed = Command::new("tar").arg("-tf").arg(&path).output().unwrap();
        // Two layers, two configurations, two manifests.
        let blobs = String::from_utf8_lossy(&listed.stdout).lines().filter(|l| l.len() > 70).count();
        assert_eq!(blobs, 6);
        assert!(fs::metadata(&path).unwrap().len() < 200_000);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(tar(&[Entry::dir(&"x".repeat(101), 0o755)]).is_err());
    }
}
