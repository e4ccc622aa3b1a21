//! Frames written from scratch, with every checksum computed over all its bytes. A packet that the kernel's
//! program has changed must equal such a frame.

use berth_ebpf_abi::{Tuple, V4, V6};
use berth_ebpf_decide::{
    Family,
    flow::{Part, TCP, UDP, reverse},
};

/// Hardware address of the loopback device, on which test runs take place. The node does not own packets to
/// other addresses.
pub(crate) const OURS: [u8; 6] = [0; 6];
pub(crate) const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Headers of a family.
pub(crate) trait Net: Family {
    const ETHERTYPE: u16;
    const ICMP: u8;
    /// An address of one of the test's networks.
    fn make(net: u8, host: u8) -> Self;
    fn bytes(self) -> Vec<u8>;
    /// The network header with its extensions up to the transport header.
    fn header(ip: &Ip<Self>, payload: usize) -> Vec<u8>;
    /// Bytes of the pseudo header for a transport checksum. ICMP has a pseudo header in IPv6 only.
    fn pseudo(src: Self, dst: Self, proto: u8, len: usize) -> Vec<u8>;
    /// Length of the network header that an ICMP error quotes.
    fn quoted_header() -> usize;
}

/// Fields of a network header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ip<A> {
    pub(crate) src: A,
    pub(crate) dst: A,
    pub(crate) proto: u8,
    pub(crate) ttl: u8,
    /// Identification, whether more fragments follow, and the offset.
    pub(crate) fragment: Option<(u16, bool, u16)>,
}

impl Net for V4 {
    const ETHERTYPE: u16 = 0x0800;
    const ICMP: u8 = 1;

    fn make(net: u8, host: u8) -> V4 {
        u32::from_ne_bytes([10, net, 0, host])
    }

    fn bytes(self) -> Vec<u8> {
        self.to_ne_bytes().to_vec()
    }

    fn header(ip: &Ip<V4>, payload: usize) -> Vec<u8> {
        let total = u16::try_from(20 + payload).unwrap();
        let (id, place) = match ip.fragment {
            Some((id, more, offset)) => (id, u16::from(more) << 13 | offset >> 3),
            None => (0x1234, 0x4000),
        };
        let mut header = vec![0x45, 0];
        header.extend(total.to_be_bytes());
        header.extend(id.to_be_bytes());
        header.extend(place.to_be_bytes());
        header.extend([ip.ttl, ip.proto, 0, 0]);
        header.extend(ip.src.bytes());
        header.extend(ip.dst.bytes());
        let check = checksum(&header);
        header[10..12].copy_from_slice(&check);
        header
    }

    fn pseudo(src: V4, dst: V4, proto: u8, len: usize) -> Vec<u8> {
        if proto == Self::ICMP {
            return Vec::new();
        }
        let mut bytes = src.bytes();
        bytes.extend(dst.bytes());
        bytes.extend([0, proto]);
        bytes.extend(u16::try_from(len).unwrap().to_be_bytes());
        bytes
    }

    fn quoted_header() -> usize {
        20
    }
}

impl Net for V6 {
    const ETHERTYPE: u16 = 0x86dd;
    const ICMP: u8 = 58;

    fn make(net: u8, host: u8) -> V6 {
        let first = u32::from_ne_bytes([0xfd, 0, 0, net]);
        [first, 0, 0, u32::from_ne_bytes([0, 0, 0, host])]
    }

