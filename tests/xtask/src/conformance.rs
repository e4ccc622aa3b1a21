//! `cargo xtask conformance`: Kubernetes' own end-to-end tests on a cluster of this run's own, with the result
//! of each test kept in `tests/conformance`.

mod results;

use crate::{
    cluster::{self, Audit, Cluster, Etcd, Node, Options},
    out, peers, setup,
};
use anyhow::{Context, Result, ensure};
use berth_harness::tools;
use results::{Outcome, Results};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Options of `cargo xtask conformance`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run the tests that this file names, one a line; lines that begin with `#` are comments. A list in
    /// `tests/conformance` has results of its own there.
    #[arg(long, value_name = "FILE", conflicts_with = "focus")]
    list: Option<PathBuf>,
    /// Run the tests whose name matches this regular expression; all of [Conformance] where neither is given.
    #[arg(long, value_name = "RE")]
    focus: Option<String>,
    /// What runs the pods.
    #[arg(long, value_enum, default_value = "kubelet")]
    node: Node,
    /// Give Services to Berth first, by `deploy/daemonset/services.yaml` and an image, as users do. The results are kept as
    /// those of `daemon-set`.
    #[arg(long)]
    daemon_set: bool,
    /// Directory of the cluster's files; `berth/conformance` of the cache directory where none is named. Runs in several
    /// directories do not meet.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Leave the cluster running where a test failed; end it by `cargo xtask cluster --down --dir DIR`.
    #[arg(long)]
    keep: bool,
}

/// Runs the tests. Returns whether all of them passed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let focus = match (&args.list, &args.focus) {
        (Some(list), _) => {
            let text = fs::read_to_string(list).with_context(|| format!("cannot read {}", list.display()))?;
            // Ginkgo matches a text that begins with the suite's own name.
            results::names(&text).map(|name| format!(" {}$", escape(name))).collect()
        }
        (None, Some(focus)) => vec![focus.clone()],
        (None, None) => vec![r"\[Conformance\]".to_owned()],
    };
    ensure!(!focus.is_empty(), "the list names no test");
    ensure!(!args.daemon_set || args.node == Node::Kubelet, "--daemon-set is for a node of the kubelet");
    setup::for_conformance()?;
    let bin = peers::get(&["e2e.test", "agnhost"])?;
    let dir = tools::dir_or_cached(args.dir.as_deref(), "conformance")?;
    let options = Options { keep: args.keep, ..Options::new(args.node, Etcd::New, Audit::ToNodes) };
    let cluster = cluster::start(&dir, &options)?;
    let ports = match args.node {
        Node::Berth => cluster.add_host_ports(),
        _ if args.daemon_set => cluster.replace_kube_proxy(),
        _ => Ok(()),
    };
    let node = if args.daemon_set { "daemon-set" } else { args.node.name() };
    let name = results_of(args.list.as_deref(), node);
    let done = ports.and_then(|()| run_tests(&cluster, &bin, &focus, &name)).and_then(|found| {
        ensure!(!found.is_empty(), "no test has such a name");
        let failed = report(&found);
        keep(&name, found)?;
        Ok(failed == 0)
    });
    if args.keep && !matches!(done, Ok(true)) {
        out::line(&format!(
            "the cluster runs on; end it by `cargo xtask cluster --down --dir {}`",
            dir.display()
        ));
        return done;
    }
    let ended = cluster.end();
    done.and_then(|passed| ended.map(|()| passed))
}

