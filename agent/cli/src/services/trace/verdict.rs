//! The verdict of a trace: one word and its reason.

use super::{Egress, End, QueryClient, page::Page};
use crate::services::family::MapFamily;
use berth_ebpf_abi::{Set, Tuple, backend};
use berth_ebpf_decide::{
    Choice, DropReason, RejectReason, Verdict,
    flow::{self, Dropped, Forwarding},
    is_host,
};
use berth_ebpf_tables::socket;

impl<A: MapFamily> Page<'_, A> {
    /// One word and its reason.
    pub(super) fn verdict(&self) -> (&'static str, String) {
        match &self.traced.end {
            End::Socket(verdict, egress) => {
                let at_socket = self.at_socket(verdict);
                egress.as_ref().map_or(at_socket.clone(), |egress| leaving(at_socket, egress))
            }
            End::Packet { sent, verdict, to, .. } => self.for_packet(sent, verdict, to),
        }
    }

    fn at_socket(&self, verdict: &Verdict<A>) -> (&'static str, String) {
        match verdict {
            Verdict::Pass => ("passes", "no Service is meant, the address stays as it is".to_owned()),
            Verdict::To(Choice { backend: chosen, service, set, .. }) => {
                let at = socket(chosen.addr, chosen.port);
                let pod = self.names.behind(at, chosen.flags & backend::HOST_NETWORK != 0);
                let pod = pod.map(|pod| format!(" ({pod})")).unwrap_or_default();
                let drawn = match self.drawn(*set) {
                    Some(0 | 1) => String::new(),
                    Some(count) => format!(", each time one of {count} at random"),
                    None => ", with which this client stays".to_owned(),
                };
                let set = match set {
                    Set::Cluster => "cluster",
                    Set::Local => "local",
                };
                let service = self.names.service_port(A::V6, *service);
                ("backend", format!("{at}{pod}, of the {set} set of {service}{drawn}"))
            }
            Verdict::Reject(why) => {
                let why = match why {
                    RejectReason::NoEndpoints => "the Service has no endpoint",
                    RejectReason::UnknownPort => "the address is a Service's, the port is not",
                };
                // With datagrams the device answers a pod's packet; connect() has sent none and succeeds.
                let how = if self.query.udp && !self.is_host() { "port unreachable" } else { "ECONNREFUSED" };
                ("refused", format!("{how}, for {why}"))
            }
            Verdict::Drop(why) => self.dropped_call(why),
        }
    }

    /// Whether the client is the node itself.
    fn is_host(&self) -> bool {
        matches!(self.query.client, QueryClient::Socket { client: Some((_, c)), .. } if is_host(c.flags))
    }

    /// A call by the node itself is refused where a pod's call passes and its packets are dropped.
    fn dropped_call(&self, why: &DropReason) -> (&'static str, String) {
        let why = match why {
            DropReason::NoSuchService => "the address lies in a Service range and is no Service's",
            DropReason::Policy => "the traffic policy leaves this client no endpoint",
            DropReason::Unsettled => "the tables changed in two readings in a row",
        };
        if self.is_host() {
            ("refused", format!("EHOSTUNREACH, for {why}"))
        } else {
            ("dropped", why.to_owned())
        }
    }

    fn for_packet(
        &self,
        sent: &Tuple<A>,
        verdict: &flow::PacketVerdict,
        to: &Tuple<A>,
    ) -> (&'static str, String) {
        match verdict {
            flow::PacketVerdict::Pass => {
                ("passes", "no Service is meant, the packet stays as it is".to_owned())
            }
            flow::PacketVerdict::Forward(pod) => {
                let pod = format!("straight to {} by device {}", self.with_pod(sent.dst.ip()), pod.ifindex);
                ("passes", pod)
            }
            flow::PacketVerdict::Reject => {
                ("refused", "port unreachable: the port is no Service's, or it has no endpoint".to_owned())
            }
            flow::PacketVerdict::Drop(why) => {
                let why = match why {
                    Dropped::Service => {
                        "no Service has this address, or its traffic policy leaves no endpoint"
                    }
                    Dropped::Fragment => "a fragment without its first one",
                    Dropped::Ports => "no port is left to masquerade with",
                    Dropped::Address => "the node has no address to masquerade with",
                    Dropped::Leak => "a Service's address must not leave the node",
                    Dropped::Full => "all connections of its class are in use",
                    Dropped::Forged => "a pod's packet under an address that is not its own",
                };
                ("dropped", why.to_owned())
            }
            flow::PacketVerdict::Translate(via) => {
                let at = socket(to.dst, to.dst_port);
                let pod = self.names.pod(at.ip()).map(|pod| format!(" ({pod})")).unwrap_or_default();
                let masked = to.src != sent.src || to.src_port != sent.src_port;
                let from =
                    if masked { format!(", as from {}", socket(to.src, to.src_port)) } else { String::new() };
                let via = match via {
                    Forwarding::Pod(pod) => format!("straight into the pod by device {}", pod.ifindex),
                    Forwarding::Neighbour(0) => "out as the routes say".to_owned(),
                    Forwarding::Neighbour(ifindex) => format!("out by device {ifindex}"),
                    Forwarding::Stack => "routed by the stack".to_owned(),
                };
                ("backend", format!("{at}{pod}{from}, {via}"))
            }
        }
    }
}

/// The verdict where the socket hook passes the call: the egress program of the device decides.
fn leaving((_, why): (&'static str, String), egress: &Egress) -> (&'static str, String) {
    let device = &egress.device;
    match (egress.hooked, egress.drops) {
        (true, true) => (
            "dropped",
            format!(
                "{why}; at the socket it goes on, and the program at device {device} drops it: a Service's address must not leave the node"
            ),
        ),
        _ => ("passes", format!("{why}; it goes by device {device}")),
    }
}
