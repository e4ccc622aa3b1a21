//! Model of the API server: after any faults of requests the consumer's set equals the server's, and no
//! object of the server is removed from the set.

use super::*;
use berth_harness::rng::{self, Rng};
use std::collections::BTreeMap;

/// The server: its objects, and the events since the oldest remembered version.
#[derive(Default)]
struct Server {
    version: u64,
    /// Uid, version and number by name.
    objects: BTreeMap<String, (u64, u64, u64)>,
    events: Vec<(u64, Vec<u8>)>,
    /// Events up to this version are forgotten.
    forgotten: u64,
    /// Snapshots of lists in pages.
    pages: BTreeMap<String, (u64, Vec<Value>)>,
}

impl Server {
    fn change(&mut self, rng: &mut Rng) {
        self.version += 1;
        let (name, version) = (format!("o{}", rng.below(12)), self.version);
        let there = self.objects.get(&name).copied();
        let (kind, state) = match there {
            Some((uid, _, number)) if rng.below(3) == 0 => {
                self.objects.remove(&name);
                ("DELETED", (uid, version, number))
            }
            Some((uid, ..)) => ("MODIFIED", (uid, version, rng.below(100))),
            None => ("ADDED", (version, version, rng.below(100))),
        };
        if kind != "DELETED" {
            self.objects.insert(name.clone(), state);
        }
        self.events.push((version, line(kind, &shown(&name, state))));
    }

    fn all(&self) -> Vec<Value> {
        self.objects.iter().map(|(name, state)| shown(name, *state)).collect()
    }

    /// The expected final set of a consumer: UID and number by name.
    fn state(&self) -> BTreeMap<String, (String, u64)> {
        self.objects
            .iter()
            .map(|(name, (uid, _, number))| (name.clone(), (uid.to_string(), *number)))
            .collect()
    }
}

fn shown(name: &str, (uid, version, number): (u64, u64, u64)) -> Value {
    let mut object = object(name, version, number);
    object["metadata"]["uid"] = json!(uid.to_string());
    object
}

fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// Applies changes. A removal outside of a complete list must be of an object that the server removed.
fn apply(store: &mut Store<u64>, changes: Vec<Change<u64>>, server: &Server) {
    for change in changes {
        for effect in store.apply(change) {
            if let Effect::Removed(meta, _) = effect {
                let there = server.objects.get(&*meta.name);
                assert!(
                    there.is_none_or(|(uid, version, _)| {
                        uid.to_string() != *meta.uid || version.to_string() != *meta.resource_version.as_str()
                    }),
                    "{meta:?} is removed, and the server has it"
                );
            }
        }
    }
}

