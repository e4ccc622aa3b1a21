//! Resolution of a question: an answer from the zone, or a name to be forwarded. Pure, except for
//! the random order of addresses.

use crate::{
    index::{Found, Index, TTL},
    question::Answer,
};
use hickory_proto::{
    op::ResponseCode,
    rr::{Name, RData, Record, RecordType, rdata::CNAME},
};
use rand::seq::SliceRandom as _;

/// The longest chain of aliases.
const ALIASES: usize = 8;

/// Result of a resolution.
#[derive(Debug)]
pub enum Step {
    /// The answer.
    Done(Answer),
    /// The node's upstreams are to be asked for this name; these records precede their answer.
    Forward {
        /// Aliases in the zone that led to the name.
        aliases: Vec<Record>,
        /// The name to ask for.
        name: Name,
    },
}

/// Resolves a name in the zone. Records have the case of the question.
pub fn resolve(index: &Index, name: &Name, kind: RecordType) -> Step {
    let mut aliases = Vec::new();
    let mut name = name.clone();
    loop {
        match index.find(&name, kind) {
            Found::Outside => return Step::Forward { aliases, name },
            Found::NoName => {
                let authorities = vec![negative(index)];
                let code = ResponseCode::NXDomain;
                return Step::Done(Answer { authorities, code, ..of_zone(aliases) });
            }
            Found::Records { mut answers, additionals } => {
                // The order is random, because clients take the first address.
                answers.shuffle(&mut rand::rng());
                let authorities = if answers.is_empty() { vec![negative(index)] } else { Vec::new() };
                aliases.extend(answers.into_iter().map(|data| record(&name, data)));
                let additionals = additionals.iter().map(|(name, data)| record(name, data.clone())).collect();
                return Step::Done(Answer { authorities, additionals, ..of_zone(aliases) });
            }
            Found::Alias(target) => {
                aliases.push(record(&name, RData::CNAME(CNAME(target.clone()))));
                // For a question of type CNAME or ANY, the alias itself is the answer.
                if matches!(kind, RecordType::CNAME | RecordType::ANY) {
                    return Step::Done(of_zone(aliases));
                }
                if aliases.len() >= ALIASES {
                    return Step::Done(Answer::code(ResponseCode::ServFail));
                }
                name = target;
            }
        }
    }
}

fn of_zone(answers: Vec<Record>) -> Answer {
    Answer { authoritative: true, answers, ..Answer::default() }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

fn negative(index: &Index) -> Record {
    record(index.domain(), index.soa())
}
