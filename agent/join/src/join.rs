//! `berth join`: discovery, files, start, and the wait until the node is Ready.

use crate::{
    Error, block_on,
    defaults::{self, Defaults},
    discovery::discover,
    files::{Files, NewFile, Start},
    service, tell,
    trust::{Pin, Token},
    wait,
};
use berth_core::{error::Chain, roots::Roots};
use berth_kube::{
    identity::{DiscoveredCluster, Source, with_token},
    pool::Pool,
};
use clap::Args;
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Options of `berth join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The API server: HOST:PORT, or HOST for port 6443.
    #[arg(value_name = "SERVER", value_parser = server)]
    server: String,
    /// A bootstrap token (`kubeadm token create`).
    #[arg(long, value_name = "TOKEN")]
    token: Token,
    /// The pin of the cluster's CA, `sha256:HEX`; one of several is enough.
    #[arg(long = "ca-hash", value_name = "PIN", required_unless_present = "unsafe_skip_ca_verification")]
    ca_hashes: Vec<Pin>,
    /// Trust the CA that the server names if the token's signature fits. Whoever knows the token can then
    /// pretend to be the cluster.
    #[arg(long, conflicts_with = "ca_hashes")]
    unsafe_skip_ca_verification: bool,
    /// Addresses of the cluster's DNS; by default those of the cluster's `kubelet-config`.
    #[arg(long, value_name = "IP")]
    cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS domain; by default that of `kubelet-config`.
    #[arg(long, value_name = "DOMAIN")]
    cluster_domain: Option<String>,
    /// Networks of ClusterIPs; by default those of the cluster's `kubeadm-config`.
    #[arg(long = "service-cidr", value_name = "CIDR")]
    service_cidrs: Vec<String>,
    /// A further option of `berth agent`.
    #[arg(long = "agent-option", value_name = "OPTION", allow_hyphen_values = true)]
    agent_options: Vec<String>,
    /// Delete what an earlier join left, and join anew.
    #[arg(long)]
    replace: bool,
    /// Write the files, start nothing and say the command to run.
    #[arg(long)]
    no_start: bool,
    /// With --no-start: wait until the node is Ready all the same, for an agent that is started by hand.
    #[arg(long, requires = "no_start")]
    wait: bool,
    /// The longest wait until the node is Ready, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 240)]
    timeout: u64,
    /// Directory of configuration.
    #[arg(long, value_name = "DIR", default_value = "/etc")]
    etc: PathBuf,
}

/// Makes this machine a node of a cluster. `roots_file`: the file of the roots, where they are not the usual
/// ones.
///
/// # Errors
/// The cluster cannot be verified, the node has joined already, a file cannot be written, the agent does not
/// start, or the node is not Ready in time.
pub fn join(roots: &Roots, roots_file: Option<&Path>, args: &JoinArgs) -> Result<(), Error> {
    block_on(run(roots, roots_file, args))
}

async fn run(roots: &Roots, roots_file: Option<&Path>, args: &JoinArgs) -> Result<(), Error> {
    let files = Files::below(&args.etc, roots);
    let there = files.present();
    if !there.is_empty() && !args.replace {
        return Err(Error::Joined(present(&there, &files)));
    }
    tell(&format!("Asking {} about its cluster", args.server));
    let cluster = discover(&args.server, &args.token, &args.ca_hashes).await?;
    let pinned =
        if args.ca_hashes.is_empty() { "its CA is not verified" } else { "its CA is the pinned one" };
    tell(&format!("  the token's signature fits, {pinned}; the API server is {}", cluster.server));
    let manages = service::is_there() && !args.no_start;
    if !there.is_empty() {
        if manages && files.unit.exists() {
            service::stop().await?;
        }
        for path in &there {
            tell(&format!("  deleted {}", path.display()));
            Files::remove(path)?;
        }
    }
    write(&files, &cluster, &args.token)?;
    let defaults = settings(&files, args).await;
    let program = std::env::current_exe();
    let program = program.map_err(|e| Error::Setup { what: "find this program", reason: e.to_string() })?;
    let roots_file = roots_file.map(std::path::absolute).transpose();
    let roots_file =
        roots_file.map_err(|e| Error::Setup { what: "find the roots file", reason: e.to_string() })?;
    let start = Start {
        program: &program,
        roots: roots_file.as_deref(),
        files: &files,
        defaults: &defaults,
        more: &args.agent_options,
    };
    for file in start.unit() {
        written(&file)?;
    }
    if manages {
        tell("Starting berth.service");
        service::start().await?;
    } else {
        tell("Start the agent with:");
        tell(&format!("  {}", start.command()));
        if !args.wait {
            return Ok(());
        }
    }
    tell(&format!("Waiting until node {} is Ready", roots.node_name));
    wait::ready(roots, &files, Duration::from_secs(args.timeout)).await?;
    tell(&format!("Node {} is Ready", roots.node_name));
    Ok(())
}

/// Writes what the agent bootstraps with.
fn write(files: &Files, cluster: &DiscoveredCluster, token: &Token) -> Result<(), Error> {
    let ca = String::from_utf8_lossy(&cluster.ca).into_owned();
    let is_there = std::fs::read(&files.ca).is_ok_and(|there| there == cluster.ca);
    if !is_there && files.ca.exists() {
        let reason = "it is there, beside its key, and is of another cluster".to_owned();
        return Err(Error::File { what: "write", path: files.ca.clone(), reason });
    }
    written(&NewFile { path: files.ca.clone(), text: ca, mode: 0o644 })?;
    let text = with_token(cluster, &token.reveal());
    written(&NewFile { path: files.bootstrap.clone(), text, mode: 0o600 })
}

fn written(file: &NewFile) -> Result<(), Error> {
    file.write()?;
    tell(&format!("  wrote {}", file.path.display()));
    Ok(())
}

/// The settings of the cluster, with the options before them.
async fn settings(files: &Files, args: &JoinArgs) -> Defaults {
    let source = Source { kubeconfig: files.bootstrap.clone(), context: None };
    let mut settings = match Pool::new(source).await {
        Ok(pool) => {
            let (settings, problems) = defaults::read(&pool).await;
            for problem in problems {
                tell(&format!("  {problem}"));
            }
            settings
        }
        Err(error) => {
            tell(&format!("  the cluster's settings are not known: {}", Chain(&error)));
            Defaults::default()
        }
    };
    if !args.cluster_dns.is_empty() {
        settings.cluster_dns = args.cluster_dns.iter().map(ToString::to_string).collect();
    }
    if let Some(domain) = &args.cluster_domain {
        settings.cluster_domain.clone_from(domain);
    }
    if !args.service_cidrs.is_empty() {
        settings.service_cidrs.clone_from(&args.service_cidrs);
    }
    if settings.cluster_dns.is_empty() {
        tell(
            "  the cluster says no address of its DNS: give --cluster-dns IP, or pods use the node's resolvers",
        );
    }
    settings
}

/// What is there of an earlier join, one line each.
fn present(there: &[PathBuf], files: &Files) -> String {
    let what = |path: &PathBuf| {
        let meaning = match path {
            _ if *path == files.bootstrap => "the bootstrap token",
            _ if *path == files.kubeconfig => "the node's kubeconfig",
            _ if *path == files.ca => "the cluster's CA",
            _ if *path == files.options => "options of the agent",
            _ if *path == files.unit => "the unit of systemd",
            _ => "a certificate or key",
        };
        format!("  {}: {meaning}", path.display())
    };
    there.iter().map(what).collect::<Vec<_>>().join("\n")
}

/// A server as `host:port`.
fn server(text: &str) -> Result<String, String> {
    let text = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
    let wrong = || "must be HOST:PORT, such as 192.0.2.1:6443".to_owned();
    if text.is_empty() || text.contains(['/', '@', ' ', '?', '#']) {
        return Err(wrong());
    }
    // An IPv6 address without brackets has no port.
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(if address.is_ipv6() { format!("[{address}]:6443") } else { format!("{address}:6443") });
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        Some(_) => Err(wrong()),
        None => Ok(format!("{text}:6443")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::ids::NodeName;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: JoinArgs,
    }

    fn parse(arguments: &[&str]) -> Result<JoinArgs, clap::Error> {
        Command::try_parse_from([&["join"], arguments].concat()).map(|command| command.args)
    }

    const TOKEN: &str = "--token=abcdef.0123456789abcdef";

    #[test]
    fn servers_have_a_port() {
        for (text, want) in [
            ("192.0.2.1", "192.0.2.1:6443"),
            ("192.0.2.1:443", "192.0.2.1:443"),
            ("https://a.example/", "a.example:6443"),
            ("a.example:8443", "a.example:8443"),
            ("2001:db8::1", "[2001:db8::1]:6443"),
            ("[2001:db8::1]", "[2001:db8::1]:6443"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443"),
        ] {
            assert_eq!(server(text).unwrap(), want);
        }
        for bad in ["", ":6443", "a:b", "a/b", "user@a", "a b"] {
            assert!(server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_ca_is_pinned_or_is_said_not_to_be() {
        assert!(parse(&["a", TOKEN]).is_err());
        assert!(parse(&["a", TOKEN, "--unsafe-skip-ca-verification"]).is_ok());
        let pin = format!("--ca-hash=sha256:{}", "00".repeat(32));
        assert!(parse(&["a", TOKEN, &pin]).is_ok());
        assert!(parse(&["a", TOKEN, &pin, "--unsafe-skip-ca-verification"]).is_err());
        assert!(parse(&["a", "--token=x", &pin]).is_err());
    }

    #[test]
    fn a_second_join_says_what_is_there_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::below(&dir.path().join("node"), NodeName::new("n1").unwrap(), "c");
        let etc = dir.path().join("etc");
        let files = Files::below(&etc, &roots);
        NewFile { path: files.bootstrap.clone(), text: "kept".into(), mode: 0o600 }.write().unwrap();
        let etc = format!("--etc={}", etc.display());
        let args = parse(&["192.0.2.1", TOKEN, "--unsafe-skip-ca-verification", &etc]).unwrap();
        let error = join(&roots, None, &args).unwrap_err().to_string();
        assert!(error.contains("bootstrap-kubelet.conf: the bootstrap token"), "{error}");
        assert_eq!(std::fs::read_to_string(&files.bootstrap).unwrap(), "kept");
    }
}
