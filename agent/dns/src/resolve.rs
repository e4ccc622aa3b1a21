//! From a question to an answer of the zone, or to what must be asked elsewhere. Pure but for the order of addresses.

use crate::{
    index::{Found, Index, TTL},
    question::Answer,
};
use hickory_proto::{
    op::ResponseCode,
    rr::{Name, RData, Record, RecordType, rdata::CNAME},
};
use rand::seq::SliceRandom as _;

/// Names that stand for others are followed this often.
const ALIASES: usize = 8;

/// What a question leads to.
#[derive(Debug)]
pub enum Step {
    /// The answer.
    Done(Answer),
    /// Ask the node's upstreams for this name and put these records before what they say.
    Forward {
        /// Aliases of the zone that led there.
        aliases: Vec<Record>,
        /// The name to ask for.
        name: Name,
    },
}

/// Answers from the zone. Records bear the question's own cases.
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
                // Clients take the first: everyone has a turn.
                answers.shuffle(&mut rand::rng());
                let authorities = if answers.is_empty() { vec![negative(index)] } else { Vec::new() };
                aliases.extend(answers.into_iter().map(|data| record(&name, data)));
                let additionals = additionals.iter().map(|(name, data)| record(name, data.clone())).collect();
                return Step::Done(Answer { authorities, additionals, ..of_zone(aliases) });
            }
            Found::Alias(target) => {
                aliases.push(record(&name, RData::CNAME(CNAME(target.clone()))));
                // Asked for itself, an alias is the answer; asked for all, it is all there is.
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