    fn bytes(self) -> Vec<u8> {
        self.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn header(ip: &Ip<V6>, payload: usize) -> Vec<u8> {
        let extension = if ip.fragment.is_some() { 8 } else { 0 };
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(u16::try_from(payload + extension).unwrap().to_be_bytes());
        header.extend([if ip.fragment.is_some() { 44 } else { ip.proto }, ip.ttl]);
        header.extend(ip.src.bytes());
        header.extend(ip.dst.bytes());
        if let Some((id, more, offset)) = ip.fragment {
            header.extend([ip.proto, 0]);
            header.extend((offset | u16::from(more)).to_be_bytes());
            header.extend([0, 0]);
            header.extend(id.to_be_bytes());
        }
        header
    }

    fn pseudo(src: V6, dst: V6, proto: u8, len: usize) -> Vec<u8> {
        let mut bytes = src.bytes();
        bytes.extend(dst.bytes());
        bytes.extend(u32::try_from(len).unwrap().to_be_bytes());
        bytes.extend([0, 0, 0, proto]);
        bytes
    }

    fn quoted_header() -> usize {
        40
    }
}

/// Description of a test packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spec<A> {
    /// Tuple that a parser finds; for an ICMP error the reverse of the quoted tuple.
    pub(crate) tuple: Tuple<A>,
    /// Source and destination of an error's own header.
    pub(crate) outer: Option<(A, A)>,
    pub(crate) tcp_flags: u8,
    pub(crate) part: Part,
    pub(crate) ttl: u8,
    /// Whether the UDP datagram has no checksum.
    pub(crate) unchecked: bool,
    /// Ports of the whole datagram, which a later fragment does not contain.
    pub(crate) ports: (u16, u16),
    pub(crate) macs: ([u8; 6], [u8; 6]),
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

/// Offset of a datagram's second fragment.
const FIRST: usize = 32;

fn transport<A: Net>(spec: &Spec<A>) -> Vec<u8> {
    let (src_port, dst_port) = spec.ports;
    let mut bytes = Vec::new();
    let at = match spec.tuple.proto {
        TCP => {
            bytes.extend(src_port.to_ne_bytes());
            bytes.extend(dst_port.to_ne_bytes());
            bytes.extend([1, 2, 3, 4, 5, 6, 7, 8, 0x50, spec.tcp_flags, 1, 0, 0, 0, 0, 0]);
            16
        }
        UDP => {
            bytes.extend(src_port.to_ne_bytes());
            bytes.extend(dst_port.to_ne_bytes());
            bytes.extend(49_u16.to_be_bytes());
            bytes.extend([0, 0]);
            6
        }
        _ => {
            bytes.extend([if A::ICMP == 1 { 8 } else { 128 }, 0, 0, 0, 0, 7, 0, 1]);
            2
        }
    };
    bytes.extend((0..41).map(|i: u8| i.wrapping_mul(37)));
    if !spec.unchecked {
        let mut all = A::pseudo(spec.tuple.src, spec.tuple.dst, spec.tuple.proto, bytes.len());
        all.extend(&bytes);
        let mut check = checksum(&all);
        if spec.tuple.proto == UDP && check == [0, 0] {
            check = [255, 255];
        }
        bytes[at..at + 2].copy_from_slice(&check);
    }
    bytes
}

fn ethernet<A: Net>(macs: ([u8; 6], [u8; 6])) -> Vec<u8> {
    let mut frame = macs.0.to_vec();
    frame.extend(macs.1);
    frame.extend(A::ETHERTYPE.to_be_bytes());
    frame
}

/// The packet as a frame.
pub(crate) fn frame<A: Net>(spec: &Spec<A>) -> Vec<u8> {
    let mut ip = Ip {
        src: spec.tuple.src,
        dst: spec.tuple.dst,
        proto: spec.tuple.proto,
        ttl: spec.ttl,
        fragment: None,
    };
    let body = match spec.part {
        Part::Whole => transport(spec),
        Part::First(id) => {
            ip.fragment = Some((id_of::<A>(id), true, 0));
            transport(spec)[..FIRST].to_vec()
        }
        Part::Later(id) => {
            ip.fragment = Some((id_of::<A>(id), false, u16::try_from(FIRST).unwrap()));
            transport(spec)[FIRST..].to_vec()
        }
        Part::Error => {
            let quoted = reverse(&spec.tuple);
            let (src, dst) = spec.outer.unwrap();
            (ip.src, ip.dst, ip.proto) = (src, dst, A::ICMP);
            let kind = if A::ICMP == 1 { [3, 4] } else { [2, 0] };
            let mut message = vec![kind[0], kind[1], 0, 0, 0, 0, 5, 0];
            let inner = Ip { src: quoted.src, dst: quoted.dst, proto: quoted.proto, ttl: 9, fragment: None };
            message.extend(A::header(&inner, 1000));
            message.extend(quoted.src_port.to_ne_bytes());
            message.extend(quoted.dst_port.to_ne_bytes());
            message.extend([9, 9, 9, 9]);
            with_checksum::<A>(src, dst, message)
        }
    };
    let mut frame = ethernet::<A>(spec.macs);
    frame.extend(A::header(&ip, body.len()));
    frame.extend(body);
    frame
}

/// The parser's identification in the form of the header.
fn id_of<A: Net>(id: u32) -> u16 {
    if A::ICMP == 1 {
        u16::from_be(u16::try_from(id).unwrap())
    } else {
        u16::try_from(u32::from_be(id)).unwrap()
    }
}

fn with_checksum<A: Net>(src: A, dst: A, mut message: Vec<u8>) -> Vec<u8> {
    let mut all = A::pseudo(src, dst, A::ICMP, message.len());
    all.extend(&message);
    let check = checksum(&all);
    message[2..4].copy_from_slice(&check);
    message
}

/// The ICMP error "port unreachable" about a frame, addressed to its sender.
pub(crate) fn refusal<A: Net>(spec: &Spec<A>) -> Vec<u8> {
    let original = frame(spec);
    let kind = if A::ICMP == 1 { [3, 3] } else { [1, 4] };
    let mut message = vec![kind[0], kind[1], 0, 0, 0, 0, 0, 0];
    message.extend(&original[14..14 + A::quoted_header() + 8]);
    let (src, dst) = (spec.tuple.dst, spec.tuple.src);
    let message = with_checksum::<A>(src, dst, message);
    // The error's IPv4 header has neither an identification nor "do not fragment".
    let fragment = (A::ICMP == 1).then_some((0, false, 0));
    let ip = Ip { src, dst, proto: A::ICMP, ttl: 64, fragment };
    let mut answer = ethernet::<A>((spec.macs.1, spec.macs.0));
    answer.extend(A::header(&ip, message.len()));
    answer.extend(message);
    answer
}

/// Whether two frames are equal, where a checksum of zero has two forms (RFC 1624).
pub(crate) fn same<A: Net>(spec: &Spec<A>, got: &[u8], want: &[u8]) -> bool {
    if got == want {
        return true;
    }
    let network =
        A::header(&Ip { src: spec.tuple.src, dst: spec.tuple.dst, proto: 0, ttl: 0, fragment: None }, 0)
            .len();
    let mut places = vec![14 + network + 2, 14 + network + 16];
    if A::ICMP == 1 {
        places.extend([14 + 10, 14 + network + 8 + 10]);
    }
    let neutral = |frame: &[u8]| {
        let mut frame = frame.to_vec();
        for place in &places {
            if let Some(field) = frame.get_mut(*place..*place + 2)
                && field == [255, 255]
            {
                field.copy_from_slice(&[0, 0]);
            }
        }
        frame
    };
    neutral(got) == neutral(want)
}
