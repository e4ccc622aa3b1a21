//! Cluster DNS: the helper's role, and how the agent starts it.

use crate::services;
use anyhow::Context as _;
use berth_core::roots::Roots;
use berth_dns::{
    Client,
    server::{Config, run as serve},
};
use berth_node::cgroup::CgroupTree;
use clap::Args;
use std::{
    convert::Infallible,
    ffi::OsString,
    net::IpAddr,
    path::{Path, PathBuf},
};

/// Options of `berth dns`.
#[derive(Debug, Args)]
pub(crate) struct DnsArgs {
    /// Serve at this address, which the loopback device is made to bear.
    #[arg(long = "address", value_name = "IP", required = true)]
    addresses: Vec<IpAddr>,
    /// The cluster's DNS domain, until a zone says it.
    #[arg(long, value_name = "DOMAIN", default_value = services::DOMAIN)]
    cluster_domain: String,
}

/// Serves until told to end.
pub(crate) fn run(roots: Roots, args: DnsArgs) -> anyhow::Result<()> {
    crate::log_to_stderr();
    serve(Config::new(roots, args.addresses, args.cluster_domain)).context("dns").map(drop)
}

/// What the agent keeps running; nothing where there are no addresses to serve.
#[derive(Debug)]
pub(crate) struct Dns {
    client: Client,
    exe: PathBuf,
    output: PathBuf,
    args: Vec<OsString>,
    cgroups: CgroupTree,
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Dns(#[from] berth_dns::Error),
    #[error(transparent)]
    Spawn(#[from] berth_logd::Error),
}

impl Dns {
    /// For these addresses.
    pub(crate) fn new(
        roots: &Roots,
        roots_file: &Path,
        exe: &Path,
        cgroups: &CgroupTree,
        addresses: &[IpAddr],
        domain: Option<&str>,
    ) -> Option<Dns> {
        if addresses.is_empty() {
            return None;
        }
        let mut args: Vec<OsString> = vec!["dns".into(), "--roots".into(), roots_file.into()];
        for address in addresses {
            args.extend(["--address".into(), address.to_string().into()]);
        }
        args.extend(["--cluster-domain".into(), domain.unwrap_or(services::DOMAIN).into()]);
        Some(Dns {
            client: Client::new(roots.dns_socket()),
            exe: exe.into(),
            output: roots.runtime_state.join("dns.out"),
            args,
            cgroups: cgroups.clone(),
        })
    }

    /// Runs for ever: starts the helper when its socket is silent.
    pub(crate) async fn supervise(&self) -> Infallible {
        let spawn = async || -> Result<(), StartError> {
            let pid = berth_logd::spawn_detached_to(&self.output, &self.exe, &self.args)?;
            if let Err(error) = self.cgroups.join_helper("dns", pid) {
                tracing::warn!(%error, "cluster DNS runs outside its cgroup");
            }
            Ok(())
        };
        berth_dns::client::supervise(&self.client, spawn).await
    }
}
