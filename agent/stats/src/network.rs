//! Counters of network interfaces (`/proc/net/dev`).

/// Counters of an interface since it exists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Name in its namespace.
    pub name: String,
    /// What arrived.
    pub receive: Traffic,
    /// What was sent.
    pub transmit: Traffic,
}

/// Counters of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of all packets, as the device counts them.
    pub bytes: u64,
    /// Packets that passed the device.
    pub packets: u64,
    /// Packets with errors.
    pub errors: u64,
    /// Packets that the kernel dropped.
    pub dropped: u64,
}

/// Beginnings of names of interfaces that carry no traffic of the node itself: the loopback device and the
/// host's ends of pods' links (cAdvisor leaves out the same).
const LEFT_OUT: [&str; 4] = ["lo", "veth", "docker", "nerdctl"];

/// The interfaces in the text of `/proc/net/dev`, without those that cAdvisor leaves out.
pub fn parse(text: &str) -> Vec<Interface> {
    text.lines().filter_map(interface).collect()
}

fn interface(line: &str) -> Option<Interface> {
    let (name, counters) = line.split_once(':')?;
    let name = name.trim();
    if LEFT_OUT.iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    let mut numbers = counters.split_ascii_whitespace().map(|n| n.parse().unwrap_or(0));
    let mut traffic = || {
        let mut next = || numbers.next();
        let traffic = Traffic { bytes: next()?, packets: next()?, errors: next()?, dropped: next()? };
        // fifo, frame or collisions, compressed, multicast or carrier
        for _ in 0..4 {
            next()?;
        }
        Some(traffic)
    };
    Some(Interface { receive: traffic()?, transmit: traffic()?, name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_both_directions() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  \
eth0: 10 2 3 4 5 6 7 8 90 9 1 2 3 4 5 6\nveth12: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n eth1:1 2\n";
        let receive = Traffic { bytes: 10, packets: 2, errors: 3, dropped: 4 };
        let transmit = Traffic { bytes: 90, packets: 9, errors: 1, dropped: 2 };
        assert_eq!(parse(text), [Interface { name: "eth0".to_owned(), receive, transmit }]);
        assert_eq!(parse(""), []);
    }
}