/// One answer of the server, complete or broken off; with all kinds of faults if `faults`.
fn exchange(
    machine: &mut ListWatch,
    store: &mut Store<u64>,
    server: &mut Server,
    streams: &mut bool,
    now: &mut Duration,
    rng: &mut Rng,
    faults: bool,
) {
    let step = machine.next(*now, rng.draw(), *streams);
    let fault = if faults { rng.below(14) } else { 99 };
    let query = match &step {
        Step::Wait(until) => {
            *now = *until;
            return;
        }
        Step::List { query } | Step::Watch { query, .. } => query.clone(),
    };
    assert_ne!(parameter(&query, "resourceVersion"), Some("0"));
    match fault {
        0 => return machine.ended(End::Disconnected("cut".into()), *now),
        1 => return machine.ended(End::Failed("reset".into()), *now),
        2 => {
            return machine
                .ended(End::Refused(refusal([400, 403, 422, 429, 500, 503][rng.below(6) as usize])), *now);
        }
        3 => return machine.ended(End::Refused(refusal(410)), *now),
        4 => return machine.ended(End::PageTooLarge, *now),
        _ => {}
    }
    if matches!(step, Step::List { .. }) {
        let (version, mut left) = match parameter(&query, "continue") {
            Some(token) => match server.pages.remove(token) {
                Some(snapshot) => snapshot,
                None => return machine.ended(End::Refused(refusal(410)), *now),
            },
            None => (server.version, server.all()),
        };
        let rest = left.split_off(left.len().min(1 + rng.below(5) as usize));
        let token = (!rest.is_empty()).then(|| format!("t{}", rng.draw()));
        let mut body = page(&left, version, token.as_deref());
        if let Some(token) = &token {
            server.pages.insert(token.clone(), (version, rest));
        }
        if fault == 5 {
            body.truncate(rng.below(body.len() as u64) as usize);
        }
        let changes = machine.page(&Numbers, &body, *now);
        apply(store, changes, server);
        return;
    }
    machine.answered(*now);
    let mut sent = 0;
    let mut lines = Vec::new();
    let initial = parameter(&query, "sendInitialEvents").is_some();
    if initial {
        assert_eq!(parameter(&query, "resourceVersion"), Some(""));
        sent = server.version;
        lines.extend(server.all().iter().map(|object| line("ADDED", object)));
        if rng.below(2) == 0 && faults {
            // Changes while the list is being sent come before its end.
            server.change(rng);
            lines.extend(server.events.last().map(|(_, line)| line.clone()));
            sent = server.version;
        }
        lines.push(bookmark(sent, true));
    } else if let Some(from) = parameter(&query, "resourceVersion") {
        sent = from.parse().unwrap();
        if sent < server.forgotten {
            let status = json!({"kind": "Status", "reason": "Expired", "code": 410});
            lines.push(line("ERROR", &status));
        }
    }
    let faulty = faults && rng.below(2) == 0;
    for _ in 0..3 {
        lines.extend(
            server.events.iter().filter(|(version, _)| *version > sent).map(|(_, line)| line.clone()),
        );
        sent = server.version.max(sent);
        if rng.below(3) == 0 {
            lines.push(bookmark(sent, false));
        }
        if faulty
            && rng.below(4) == 0
            && let Some(last) = lines.last_mut()
        {
            last.truncate(1 + rng.below(last.len() as u64 - 1) as usize);
        }
        for line in std::mem::take(&mut lines) {
            let changes = machine.line(&Numbers, &line, *now);
            apply(store, changes, server);
            if faulty && rng.below(10) == 0 && machine.is_open() {
                return machine.ended(End::Disconnected("cut".into()), *now);
            }
        }
        if !machine.is_open() {
            break;
        }
        *now += Duration::from_millis(rng.below(70_000));
        if faults {
            server.change(rng);
        }
    }
    if machine.take_refusal_of_streaming() {
        *streams = false;
    }
    if machine.is_open() {
        machine.ended(End::Closed, *now);
    }
}

#[test]
fn the_set_becomes_the_servers_after_any_history() {
    let count = std::env::var("BERTH_MUTATIONS").map_or(1_000, |n| n.parse().unwrap());
    for number in 0..count {
        let mut rng = Rng::new(rng::seed().rotate_left(32) ^ number);
        let mut server = Server { version: 100, ..Server::default() };
        let (mut store, mut now) = (Store::default(), Duration::ZERO);
        let mut streams = rng.below(2) == 0;
        let options = if rng.below(2) == 0 { Options::set() } else { Options::single() };
        let mut machine = ListWatch::new(options);
        for _ in 0..rng.below(60) {
            for _ in 0..rng.below(4) {
                server.change(&mut rng);
            }
            if rng.below(6) == 0 {
                server.forgotten = server.version;
                server.events.clear();
                server.pages.clear();
            }
            exchange(&mut machine, &mut store, &mut server, &mut streams, &mut now, &mut rng, true);
        }
        // The server changes nothing, and all requests succeed.
        for _ in 0..40 {
            exchange(&mut machine, &mut store, &mut server, &mut streams, &mut now, &mut rng, false);
        }
        let seen: BTreeMap<String, (String, u64)> =
            store.iter().map(|(m, n)| (m.name.to_string(), (m.uid.to_string(), *n))).collect();
        assert_eq!(seen, server.state(), "history {number} of seed {}", rng::seed());
        assert_eq!((store.listed(), store.len()), (true, seen.len()), "history {number}");
        assert_eq!(machine.behind(), None, "history {number}");
    }
}
