//! A trace as text and JSON: the steps with what each means, and the verdict.

use super::{End, Query, QueryClient, Traced};
use crate::{
    services::{family::MapFamily, names::Names, ports::Protocol},
    table::{Table, plain},
};
use berth_ebpf_abi::backend;
use berth_ebpf_decide::{
    Verdict,
    flow::{self, PacketHook},
};
use berth_ebpf_tables::socket;
use serde_json::{Value, json};
use std::net::IpAddr;

/// A step: map, key, entry found, meaning.
pub(super) type Row = [String; 4];

/// The facts of the page.
pub(crate) struct Page<'t, A> {
    pub(crate) names: &'t Names,
    pub(crate) query: &'t Query<A>,
    pub(crate) traced: &'t Traced<A>,
}

impl<A: MapFamily> Page<'_, A> {
    /// The page as text.
    pub(crate) fn text(&self) -> String {
        let mut table = Table::new(&["MAP", "KEY", "FOUND", "MEANS"]);
        self.rows().into_iter().for_each(|row| table.row(row.into()));
        let (outcome, why) = self.verdict();
        let head = format!("{} -> {}", self.source(), self.destination());
        format!("{}\n\n{}\n{outcome}: {}\n", plain(&head), table.take(), plain(&why))
    }

    /// The page as JSON.
    pub(crate) fn json(&self) -> Value {
        let step =
            |[map, key, found, means]: Row| json!({ "map": map, "key": key, "found": found, "means": means });
        let (outcome, why) = self.verdict();
        let mut verdict = json!({ "outcome": outcome, "message": why });
        if let (Some(fields), Some(Value::Object(more))) = (verdict.as_object_mut(), self.target()) {
            fields.extend(more);
        }
        json!({
            "apiVersion": "berth/v1", "kind": "ServiceTrace",
            "source": self.source(), "destination": self.destination(),
            "decidedAt": match self.traced.end { End::Socket(..) => "socket", End::Packet { .. } => "packet" },
            "steps": self.rows().into_iter().map(step).collect::<Vec<_>>(),
            "verdict": verdict,
        })
    }

    /// The fields of the verdict that say where the connection goes.
    fn target(&self) -> Option<Value> {
        Some(match &self.traced.end {
            End::Socket(Verdict::To(choice), _) => json!({
                "backend": socket(choice.backend.addr, choice.backend.port).to_string(),
                "pod": self.names.behind(
                    socket(choice.backend.addr, choice.backend.port),
                    choice.backend.flags & backend::HOST_NETWORK != 0,
                ),
                "service": self.names.service_port(A::V6, choice.service),
            }),
            End::Packet { verdict: flow::PacketVerdict::Translate(_), to, .. } => json!({
                "backend": socket(to.dst, to.dst_port).to_string(),
                "pod": self.names.pod(to.dst.ip()),
                "source": socket(to.src, to.src_port).to_string(),
            }),
            _ => return None,
        })
    }

    /// An address with the pod that has it.
    pub(super) fn with_pod(&self, ip: IpAddr) -> String {
        self.names.pod(ip).map_or_else(|| ip.to_string(), |pod| format!("{ip} ({pod})"))
    }

    fn source(&self) -> String {
        match (self.query.client, &self.traced.end) {
            (_, End::Packet { sent, hook, .. }) => {
                let at = socket(sent.src, sent.src_port);
                match (self.names.pod(at.ip()), hook) {
                    (Some(pod), _) => format!("{at} ({pod})"),
                    (None, PacketHook::Uplink) => format!("{at} (outside)"),
                    (None, _) => at.to_string(),
                }
            }
            (QueryClient::Socket { addr, .. }, _) if addr == A::ANY => "node".to_owned(),
            (QueryClient::Socket { addr, .. } | QueryClient::Outside { addr, .. }, _) => {
                self.with_pod(addr.ip())
            }
        }
    }

    fn destination(&self) -> String {
        let proto = if self.query.udp { flow::UDP } else { flow::TCP };
        format!("{}/{}", socket(self.query.dst, self.query.dst_port.to_be()), Protocol(proto))
    }
}
