//! `cargo xtask image`: Berth, or its CSI driver for NFS, as a container image: an OCI archive with one static program
//! and nothing else. No Docker engine is needed. The same sources and toolchain give the same bytes.

use crate::{out, setup};
use anyhow::{Context, Result, ensure};
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

/// Writes an archive with the agent's image under each of the names. Images of two names differ in a label, so that one is the
/// other's upgrade.
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
    let image = |name: &&str| Image {
        name: (*name).to_owned(),
        layers: vec![vec![Entry::file(program, 0o755, bytes.clone())]],
        config: json!({"Entrypoint": [format!("/{program}")], "Labels": labels(name)}),
    };
    let images: Vec<Image> = names.iter().map(image).collect();
    oci::write_archive(output, &images).context("cannot write the archive")?;
    let (names, size) = (names.join(", "), bytes.len() / 1024);
    out::line(&format!("{}: {names} with one program of {size} KiB", output.display()));
    Ok(())
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
