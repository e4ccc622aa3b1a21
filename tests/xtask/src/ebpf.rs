//! `cargo xtask ebpf`: builds the eBPF programs from source, or checks the committed object against the
//! sources.
//!
//! All other builds embed the committed object and need none of these tools. The object's bytes depend only
//! on the compiler, the linker and the sources. All paths are mapped to paths that exist on no machine,
//! because the linker embeds the source lines of files that it can open.

use crate::{cargo, out, setup::succeed};
use anyhow::{Context, Result, ensure};
use berth_harness::tools;
use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Compiler version of the committed object, and the Debian package with the sources of that compiler's
/// library.
const RUSTC: &str = "1.95.0";
/// The package is in Debian's trixie-backports, for all architectures.
const RUST_SRC: &str = "1.95.0+dfsg1-2~bpo13+1";
/// Version of the linker, which links with the LLVM of that compiler.
const BPF_LINKER: &str = "0.9.15";

/// Path of the committed object, from the repository's root.
const OBJECT: &str = "ebpf/programs/berth.bpf.o";
/// Path of the built object.
const BUILT: &str = "target/ebpf/berth.bpf.o";

/// Options of `cargo xtask ebpf`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Change nothing: build, and fail unless the committed object is byte for byte the same.
    #[arg(long)]
    check: bool,
}

/// Installs the tools and sources that the build needs and this machine lacks.
///
/// # Errors
/// The compiler is of another version, or a tool cannot be downloaded or built.
pub(crate) fn tools() -> Result<()> {
    Rust::find()?.sources()?;
    linker().map(drop)
}

/// Check for the test suites: `Ok(false)` where the committed object differs from the one built from the
/// sources.
pub(crate) fn check() -> Result<bool> {
    run(&Args { check: true })
}

/// Builds or checks the object; `Ok(false)` where the check finds a difference.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let rust = Rust::find()?;
    rust.sources()?;
    let linker = linker()?;
    let object = out::timed("build the programs", || build(&rust, &linker))?;
    // The verifier would reject a call of a panic function without naming its cause.
    for symbol in ["core9panicking", "core::panicking", "rust_begin_unwind"] {
        ensure!(
            !contains(&object, symbol.as_bytes()),
            "a path of the programs can panic: {symbol} is in the object"
        );
    }
    let file = crate::root().join(OBJECT);
    let digest_file = file.with_extension("o.sha256");
    let digest = format!("{}  berth.bpf.o\n", sha256()?);
    if args.check {
        let committed = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let recorded = fs::read_to_string(&digest_file).unwrap_or_default();
        let same = committed == object && recorded == digest;
        out::line(if same {
            "the committed object is the built one"
        } else {
            "the committed object is ANOTHER one"
        });
        return Ok(same);
    }
    fs::write(&file, &object).with_context(|| format!("write {}", file.display()))?;
    fs::write(&digest_file, &digest).with_context(|| format!("write {}", digest_file.display()))?;
    out::line(&format!("{OBJECT}: {} bytes, {digest}", object.len()).replace("  berth.bpf.o\n", ""));
    Ok(true)
}

/// Installation of the compiler.
struct Rust {
    sysroot: PathBuf,
}

impl Rust {
    fn find() -> Result<Rust> {
        let version = text(Command::new("rustc").arg("--version"))?;
        ensure!(
            version.split(' ').nth(1) == Some(RUSTC),
            "the object is made by rustc {RUSTC}; this is {}",
            version.trim()
        );
        Ok(Rust { sysroot: text(Command::new("rustc").args(["--print", "sysroot"]))?.trim().into() })
    }

    fn library(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust/library")
    }

    /// Provides the sources of `core`, which is compiled for the BPF target: from rustup, else from Debian.
    fn sources(&self) -> Result<()> {
        let library = self.library();
        if library.join("core/Cargo.toml").is_file() {
            return Ok(());
        }
        let rustup = || succeed(Command::new("rustup").args(["component", "add", "rust-src"]));
        if out::timed("rustup component add rust-src", rustup).is_ok()
            && library.join("core/Cargo.toml").is_file()
        {
            return Ok(());
        }
        let place = tools::cache()?.join("tools/rust-src");
        let sources = place.join(format!("usr/src/rustc-{RUSTC}/library"));
        if !sources.join("core/Cargo.toml").is_file() {
            out::timed("rust-src from Debian's backports", || debian(&place))?;
        }
        let parent = library.parent().context("the library has no parent")?;
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        // An earlier run may have left a dangling link.
        if library.symlink_metadata().is_ok() {
            fs::remove_file(&library).with_context(|| format!("remove {}", library.display()))?;
        }
        std::os::unix::fs::symlink(&sources, &library).with_context(|| format!("link {}", library.display()))
    }
}

