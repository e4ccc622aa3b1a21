//! `cargo xtask image`: Berth, or its CSI driver for NFS, as a container image: an OCI archive with one static program
//! and nothing else. No Docker engine is needed. The same sources and toolchain give the same bytes.

use crate::{out, setup};
use anyhow::{Context, Result, bail, ensure};
use berth_harness::{
    oci::{self, Entry, Image},
    tools,
};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The program of the agent's image.
const AGENT: &str = "berth";

/// The programs that images are made of.
const PROGRAMS: [&str; 2] = [AGENT, "berth-csi-nfs"];

/// Options of `cargo xtask image`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The program in it.
    #[arg(long, value_name = "NAME", default_value = AGENT, value_parser = PROGRAMS)]
    program: String,
    /// The image's name; `berth.dev/PROGRAM:dev` where none is given.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The archive; `target/image/PROGRAM.tar` where none is named.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Take the unoptimised build, which is made sooner.
    #[arg(long)]
    plain: bool,
    /// Import the image into the namespace `k8s.io` of the containerd at this socket.
    #[arg(long, value_name = "SOCKET")]
    import: Option<PathBuf>,
}

/// Makes the image.
pub(crate) fn run(args: &Args) -> Result<bool> {
    setup::for_cluster()?;
    let program = args.program.as_str();
    let default = || crate::root().join("target/image").join(format!("{program}.tar"));
    let output = args.output.clone().unwrap_or_else(default);
    let name = args.name.clone().unwrap_or_else(|| format!("berth.dev/{program}:dev"));
    write_program(&output, program, &[&name], args.plain)?;
    if let Some(socket) = &args.import {
        let socket = socket.to_str().context("the socket's path must be text")?;
        let mut ctr = Command::new(tools::find("ctr")?);
        ctr.args(["--address", socket, "--namespace", "k8s.io", "images", "import"]).arg(&output);
        setup::succeed(&mut ctr).context("cannot import the image")?;
    }
    Ok(true)
}

/// Writes an archive with an image of the agent for each of the names. All after the first have the eBPF programs in an object
/// of another digest, as another release has: one is the other's upgrade, with programs that are loaded and swapped.
///
/// # Errors
/// The program does not build, or the archive cannot be written.
pub(crate) fn write(output: &Path, names: &[&str], plain: bool) -> Result<()> {
    write_program(output, AGENT, names, plain)
}

fn write_program(output: &Path, program: &str, names: &[&str], plain: bool) -> Result<()> {
    let path = out::timed(&format!("build {program} as a static program"), || build(program, plain))?;
    if let Some(dir) = output.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let labels = |name: &str| json!({"org.opencontainers.image.licenses": "Apache-2.0", "org.opencontainers.image.ref.name": name});
    let image = |(number, name): (usize, &&str)| {
        let bytes = if number == 0 { bytes.clone() } else { with_other_object(&bytes, number)? };
        Ok(Image {
            name: (*name).to_owned(),
            layers: vec![vec![Entry::file(program, 0o755, bytes)]],
            config: json!({"Entrypoint": [format!("/{program}")], "Labels": labels(name)}),
        })
    };
    let images = names.iter().enumerate().map(image).collect::<Result<Vec<Image>>>()?;
    oci::write_archive(output, &images).context("cannot write the archive")?;
    let (names, size) = (names.join(", "), bytes.len() / 1024);
    out::line(&format!("{}: {names} with one program of {size} KiB", output.display()));
    Ok(())
}

/// The program with its eBPF object changed in a byte that nobody reads: the last one of the padding that an ELF file's
/// identification ends with (`EI_PAD`).
fn with_other_object(program: &[u8], number: usize) -> Result<Vec<u8>> {
    const LAST: usize = 15;
    let path = crate::root().join("ebpf/programs/berth.bpf.o");
    let object = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    // The object lies at an aligned address, and the program's file is mapped by pages.
    let begins = (0..program.len()).step_by(16).filter(|at| program[*at..].starts_with(&object));
    let found: Vec<usize> = begins.collect();
    let [at] = found[..] else { bail!("the program holds {} times {}", found.len(), path.display()) };
    let mut changed = program.to_vec();
    let byte = changed.get_mut(at + LAST).context("the object is cut")?;
    *byte = u8::try_from(number).context("so many builds")?;
    Ok(changed)
}

/// Builds the program without a dynamic linker: a build of its own, beside that of the tests.
fn build(program: &str, plain: bool) -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let flags = [std::env::var("RUSTFLAGS").unwrap_or_default(), "-C target-feature=+crt-static".to_owned()];
    let mut args = vec!["build", "--quiet", "--locked", "--package", program, "--target", &target];
    if !plain {
        args.push("--release");
    }
    let status = tools::cargo(&args).env("RUSTFLAGS", flags.join(" ").trim()).status();
    ensure!(status.context("cannot run cargo")?.success(), "{program} does not build");
    let profile = if plain { "debug" } else { "release" };
    let path = crate::root().join("target").join(&target).join(profile).join(program);
    ensure!(path.is_file(), "{} is missing", path.display());
    Ok(path)
}
