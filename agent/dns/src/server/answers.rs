//! Answers to questions: from the zone, from the cache, or from the upstreams.

use super::{
    Server,
    pending::{self, Role},
};
use crate::{
    cache::{Cache, Key},
    index::Index,
    question::{self, Answer, Parsed, Question, Transport},
    resolve::{Step, resolve},
};
use berth_api::dns::{Counts, Status};
use berth_core::{shares::Slot, sync::lock};
use hickory_proto::{
    op::ResponseCode,
    rr::{Name, Record, RecordType},
};
use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Pause between two log lines about a forwarding loop.
const LOOP_LOG_PAUSE: Duration = Duration::from_secs(60);

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Action for a message.
pub(super) enum Action {
    Nothing,
    Reply(Vec<u8>),
    Forward(Box<Forward>),
}

/// A question for the upstreams.
pub(super) struct Forward {
    question: Question,
    aliases: Vec<Record>,
    /// The name in the case of the client.
    name: Name,
    key: Key,
    _slot: Slot,
}

impl Server {
    pub(super) fn index(&self) -> Option<Arc<Index>> {
        lock(&self.zone).index.clone()
    }

    pub(super) fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        lock(&self.cache)
    }

    pub(super) fn status(&self) -> Status {
        let index = self.index();
        let error = lock(&self.zone).error.clone();
        let c = &self.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            addresses: self.cfg.addresses.clone(),
            serial: index.as_ref().map(|i| i.serial()),
            services: index.as_ref().map_or(0, |i| i.services()),
            zone_error: error,
            upstreams: self.upstreams.servers(),
            cached: self.cache().len(),
            counts: Counts {
                udp: load(&c.udp),
                tcp: load(&c.tcp),
                zone: load(&c.zone),
                cache: load(&c.cache),
                upstream: load(&c.upstream),
                failed: load(&c.failed),
                refused: load(&c.refused),
            },
        }
    }

    /// Handles a message: answers at once where possible.
    pub(super) fn handle(&self, bytes: &[u8], transport: Transport, client: IpAddr) -> Action {
        count(if transport == Transport::Udp { &self.counters.udp } else { &self.counters.tcp });
        let question = match question::read(bytes, transport) {
            Parsed::Question(question) => question,
            Parsed::Refused(reply) => {
                count(&self.counters.refused);
                return Action::Reply(reply);
            }
            Parsed::Ignored => {
                count(&self.counters.refused);
                return Action::Nothing;
            }
        };
        let (name, kind) = (question.query.name(), question.query.query_type());
        let step = match self.index() {
            Some(index) => resolve(&index, name, kind),
            None if self.domain.zone_of(name) => {
                count(&self.counters.failed);
                return reply(&question, &Answer::code(ResponseCode::ServFail));
            }
            None => Step::Forward { aliases: Vec::new(), name: name.clone() },
        };
        match step {
            Step::Done(answer) => {
                count(&self.counters.zone);
                reply(&question, &answer)
            }
            Step::Forward { .. } if kind == RecordType::ANY => {
                count(&self.counters.refused);
                reply(&question, &Answer::code(ResponseCode::Refused))
            }
            Step::Forward { aliases, name } => self.forward(question, aliases, name, client),
        }
    }

    fn forward(&self, question: Question, aliases: Vec<Record>, name: Name, client: IpAddr) -> Action {
        let key = Key {
            // The case belongs to the client; the answers are the same.
            name: name.to_lowercase(),
            kind: question.query.query_type(),
            dnssec: question.dnssec,
            checking_disabled: question.checking_disabled,
        };
        if let Some(message) = self.cache().get(&key, Instant::now()) {
            count(&self.counters.cache);
            return reply(&question, &forwarded(message, &name, aliases));
        }
        let leads_back = self.pending.is_ours(&key, &name);
        if leads_back {
            self.log_loop(client);
        }
        match self.forwards.take(client).filter(|_| !leads_back) {
            Some(slot) => Action::Forward(Box::new(Forward { question, aliases, name, key, _slot: slot })),
            None => {
                count(&self.counters.failed);
                reply(&question, &Answer::code(ResponseCode::ServFail))
            }
        }
    }

    fn log_loop(&self, from: IpAddr) {
        let mut logged = lock(&self.loop_logged);
        if logged.is_none_or(|at| at.elapsed() > LOOP_LOG_PAUSE) {
            *logged = Some(Instant::now());
            let (upstreams, resolv_conf) = (self.upstreams.servers(), &self.cfg.roots.resolv_conf);
            tracing::error!(
                ?upstreams, %from, resolv_conf = %resolv_conf.display(),
                "cannot resolve names outside of the cluster: an upstream forwards to cluster DNS, which asked it; name \
                 another server in resolv.conf"
            );
        }
    }

    /// Asks the upstreams, or waits for the task that asks them the same question.
    pub(super) async fn finish(&self, forward: Forward) -> Option<Vec<u8>> {
        let Forward { question, aliases, name, key, _slot } = forward;
        let outcome = match self.pending.join(&key) {
            Role::Joined(receiver) => pending::outcome(receiver).await,
            Role::Leader(leader) => {
                let answer = self.upstreams.ask(&key, &leader.sent).await;
                let outcome = answer.map(|(message, wire)| {
                    count(&self.counters.upstream);
                    self.cache().put(key, &message, &wire, Instant::now());
                    Arc::new(message)
                });
                leader.publish(outcome.clone());
                outcome
            }
        };
        let Some(message) = outcome else {
            count(&self.counters.failed);
            return question.write(&Answer::code(ResponseCode::ServFail));
        };
        question.write(&forwarded(Arc::unwrap_or_clone(message), &name, aliases))
    }
}

fn reply(question: &Question, answer: &Answer) -> Action {
    question.write(answer).map_or(Action::Nothing, Action::Reply)
}

/// The upstream's answer after the zone's aliases, in the case of the question.
fn forwarded(message: hickory_proto::op::Message, name: &Name, aliases: Vec<Record>) -> Answer {
    let mut answers = aliases;
    answers.extend(message.answers.into_iter().map(|mut record| {
        if record.name == *name {
            record.name = name.clone();
        }
        record
    }));
    Answer {
        code: message.metadata.response_code,
        authoritative: false,
        authentic: message.metadata.authentic_data,
        truncated: message.metadata.truncation,
        answers,
        authorities: message.authorities,
        additionals: message.additionals,
    }
}
