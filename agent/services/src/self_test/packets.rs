//! The packets of the self-test: the first of a connection from outside, and its answer, over the programs of uplinks.

use super::sockets::Server;
use berth_ebpf_loader::{DeviceRole, PacketProgram, Pins, Place, device_link};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

/// The client outside: addresses for documentation (RFC 5737, RFC 3849), which no host has. The same port each time, so that
/// all runs are one connection to the tables.
const CLIENT4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const CLIENT_PORT: u16 = 10256;

/// `TCX_NEXT`: the packet goes on to the stack.
const NEXT: u32 = u32::MAX;

const SYN: u8 = 1 << 1;
const ACK: u8 = 1 << 4;

const ETHERNET: usize = 14;
/// Offsets of addresses and length of the header, by family.
const V4: Layout = Layout { source: 12, address: 4, length: 20 };
const V6: Layout = Layout { source: 8, address: 16, length: 40 };

/// Where a header has its addresses.
#[derive(Debug, Clone, Copy)]
struct Layout {
    source: usize,
    address: usize,
    length: usize,
}

/// A packet that did not get its translation, at which place, and why.
#[derive(Debug, thiserror::Error)]
#[error("{what} is not translated (by {program}): {why}")]
pub(super) struct Failure {
    what: &'static str,
    program: &'static str,
    why: String,
}

/// Runs the programs of uplinks on a connection's first packet to the Service and on its answer.
pub(super) fn test(pins: &Pins, server: &Server) -> Result<(), Failure> {
    let client: SocketAddr = match server.frontend_address() {
        IpAddr::V4(_) => (CLIENT4, CLIENT_PORT).into(),
        IpAddr::V6(_) => (CLIENT6, CLIENT_PORT).into(),
    };
    let backend = SocketAddr::new(server.address(), server.tcp_port());
    let what = "a packet from outside";
    run(pins, Place::Uplink, what, (client, server.frontend()), SYN, (client, backend))?;
    let what = "an answer to outside";
    run(pins, Place::Out, what, (backend, client), SYN | ACK, (server.frontend(), client))
}

/// A packet's two ends: source and destination.
type Ends = (SocketAddr, SocketAddr);

fn run(
    pins: &Pins,
    place: Place,
    what: &'static str,
    ends: Ends,
    flags: u8,
    wanted: Ends,
) -> Result<(), Failure> {
    let program = place.program();
    let failed = |why: String| Failure { what, program, why };
    let ran = PacketProgram::open(pins, program).and_then(|opened| opened.run(&frame(ends, flags)));
    let answer = ran.map_err(|error| failed(berth_core::error::Chain(&error).to_string()))?;
    if answer.value != NEXT {
        return Err(failed(format!("the verdict is {}", answer.value)));
    }
    match ends_of(&answer.packet) {
        Some(got) if got == wanted => Ok(()),
        Some((from, to)) => {
            Err(failed(format!("it goes from {from} to {to}, not from {} to {}", wanted.0, wanted.1)))
        }
        None => Err(failed("the packet is cut".to_owned())),
    }
}

/// A TCP segment without data in an Ethernet frame. Nobody looks at its checksums.
fn frame((from, to): Ends, flags: u8) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET - 2];
    match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00]);
            frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (source, destination) => {
            frame.extend([0x86, 0xdd]);
            frame.extend([0x60, 0, 0, 0, 0, 20, 6, 64]);
            frame.extend(six(source).octets());
            frame.extend(six(destination).octets());
        }
    }
    frame.extend(from.port().to_be_bytes());
    frame.extend(to.port().to_be_bytes());
    // Numbers of the bytes sent and received, header length, flags, window, checksum, urgent pointer.
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

fn six(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(four) => four.to_ipv6_mapped(),
        IpAddr::V6(six) => six,
    }
}

/// The two ends of a frame that [`frame`] made, after its translation.
fn ends_of(frame: &[u8]) -> Option<Ends> {
    let v6 = frame.get(ETHERNET - 2..ETHERNET)? == [0x86, 0xdd];
    let Layout { source, address, length } = if v6 { V6 } else { V4 };
    let end = |number: usize| {
        let at = ETHERNET + source + number * address;
        let bytes = frame.get(at..at + address)?;
        let ip = match <[u8; 4]>::try_from(bytes) {
            Ok(four) => IpAddr::from(four),
            Err(_longer) => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        };
        let at = ETHERNET + length + number * 2;
        let port = <[u8; 2]>::try_from(frame.get(at..at + 2)?).ok()?;
        Some(SocketAddr::new(ip, u16::from_be_bytes(port)))
    };
    Some((end(0)?, end(1)?))
}

/// The uplinks that do not run the programs, one line each.
pub(super) fn devices(pins: &Pins, uplinks: &[(u32, Arc<str>)]) -> Vec<String> {
    let mut missing = Vec::new();
    for place in DeviceRole::Uplink.places() {
        // A program that is missing has failed its test.
        let Ok(program) = PacketProgram::open(pins, place.program()) else { continue };
        for (index, name) in uplinks {
            let why = match device_link(pins, *index, place) {
                Ok(Some(link)) if link.live && link.program == program.id() => continue,
                Ok(Some(link)) if link.live => "it runs another program".to_owned(),
                Ok(_) => "it runs none".to_owned(),
                Err(error) => berth_core::error::Chain(&error).to_string(),
            };
            missing.push(format!("device {name} does not run {}: {why}", place.program()));
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_the_ends_that_it_was_made_with() {
        for (from, to) in [("192.0.2.1:7", "192.0.0.8:10256"), ("[2001:db8::1]:7", "[100:0:0:1::8]:10256")] {
            let ends: Ends = (from.parse().unwrap(), to.parse().unwrap());
            let made = frame(ends, SYN);
            assert_eq!(ends_of(&made), Some(ends));
            assert_eq!(ends_of(&made[..made.len() - 18]), None, "its ports are cut off");
        }
    }
}