/// Unpacks a package of another Debian suite without changing the system's own apt sources.
fn debian(place: &Path) -> Result<()> {
    let apt = place.join("apt");
    for dir in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(dir)).with_context(|| format!("create {}", apt.display()))?;
    }
    let list = apt.join("sources.list");
    let line = format!(
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {} trixie-backports main\n",
        archive()?
    );
    fs::write(&list, line).with_context(|| format!("write {}", list.display()))?;
    let get = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.arg("-q").current_dir(&apt);
        for (name, value) in [
            ("Dir::Etc::sourcelist", list.clone()),
            ("Dir::Etc::sourceparts", "-".into()),
            ("Dir::State::lists", apt.join("lists")),
            ("Dir::Cache", apt.join("cache")),
        ] {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        }
        succeed(command.args(args))
    };
    get(&["update"])?;
    get(&["download", &format!("rust-src={RUST_SRC}")])?;
    let package = fs::read_dir(&apt)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded nothing")?;
    succeed(Command::new("dpkg").arg("-x").arg(package).arg(place))?;
    fs::remove_dir_all(&apt).with_context(|| format!("remove {}", apt.display()))
}

/// URL of Debian's archive, from the system's own apt sources.
fn archive() -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(dir) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(dir.filter_map(|entry| entry.ok().map(|entry| entry.path())));
    }
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .find_map(|text| archive_in(&text))
        .context("no Debian archive in /etc/apt: install rust-src by rustup")
}

/// First URL of a Debian archive in an apt sources file, of the one-line or the deb822 format.
fn archive_in(text: &str) -> Option<String> {
    let words =
        text.lines().map(str::trim).filter(|line| !line.starts_with('#')).flat_map(str::split_whitespace);
    words
        .filter(|word| word.contains("://"))
        .map(|word| word.trim_end_matches('/'))
        .find(|word| word.ends_with("/debian"))
        .map(str::to_owned)
}

/// Installation directory of the linker.
fn linker_root() -> Result<PathBuf> {
    Ok(tools::cache()?.join("tools/bpf-linker"))
}

/// Whether the linker is installed in the wanted version.
fn is_linker(root: &Path) -> bool {
    let version = text(Command::new(root.join("bin/bpf-linker")).arg("--version")).unwrap_or_default();
    version.split_whitespace().nth(1) == Some(BPF_LINKER)
}

/// Directory of the linker's program. Installs the linker where necessary.
fn linker() -> Result<PathBuf> {
    let root = linker_root()?;
    let dir = root.join("bin");
    if is_linker(&root) {
        return Ok(dir);
    }
    // Without optimisation the linker builds in a minute instead of several; LLVM does the work either way.
    out::timed("cargo install bpf-linker, a minute the first time", || {
        let mut command = cargo::command(&[
            "install",
            "--locked",
            "--force",
            "--debug",
            "bpf-linker",
            "--version",
            BPF_LINKER,
        ]);
        succeed(command.arg("--root").arg(&root))
    })?;
    Ok(dir)
}

