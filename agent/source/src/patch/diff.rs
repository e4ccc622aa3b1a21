//! The difference of two objects as a strategic merge patch.
//!
//! An absent member, `null`, `""`, `[]` and `{}` are the same value here: the API server leaves such members out, or
//! writes an empty value where nothing was sent.

use super::fields::{Field, Fields};
use serde_json::{Map, Value, json};

/// The patch that makes `old` equal to `new` in these fields. Members beside the fields are not looked at.
pub(super) fn members(
    old: &Map<String, Value>,
    new: &Map<String, Value>,
    fields: Fields,
) -> Map<String, Value> {
    let mut patch = Map::new();
    for (name, field) in fields {
        let (old, new) = (member(old, name), member(new, name));
        match *field {
            Field::Whole => {
                if !same(old, new) {
                    patch.insert((*name).to_owned(), value(new));
                }
            }
            Field::Map => {
                if let Some(change) = map(old, new) {
                    patch.insert((*name).to_owned(), change);
                }
            }
            Field::Members(fields) => match (old, new) {
                (Value::Object(old), Value::Object(new)) if !old.is_empty() && !new.is_empty() => {
                    let change = members(old, new, fields);
                    if !change.is_empty() {
                        patch.insert((*name).to_owned(), change.into());
                    }
                }
                _ if same(old, new) => {}
                _ => drop(patch.insert((*name).to_owned(), value(new))),
            },
            Field::Replaced => {
                if !same(old, new) {
                    patch.insert((*name).to_owned(), replaced(new));
                }
            }
            Field::List { key, members, ordered } => {
                list(&mut patch, name, (old, new), (key, members, ordered))
            }
        }
    }
    patch
}

/// The change from `old` to `new`, where both are maps whose members are all the node's.
fn map(old: &Value, new: &Value) -> Option<Value> {
    if same(old, new) {
        return None;
    }
    let (Value::Object(from), Value::Object(to)) = (old, new) else { return Some(value(new)) };
    if from.is_empty() || to.is_empty() {
        return Some(value(new));
    }
    let mut patch = Map::new();
    for name in from.keys().chain(to.keys().filter(|name| !from.contains_key(*name))) {
        if let Some(change) = map(member(from, name), member(to, name)) {
            patch.insert(name.clone(), change);
        }
    }
    Some(patch.into())
}

/// The change of a list with a merge key.
fn list(
    patch: &mut Map<String, Value>,
    name: &str,
    (old, new): (&Value, &Value),
    (key, members_of, ordered): (&str, Fields, bool),
) {
    let (old, new) = (elements(old, key), elements(new, key));
    let of = |list: &[(&str, &Map<String, Value>)], wanted: &str| {
        list.iter().find(|(at, _)| *at == wanted).map(|(_, element)| (*element).clone())
    };
    let mut changes: Vec<Value> = Vec::new();
    for (at, element) in &new {
        match of(&old, at) {
            None => changes.push((*element).clone().into()),
            Some(before) => {
                let mut change = members(&before, element, members_of);
                if !change.is_empty() {
                    change.insert(key.to_owned(), (*at).into());
                    changes.push(change.into());
                }
            }
        }
    }
    for (at, _) in old.iter().filter(|(at, _)| of(&new, at).is_none()) {
        changes.push(json!({ key: at, "$patch": "delete" }));
    }
    let moved = ordered && !old.iter().map(|(at, _)| at).eq(new.iter().map(|(at, _)| at));
    if changes.is_empty() && !moved {
        return;
    }
    if !old.is_empty() && !new.is_empty() {
        let order: Vec<Value> = new.iter().map(|(at, _)| json!({ key: at })).collect();
        patch.insert(format!("$setElementOrder/{name}"), order.into());
    }
    if !changes.is_empty() {
        patch.insert(name.to_owned(), changes.into());
    }
}

/// The elements of a list by key, each key once. Anything else has no place in such a list.
fn elements<'a>(list: &'a Value, key: &str) -> Vec<(&'a str, &'a Map<String, Value>)> {
    let mut found: Vec<(&str, &Map<String, Value>)> = Vec::new();
    for element in list.as_array().into_iter().flatten().filter_map(Value::as_object) {
        if let Some(at) = element.get(key).and_then(Value::as_str)
            && found.iter().all(|(other, _)| *other != at)
        {
            found.push((at, element));
        }
    }
    found
}

/// The member, `null` where there is none.
pub(super) fn member<'a>(of: &'a Map<String, Value>, name: &str) -> &'a Value {
    of.get(name).unwrap_or(&Value::Null)
}

/// The list as it is sent where it replaces the old one.
fn replaced(new: &Value) -> Value {
    match new {
        Value::Array(list) if !list.is_empty() => {
            let mut list = list.clone();
            list.push(json!({ "$patch": "replace" }));
            list.into()
        }
        _ => Value::Null,
    }
}

/// The value as it is sent: `null` clears the field.
fn value(new: &Value) -> Value {
    if is_empty(new) { Value::Null } else { new.clone() }
}

/// Whether the API server shows both values as the same.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.iter().all(|(name, value)| same(value, member(b, name)))
                && b.iter().all(|(name, value)| a.contains_key(name) || is_empty(value))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        _ => a == b || (is_empty(a) && is_empty(b)),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}