fn run_tests(cluster: &Cluster, bin: &Path, focus: &[String], name: &str) -> Result<Results> {
    let program = bin.join("e2e.test");
    let registries = cluster.write("registries.yaml", cluster::REGISTRIES)?;
    let registries = format!("KUBE_TEST_REPO_LIST={}", registries.display());
    let program = program.to_string_lossy();
    let listed = cluster.run(&["env", &registries, &program, "--list-images"])?;
    out::timed("make and import the images of the tests", || cluster.import_suite(bin, &listed))?;
    // Of each kind of node its own, so that two runs in several directories do not meet here.
    let kept = crate::root().join("target/conformance").join(name);
    fs::create_dir_all(&kept).with_context(|| format!("cannot make {}", kept.display()))?;
    let (log, report) = (kept.join("e2e.log"), kept.join("e2e.json"));
    if report.exists() {
        fs::remove_file(&report).with_context(|| format!("cannot remove {}", report.display()))?;
    }
    let mut args: Vec<String> = [
        "--provider=skeleton",
        "--ginkgo.no-color",
        // Ginkgo ends a suite after an hour by itself; all of [Conformance] takes longer.
        "--ginkgo.timeout=6h",
        "--ginkgo.silence-skips",
        "--disable-log-dump",
        "--allowed-not-ready-nodes=0",
    ]
    .map(str::to_owned)
    .to_vec();
    args.push(format!("--kubeconfig={}", cluster.file("admin.kubeconfig").display()));
    args.push(format!("--kubectl-path={}", bin.join("kubectl").display()));
    args.push(format!("--ginkgo.json-report={}", report.display()));
    args.extend(focus.iter().map(|f| format!("--ginkgo.focus={f}")));
    // The report's times are compared with those of the API server's audit log.
    let mut command = vec!["env", "TZ=UTC", &registries, &program];
    command.extend(args.iter().map(String::as_str));
    let what = format!("run the tests; their output goes to {}", log.display());
    let said = out::timed(&what, || cluster.run_logged(&command, &log))?;
    let text =
        fs::read(&report).with_context(|| format!("the tests ended with {said} and left no report"))?;
    let audit = cluster.file(cluster::AUDIT);
    let audit = fs::read_to_string(&audit).with_context(|| format!("cannot read {}", audit.display()))?;
    results::read(&text, &audit)
}

fn report(found: &Results) -> usize {
    let failed: Vec<_> = found.iter().filter(|(_, test)| test.outcome == Outcome::Failed).collect();
    for (name, _) in &failed {
        out::line(&format!("failed: {name}"));
    }
    out::line(&format!("{} tests, {} failed", found.len(), failed.len()));
    failed.len()
}

/// The name of the file of results: that of the kind of node, after the name of a list in `tests/conformance`.
fn results_of(list: Option<&Path>, node: &str) -> String {
    let own = list.filter(|l| l.parent().is_some_and(|dir| dir.ends_with("tests/conformance")));
    match own.and_then(Path::file_stem) {
        Some(stem) => format!("{}-{node}", stem.to_string_lossy()),
        None => node.to_owned(),
    }
}

/// Puts the results into the file of this kind of node; the tests that did not run keep theirs.
fn keep(name: &str, found: Results) -> Result<()> {
    let path = crate::root().join("tests/conformance").join(format!("{name}.txt"));
    let mut all = match fs::read_to_string(&path) {
        Ok(text) => results::parse(&text).with_context(|| format!("cannot read {}", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Results::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    all.extend(found);
    fs::create_dir_all(path.parent().unwrap_or(&path)).context("cannot make tests/conformance")?;
    fs::write(&path, results::print(&all)).with_context(|| format!("cannot write {}", path.display()))
}

/// A text as a regular expression of Go's that matches it alone.
fn escape(text: &str) -> String {
    let special = |c: char| r"\.+*?()|[]{}^$".contains(c);
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_list_has_results_of_its_own() {
        let of = |list: Option<&str>| results_of(list.map(Path::new), "berth");
        assert_eq!(of(None), "berth");
        assert_eq!(of(Some("/tmp/some.list")), "berth");
        assert_eq!(of(Some("tests/conformance/storage.list")), "storage-berth");
    }

    #[test]
    fn a_name_matches_itself_alone() {
        assert_eq!(escape("[sig-node] a (b) 1.2"), r"\[sig-node\] a \(b\) 1\.2");
    }
}