fn build(rust: &Rust, linker: &Path) -> Result<Vec<u8>> {
    let root = crate::root();
    let target = root.join("target/ebpf");
    let home = match env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => {
            PathBuf::from(env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?).join(".cargo")
        }
    };
    let library = rust.library();
    let resolved = library.canonicalize().with_context(|| format!("resolve {}", library.display()))?;
    let mut flags =
        ["-Clinker=bpf-linker", "-Clink-arg=--btf", "-Ctarget-cpu=v3", "--cfg=bpf_target_arch=\"x86_64\""]
            .map(OsString::from)
            .to_vec();
    for (from, to) in
        [(&root, "/berth"), (&home, "/cargo"), (&library, "/rust/library"), (&resolved, "/rust/library")]
    {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flags.push(flag);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(std::iter::once(linker.to_path_buf()).chain(env::split_paths(&path)))?;
    let mut command = cargo::command(&["build", "--release", "--locked", "-Zbuild-std=core"]);
    command
        .args(["--target", "bpfel-unknown-none", "--target-dir"])
        .arg(&target)
        .current_dir(root.join("ebpf/programs"))
        .env("PATH", path)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(std::ffi::OsStr::new("\u{1f}")))
        // The stable compiler needs this variable to build `core` with `-Zbuild-std`.
        .env("RUSTC_BOOTSTRAP", "1");
    succeed(&mut command)?;
    let stripped = root.join(BUILT);
    // The compiler's own objcopy: the same version on every machine.
    let lib = rust.sysroot.join("lib");
    let host = text(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let objcopy = |option: &str, from: &Path| {
        let mut command = Command::new(lib.join("rustlib").join(host.trim()).join("bin/rust-objcopy"));
        command.arg(option).arg(from).arg(&stripped).env("LD_LIBRARY_PATH", &lib);
        succeed(&mut command)
    };
    objcopy("--strip-debug", &target.join("bpfel-unknown-none/release/berth"))?;
    // The crate hash in symbol names depends on the location of the sources and is removed.
    let names = renamed(&fs::read(&stripped).with_context(|| format!("read {}", stripped.display()))?);
    let list = target.join("symbols");
    fs::write(&list, names).with_context(|| format!("write {}", list.display()))?;
    objcopy(&format!("--redefine-syms={}", list.display()), &stripped)?;
    fs::read(&stripped).with_context(|| format!("read {}", stripped.display()))
}

/// Pairs of old and new names, one per line, for all mangled symbols in an object.
fn renamed(object: &[u8]) -> String {
    let texts = object.split(|byte| *byte == 0).filter_map(|text| str::from_utf8(text).ok());
    let symbols = texts.filter(|text| text.starts_with("_R") && !text.contains(char::is_whitespace));
    symbols.map(|old| format!("{old} {}\n", unmarked(old))).collect()
}

/// A symbol's name without crate hashes: `Cs<letters and digits>_` becomes `C`.
fn unmarked(symbol: &str) -> String {
    let mut parts = symbol.split("Cs");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once('_') {
            Some((mark, rest)) if mark.chars().all(|c| c.is_ascii_alphanumeric()) => {
                plain.push('C');
                plain.push_str(rest);
            }
            _ => {
                plain.push_str("Cs");
                plain.push_str(part);
            }
        }
    }
    plain
}

/// SHA-256 of the built object.
fn sha256() -> Result<String> {
    let line = text(Command::new("sha256sum").arg(crate::root().join(BUILT)))?;
    line.split_whitespace().next().map(str::to_owned).context("sha256sum printed nothing")
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

/// Standard output of a command.
fn text(command: &mut Command) -> Result<String> {
    let out =
        command.stdin(Stdio::null()).output().with_context(|| format!("run {:?}", command.get_program()))?;
    ensure!(out.status.success(), "{command:?}: {}: {}", out.status, String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_found_in_both_forms_of_sources() {
        let new =
            "Types: deb\n# http://snapshot.debian.org/archive/debian/1\nURIs: http://deb.debian.org/debian\n";
        assert_eq!(archive_in(new).as_deref(), Some("http://deb.debian.org/debian"));
        let old =
            "deb https://deb.nodesource.com/node nodistro main\ndeb http://mirror/debian/ trixie main\n";
        assert_eq!(archive_in(old).as_deref(), Some("http://mirror/debian"));
        assert_eq!(archive_in("deb http://mirror/debian-security trixie main"), None);
    }

    #[test]
    fn symbols_lose_the_marks_of_crates() {
        let symbol = "_RINvNtNtCs3sw5NPX5K7V_5berth2tc3act5beginAmj4_EB6_";
        assert_eq!(unmarked(symbol), "_RINvNtNtC5berth2tc3act5beginAmj4_EB6_");
        assert_eq!(unmarked("_RCs"), "_RCs");
        let object = format!("x\0{symbol}\0connect4\0");
        assert_eq!(renamed(object.as_bytes()), format!("{symbol} {}\n", unmarked(symbol)));
    }

    #[test]
    fn a_needle_is_found_anywhere() {
        assert!(contains(b"abc", b"bc") && !contains(b"abc", b"bd") && !contains(b"a", b"abc"));
    }
}
