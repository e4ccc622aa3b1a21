//! The upstreams in the node's resolv.conf. Pure.

use nix::net::if_::if_nametoindex;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// The most upstreams.
const UPSTREAMS: usize = 8;

/// The port of DNS.
pub const PORT: u16 = 53;

/// Reads `nameserver` lines, in order. This server's own addresses are left out, because they would
/// make it ask itself. Other lines and malformed addresses are ignored, as in the C library.
pub fn upstreams(text: &str, own: &[IpAddr]) -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let Some(address) = words.next().and_then(address) else { continue };
        if !own.contains(&address.ip().to_canonical())
            && !address.ip().is_unspecified()
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found.truncate(UPSTREAMS);
    found
}

/// An address; for IPv6 possibly with its interface: `fe80::1%eth0`.
fn address(text: &str) -> Option<SocketAddr> {
    let Some((ip, link)) = text.split_once('%') else {
        return text.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, PORT));
    };
    let index = if_nametoindex(link).or_else(|_no_such| link.parse()).ok()?;
    Some(SocketAddr::V6(SocketAddrV6::new(ip.parse().ok()?, PORT, 0, index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_read_in_order_without_this_server() {
        let text = "# nameserver 9.9.9.9\nsearch a b\nnameserver 10.96.0.10\n nameserver\t192.0.2.1  # first\n\
                    nameserver 2001:db8::1\nnameserver nonsense\nnameserver\nnameserver 192.0.2.1\n\
                    nameserver ::ffff:10.96.0.10\nnameserver 0.0.0.0\nnameserver fe80::1%lo\nnameservers 1.1.1.1\n";
        let own = ["10.96.0.10".parse().unwrap()];
        let found: Vec<String> = upstreams(text, &own).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%1]:53"]);
        assert!(upstreams("", &own).is_empty());
    }
}
