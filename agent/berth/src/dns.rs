//! The role `berth dns`: the helper that serves cluster DNS.

use anyhow::Context as _;
use berth_core::roots::Roots;
use berth_dns::server::{Config, run as serve};
use clap::Args;
use std::net::IpAddr;

/// The cluster's DNS domain where no option names one.
pub(crate) const DEFAULT_DOMAIN: &str = "cluster.local";

/// Options of `berth dns`.
#[derive(Debug, Args)]
pub(crate) struct DnsArgs {
    /// Serve at this address, which is added to the loopback device.
    #[arg(long = "address", value_name = "IP", required = true)]
    addresses: Vec<IpAddr>,
    /// The cluster's DNS domain until a zone is published.
    #[arg(long, value_name = "DOMAIN", default_value = DEFAULT_DOMAIN)]
    cluster_domain: String,
}

/// Serves until the agent or a signal ends the helper.
pub(crate) fn run(roots: Roots, args: DnsArgs) -> anyhow::Result<()> {
    crate::logging::to_stderr();
    crate::helper();
    serve(Config::new(roots, args.addresses, args.cluster_domain)).context("dns").map(drop)
}
