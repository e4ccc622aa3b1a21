//! Parsing of questions and encoding of answers. Pure.

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Record, RecordType},
    serialize::binary::{BinDecodable as _, BinDecoder, BinEncodable as _, BinEncoder},
};

/// The longest answer by UDP in bytes, even if the client accepts more: this size passes every path
/// unfragmented (DNS flag day 2020).
pub const UDP_MAX: u16 = 1232;

/// The longest answer by UDP in bytes to a client without EDNS (RFC 1035 4.2.1).
const UDP_PLAIN: u16 = 512;

/// Length of a DNS header in bytes.
const HEADER: usize = 12;

/// Transport of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// A question that can be answered.
#[derive(Debug, Clone)]
pub struct Question {
    id: u16,
    op_code: OpCode,
    recursion_desired: bool,
    /// Name, type and class, in the case of the client.
    pub query: Query,
    /// The client disabled validation (CD).
    pub checking_disabled: bool,
    /// The client asked for DNSSEC signatures (DO).
    pub dnssec: bool,
    edns: bool,
    limit: u16,
}

/// Result of parsing a message.
#[derive(Debug)]
pub enum Parsed {
    /// A question.
    Question(Question),
    /// The question is refused with this reply.
    Refused(Vec<u8>),
    /// The message must not be answered: it is itself an answer, or not DNS.
    Ignored,
}

/// The parts of an answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The response code.
    pub code: ResponseCode,
    /// The answer comes from the zone (AA).
    pub authoritative: bool,
    /// The upstream validated the answer (AD).
    pub authentic: bool,
    /// The answer section.
    pub answers: Vec<Record>,
    /// The authority section: the SOA record of negative answers.
    pub authorities: Vec<Record>,
    /// The additional section, left out if it does not fit.
    pub additionals: Vec<Record>,
    /// The upstream's answer was truncated (TC). A client by UDP gets TC as well.
    pub truncated: bool,
}

impl Answer {
    /// An answer with only a response code.
    pub fn code(code: ResponseCode) -> Answer {
        Answer { code, ..Answer::default() }
    }
}

/// Parses a message.
pub fn read(bytes: &[u8], transport: Transport) -> Parsed {
    let Some([high, low, flags, ..]) = bytes.get(..HEADER) else { return Parsed::Ignored };
    // An answer is ignored: two servers could otherwise answer each other for ever.
    if flags & 0x80 != 0 {
        return Parsed::Ignored;
    }
    let id = u16::from_be_bytes([*high, *low]);
    let op_code = OpCode::from_u8((flags >> 3) & 0x0f);
    let refused = |code| {
        let mut message = Message::error_msg(id, op_code, code);
        // RFC 1035 4.1.1: copied into the answer.
        message.metadata.recursion_desired = flags & 1 != 0;
        message.to_vec().map_or(Parsed::Ignored, Parsed::Refused)
    };
    // The sections of a dynamic update have another meaning.
    if op_code != OpCode::Query {
        return refused(ResponseCode::NotImp);
    }
    let mut decoder = BinDecoder::new(bytes);
    let Ok(mut message) = Message::read(&mut decoder) else { return refused(ResponseCode::FormErr) };
    let (Some(query), true) = (message.queries.pop(), message.queries.is_empty()) else {
        return refused(ResponseCode::FormErr);
    };
    let edns = message.edns.as_ref();
    let limit = match (transport, edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(UDP_PLAIN, UDP_MAX),
        (Transport::Udp, None) => UDP_PLAIN,
    };
    let question = Question {
        id,
        op_code,
        recursion_desired: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        dnssec: edns.is_some_and(|e| e.flags().dnssec_ok),
        edns: edns.is_some(),
        limit,
        query,
    };
    let refused = |code| question.write(&Answer::code(code)).map_or(Parsed::Ignored, Parsed::Refused);
    if edns.is_some_and(|e| e.version() > 0) {
        return refused(ResponseCode::BADVERS);
    }
    if question.query.query_class() != DNSClass::IN {
        return refused(ResponseCode::Refused);
    }
    if matches!(question.query.query_type(), RecordType::AXFR | RecordType::IXFR) {
        return refused(ResponseCode::Refused);
    }
    Parsed::Question(question)
}

impl Question {
    /// Encodes an answer, truncated to the size that the client accepts. None if it cannot be
    /// encoded.
    pub fn write(&self, answer: &Answer) -> Option<Vec<u8>> {
        let mut message = Message::response(self.id, self.op_code);
        let meta = &mut message.metadata;
        meta.message_type = MessageType::Response;
        meta.recursion_desired = self.recursion_desired;
        meta.recursion_available = true;
        meta.checking_disabled = self.checking_disabled;
        meta.authoritative = answer.authoritative;
        meta.authentic_data = answer.authentic;
        meta.response_code = answer.code;
        meta.truncation = answer.truncated && self.limit < u16::MAX;
        message.queries.push(self.query.clone());
        message.answers.clone_from(&answer.answers);
        message.authorities.clone_from(&answer.authorities);
        message.additionals.clone_from(&answer.additionals);
        if self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_MAX).set_version(0).set_dnssec_ok(self.dnssec);
            message.edns = Some(edns);
        }
        // The additional section is dropped first, because it is optional.
        if let Some(whole) = encode(&message, self.limit) {
            return Some(whole);
        }
        message.additionals.clear();
        if let Some(whole) = encode(&message, self.limit) {
            return Some(whole);
        }
        message.metadata.truncation = true;
        message.authorities.clear();
        loop {
            if let Some(part) = encode(&message, self.limit) {
                return Some(part);
            }
            let fewer = message.answers.len().checked_sub(1)?;
            // A record takes at least 10 bytes besides its name, so few rounds are needed.
            message.answers.truncate(fewer.min(usize::from(self.limit) / 12));
        }
    }
}

/// Encodes the message, if it fits.
fn encode(message: &Message, limit: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    message.emit(&mut encoder).ok()?;
    let cut = bytes.get(2).is_some_and(|flags| flags & 0x02 != 0);
    (message.metadata.truncation || !cut).then_some(bytes).filter(|bytes| {
        // If the truncation bit was set here, only the counts show whether the encoder left records
        // out.
        let count = |at: usize| bytes.get(at..at + 2).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])));
        count(6) == Some(message.answers.len())
            && count(10) == Some(message.additionals.len() + usize::from(message.edns.is_some()))
    })
}
