//! Pods for tests, and seeded mutations of valid JSON documents. Most mutations stay JSON, and many keep the
//! document's shape.

use berth_core::{ids::*, model::*};
use berth_harness::rng::Rng;
use serde_json::{Value, json};
use std::sync::Arc;

/// The number of mutations that a suite makes.
pub(crate) fn mutations() -> usize {
    std::env::var("BERTH_MUTATIONS").ok().and_then(|v| v.parse().ok()).unwrap_or(10_000)
}

fn size(v: &Value) -> usize {
    1 + match v {
        Value::Array(a) => a.iter().map(size).sum(),
        Value::Object(o) => o.values().map(size).sum(),
        _ => 0,
    }
}

/// The n-th value of a document in document order, with the key of the value.
fn nth<'v>(v: &'v mut Value, n: usize, key: &str) -> Option<(&'v mut Value, String)> {
    if n == 0 {
        return Some((v, key.to_owned()));
    }
    let mut n = n - 1;
    let children: Vec<(String, &mut Value)> = match v {
        Value::Array(a) => a.iter_mut().map(|c| (key.to_owned(), c)).collect(),
        Value::Object(o) => o.iter_mut().map(|(k, c)| (k.clone(), c)).collect(),
        _ => Vec::new(),
    };
    for (key, child) in children {
        let s = size(child);
        if n < s {
            return nth(child, n, &key);
        }
        n -= s;
    }
    None
}

/// A value from some document of the corpus that lies under that key.
fn like(rng: &mut Rng, corpus: &[Value], key: &str) -> Option<Value> {
    fn all<'v>(v: &'v Value, key: &str, found: &mut Vec<&'v Value>) {
        match v {
            Value::Object(o) => {
                found.extend(o.get(key));
                o.values().for_each(|c| all(c, key, found));
            }
            Value::Array(a) => a.iter().for_each(|c| all(c, key, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    all(rng.pick(corpus), key, &mut found);
    if found.is_empty() { None } else { Some((*rng.pick(&found)).clone()) }
}

fn odd(rng: &mut Rng) -> Value {
    let odds = [
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(-1),
        json!(999_999_999),
        json!(1_000_000_000),
        json!(u32::MAX),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(1e308),
        json!(""),
        json!("x"),
        json!("../../x"),
        json!("\u{0}"),
        json!("a".repeat(5000)),
        json!([]),
        json!({}),
        json!([[[[[[[[]]]]]]]]),
    ];
    rng.pick(&odds).clone()
}

fn mutate_value(rng: &mut Rng, corpus: &[Value], doc: &mut Value) {
    let n = rng.index(size(doc));
    let Some((v, key)) = nth(doc, n, "") else { return };
    match rng.below(10) {
        0 => *v = odd(rng),
        1..=4 => {
            if let Some(other) = like(rng, corpus, &key) {
                *v = other;
            }
        }
        5..=6 => match v {
            Value::Number(_) => {
                let numbers =
                    [0, 1, 2, 1 << 31, u64::from(u32::MAX), 1 << 62, u64::MAX / 1_000_000_000, u64::MAX];
                *v = json!(*rng.pick(&numbers));
            }
            Value::String(s) => {
                let i = rng.index(s.chars().count());
                *s = s.chars().enumerate().map(|(n, c)| if n == i { 'Z' } else { c }).collect();
            }
            Value::Bool(b) => *b = !*b,
            Value::Array(a) if !a.is_empty() => {
                let copy = rng.pick(a).clone();
                a.insert(rng.index(a.len()), copy);
            }
            Value::Object(o) if !o.is_empty() => {
                let keys: Vec<String> = o.keys().cloned().collect();
                let copy = o[rng.pick(&keys)].clone();
                o.insert(rng.pick(&keys).clone(), copy);
            }
            _ => *v = odd(rng),
        },
        7 => match v {
            Value::Array(a) => drop(a.pop()),
            Value::Object(o) => {
                let keys: Vec<String> = o.keys().cloned().collect();
                if !keys.is_empty() {
                    o.remove(rng.pick(&keys));
                }
            }
            _ => *v = Value::Null,
        },
        8 => {
            if let Value::Object(o) = v {
                o.insert("unheard-of".to_owned(), odd(rng));
            }
        }
        _ => {
            if let Value::Array(a) = v {
                a.reverse();
            }
        }
    }
}

/// A document of the corpus with a mutation.
pub(crate) fn mutate(rng: &mut Rng, corpus: &[Value]) -> Vec<u8> {
    let mut doc = rng.pick(corpus).clone();
    for _ in 0..=rng.below(4) {
        mutate_value(rng, corpus, &mut doc);
    }
    let mut text = serde_json::to_vec(&doc).unwrap();
    if rng.below(8) == 0 {
        for _ in 0..=rng.below(3) {
            if text.is_empty() {
                break;
            }
            let i = rng.index(text.len());
            match rng.below(3) {
                0 => text[i] ^= 1 << rng.below(8),
                1 => text.truncate(i),
                _ => text.insert(i, *rng.pick(b"{}[],:\"\\0-e\xff\x00")),
            }
        }
    }
    text
}

/// A container. With `rich`, the container has every probe and hook.
pub(crate) fn container(name: &str, rich: bool) -> Container {
    let probe = || {
        rich.then_some(Probe {
            action: ProbeAction::Tcp { host: None, port: PortRef::Number(80) },
            initial_delay_seconds: 1,
            timeout_seconds: 1,
            period_seconds: 10,
            success_threshold: 1,
            failure_threshold: 3,
            grace_seconds: Some(5),
        })
    };
    Container {
        liveness: probe(),
        readiness: probe(),
        startup: probe(),
        post_start: rich.then_some(Hook::Sleep(1)),
        pre_stop: rich.then_some(Hook::Sleep(1)),
        ..Container::new(ContainerName::new(name).unwrap(), "img")
    }
}

/// A pod with the UID `u-1`.
pub(crate) fn pod(policy: RestartPolicy, init: Vec<Container>, containers: Vec<Container>) -> Arc<Pod> {
    let key = PodKey { namespace: Namespace::new("default").unwrap(), name: PodName::new("p").unwrap() };
    Arc::new(Pod {
        restart_policy: policy,
        active_deadline_seconds: Some(600),
        init_containers: init,
        containers,
        ..Pod::new(PodUid::new("u-1").unwrap(), key, NodeName::new("n").unwrap())
    })
}
