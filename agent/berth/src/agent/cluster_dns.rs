//! Cluster DNS in the agent: starts and watches the helper.

use crate::dns::DEFAULT_DOMAIN;
use berth_api::view::Health;
use berth_core::roots::Roots;
use berth_dns::Client;
use berth_node::cgroup::CgroupTree;
use std::{
    convert::Infallible,
    ffi::OsString,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{net::UdpSocket, time::timeout};

/// Deadline for the helper's answer about its own zone.
const ANSWER: Duration = Duration::from_secs(1);

/// The helper that serves cluster DNS, as the agent starts it.
#[derive(Debug)]
pub(crate) struct ClusterDns {
    client: Client,
    exe: PathBuf,
    output: PathBuf,
    args: Vec<OsString>,
    domain: String,
    cgroups: CgroupTree,
}

impl ClusterDns {
    /// The helper for these addresses; `None` without addresses.
    pub(crate) fn new(
        roots: &Roots,
        roots_file: &Path,
        exe: &Path,
        cgroups: &CgroupTree,
        addresses: &[IpAddr],
        domain: Option<&str>,
    ) -> Option<ClusterDns> {
        if addresses.is_empty() {
            return None;
        }
        let mut args: Vec<OsString> = vec!["dns".into(), "--roots".into(), roots_file.into()];
        for address in addresses {
            args.extend(["--address".into(), address.to_string().into()]);
        }
        let domain = domain.unwrap_or(DEFAULT_DOMAIN);
        args.extend(["--cluster-domain".into(), domain.into()]);
        Some(ClusterDns {
            client: Client::new(roots.dns_socket()),
            exe: exe.into(),
            output: roots.dns_output(),
            args,
            domain: domain.to_owned(),
            cgroups: cgroups.clone(),
        })
    }

    /// The health check for the status page.
    pub(crate) fn health_check(&self) -> DnsHealth {
        DnsHealth { client: self.client.clone(), domain: self.domain.clone() }
    }

    /// Runs for ever: starts the helper when its socket does not answer.
    pub(crate) async fn supervise(&self) -> Infallible {
        let spawn = async || -> Result<(), berth_helper::Error> {
            let pid = berth_helper::spawn_detached(&self.output, &self.exe, &self.args)?;
            if let Err(error) = self.cgroups.join_helper("dns", pid) {
                tracing::warn!(%error, "cluster DNS runs outside its cgroup");
            }
            Ok(())
        };
        berth_helper::supervise(&self.client, spawn).await
    }
}

/// Health check of cluster DNS.
#[derive(Debug, Clone)]
pub(crate) struct DnsHealth {
    client: Client,
    domain: String,
}

impl DnsHealth {
    /// Asks the helper for its status, and then each of its addresses for a name, as the node's
    /// processes do: only that shows whether packets arrive.
    pub(crate) async fn check(&self) -> Health {
        let status = match self.client.status().await {
            Ok(status) => status,
            Err(error) => return Health::bad(format!("not answering: {error}")),
        };
        for address in &status.addresses {
            if let Err(error) = ask(*address, &self.domain).await {
                return Health::bad(format!("not answering at {address}: {error}"));
            }
        }
        match status.zone_error {
            Some(error) => Health::bad(format!("its newest names are not in use: {error}")),
            None => Health::good(format!(
                "{}, process {}, {} Services",
                status.version, status.pid, status.services
            )),
        }
    }
}

/// Asks an address for the domain by UDP. Any answer is a success.
async fn ask(address: IpAddr, domain: &str) -> io::Result<()> {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect((address, 53)).await?;
    let mut answer = [0; 512];
    let asked = async {
        socket.send(&question(domain)).await?;
        socket.recv(&mut answer).await
    };
    match timeout(ANSWER, asked).await {
        Ok(done) => done.map(drop),
        Err(_elapsed) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {ANSWER:?}"))),
    }
}

/// A DNS message that asks for the SOA of a domain (RFC 1035, 4.1).
fn question(domain: &str) -> Vec<u8> {
    const HEADER: [u8; 12] = [0xbe, 0x47, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    const SOA_IN: [u8; 4] = [0, 6, 0, 1];
    let mut message = HEADER.to_vec();
    for label in domain.split('.').filter(|label| !label.is_empty()) {
        let label = label.as_bytes().get(..63).unwrap_or(label.as_bytes());
        message.push(u8::try_from(label.len()).unwrap_or(0));
        message.extend(label);
    }
    message.push(0);
    message.extend(SOA_IN);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_a_header_labels_and_a_type() {
        let made = question("cluster.local.");
        assert_eq!(made.len(), 12 + 8 + 6 + 1 + 4);
        assert_eq!(made.get(12..), Some(&b"\x07cluster\x05local\x00\x00\x06\x00\x01"[..]));
    }

    #[tokio::test]
    async fn an_address_without_a_server_is_an_error() {
        // No process listens on port 53 of this loopback address.
        let error = ask(IpAddr::from([127, 9, 8, 7]), "cluster.local").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
