//! `service-bench`: figures of the Service data plane, each with its yardstick measured in the same rounds.
//!
//! Built optimised and run by `cargo xtask bench service`. All objects that it creates on the machine carry
//! `berth-sb-<pid>` in their names and are removed at the end: network namespaces, a cgroup, pins. Standard
//! output is one line of JSON with the figures; progress for people goes to standard error.

mod cni;
mod east_west;
mod north_south;
mod rounds;
mod stop;
mod tables;

use anyhow::{Context, Result};
use berth_ebpf_loader::Pins;
use berth_tests_services::{group::Group, load::Load};
use clap::Parser;
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

/// Options of the program.
#[derive(Debug, Parser)]
struct Args {
    /// Directory of berth-load and berth-cni.
    #[arg(long, value_name = "DIR")]
    programs: PathBuf,
    /// Directory of the reference CNI plugins.
    #[arg(long, value_name = "DIR")]
    reference: PathBuf,
    /// Number of rounds, each with every arm of a comparison.
    #[arg(long, default_value_t = 12, value_name = "N")]
    rounds: usize,
    /// Time for which one arm is loaded in a round.
    #[arg(long, default_value_t = 1000, value_name = "MILLISECONDS")]
    millis: u64,
    /// Services in the large tables.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    services: u32,
    /// Object file to measure instead of the built-in one.
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
    /// Names of the comparisons to run: service, cni, nodeport, tables.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

/// A measured figure.
#[derive(Debug, Serialize)]
struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    n: usize,
    against: String,
}

/// State that the comparisons share.
struct Bench {
    /// Prefix of the names of all created objects.
    name: String,
    load: Load,
    own_plugins: PathBuf,
    reference: PathBuf,
    rounds: usize,
    /// Duration of one turn of an arm.
    time: Duration,
    services: u32,
    group: Group,
    /// Directory of the plugins' address journals.
    dir: PathBuf,
    /// Object file with the programs and maps.
    object: Vec<u8>,
    _held: Held,
}

/// An empty pin directory. While it exists, the BPF file system stays mounted between the comparisons.
struct Held(Pins);

impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = berth_ebpf_loader::detach(&self.0) {
            say(&format!("service-bench: {error}"));
        }
    }
}

impl Bench {
    fn new(args: &Args) -> Result<Bench> {
        let name = format!("berth-sb-{}", std::process::id());
        let held = Held(Pins::new(pins(&name, "held")));
        berth_ebpf_loader::ensure_bpffs(&held.0)?;
        let dir = std::env::temp_dir().join(&name);
        let object = match &args.object {
            Some(file) => std::fs::read(file).with_context(|| format!("read {}", file.display()))?,
            None => berth_ebpf_loader::OBJECT.to_vec(),
        };
        Ok(Bench {
            load: Load::at(&args.programs.join("berth-load"))?,
            own_plugins: args.programs.clone(),
            reference: args.reference.clone(),
            rounds: args.rounds,
            time: Duration::from_millis(args.millis) / rounds::TURNS,
            services: args.services,
            group: Group::new(&name)?,
            dir,
            object,
            name,
            _held: held,
        })
    }

    fn name(&self, what: &str) -> String {
        format!("{}-{what}", self.name)
    }

    fn pins(&self, what: &str) -> PathBuf {
        pins(&self.name, what)
    }

    fn run(&self, only: &[String]) -> Result<Vec<Figure>> {
        let mut figures = Vec::new();
        let wanted = |name: &str| only.is_empty() || only.iter().any(|n| n == name);
        if wanted("tables") {
            figures.extend(tables::run(self).context("the tables")?);
        }
        if wanted("service") {
            figures.extend(east_west::run(self).context("ClusterIP against the pod's address")?);
        }
        if wanted("cni") {
            figures.extend(cni::run(self).context("our CNI against the bridge plugin")?);
        }
        if wanted("nodeport") {
            figures.extend(north_south::run(self).context("NodePort against nftables")?);
        }
        Ok(figures)
    }
}

fn pins(name: &str, what: &str) -> PathBuf {
    Path::new("/sys/fs/bpf").join(format!("{name}-{what}"))
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = stop::listen().and_then(|()| Bench::new(&args)).and_then(|bench| {
        let done = bench.run(&args.only);
        if bench.dir.exists() {
            std::fs::remove_dir_all(&bench.dir).context("remove the journals of addresses")?;
        }
        done
    });
    match done.and_then(|figures| Ok(serde_json::to_string(&figures)?)) {
        Ok(text) => {
            #[expect(clippy::print_stdout, reason = "what it was started for")]
            {
                println!("{text}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("service-bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "read by people while it runs")]
fn say(text: &str) {
    eprintln!("{text}");
}
