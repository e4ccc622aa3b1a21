//! The API server's strategic merge (`k8s.io/apimachinery` `pkg/util/strategicpatch`, `mergeMap` and what it calls) for
//! the lists of statuses. Written for this test alone; the recordings of a real API server check it.

use serde_json::{Map, Value};

/// Merge keys by the name of the list; any other list is replaced.
const KEYS: [(&str, &str); 5] = [
    ("conditions", "type"),
    ("podIPs", "ip"),
    ("hostIPs", "ip"),
    ("resourceClaimStatuses", "name"),
    ("addresses", "type"),
];

type Object = Map<String, Value>;

fn key_of(list: &str) -> Option<&'static str> {
    KEYS.iter().find(|(name, _)| *name == list).map(|(_, key)| *key)
}

/// The object that the patch makes of `original`.
///
/// # Errors
/// The text of a patch that the API server refuses.
pub(crate) fn object(mut original: Object, mut patch: Object) -> Result<Object, String> {
    if let Some(directive) = patch.remove("$patch") {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            _ => Err(format!("unknown directive {directive}")),
        };
    }
    let orders: Vec<String> =
        patch.keys().filter(|name| name.starts_with("$setElementOrder/")).cloned().collect();
    for directive in orders {
        let order = array(patch.remove(&directive))?;
        let name = &directive["$setElementOrder/".len()..];
        let key = key_of(name).ok_or(format!("{name} has no merge key"))?;
        let (before, change) = (original.get(name).cloned(), patch.remove(name));
        if let Some(change) = &change {
            in_order(change.as_array().ok_or("not a list")?, &order, key)?;
        }
        let merged = match (&before, change) {
            (Some(before), None) => array(Some(before.clone()))?,
            (None, Some(change)) => array(Some(without_directives(change).unwrap_or_default()))?,
            (Some(before), Some(change)) => list(array(Some(before.clone()))?, array(Some(change))?, key)?,
            (None, None) => continue,
        };
        let before = before.map_or(Ok(Vec::new()), |before| array(Some(before)))?;
        original.insert(name.to_owned(), ordered(merged, &order, &before, key).into());
    }
    for (name, change) in patch {
        let Some(before) = original.get(&name).filter(|_| !change.is_null()).cloned() else {
            original.remove(&name);
            let added = if change.is_null() { None } else { without_directives(without_nulls(change)) };
            if let Some(added) = added {
                original.insert(name, added);
            }
            continue;
        };
        let merged = match (before, change) {
            (Value::Object(before), Value::Object(change)) => Some(object(before, change)?.into()),
            (Value::Array(before), Value::Array(change)) => Some(match key_of(&name) {
                Some(key) => list(before, change, key)?.into(),
                None => change.into(),
            }),
            (_, change) => without_directives(without_nulls(change)),
        };
        match merged {
            Some(merged) => original.insert(name, merged),
            None => original.remove(&name),
        };
    }
    Ok(original)
}

fn list(mut original: Vec<Value>, patch: Vec<Value>, key: &str) -> Result<Vec<Value>, String> {
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    let (mut changes, mut replace) = (Vec::new(), false);
    for change in patch {
        let at = change.get(key).cloned();
        match change.get("$patch").map(Value::as_str) {
            None => changes.push(change),
            Some(Some("replace")) => replace = true,
            Some(Some("delete")) => {
                let at = at.ok_or("a deletion has no merge key")?;
                original.retain(|element| element.get(key) != Some(&at));
            }
            Some(other) => return Err(format!("unknown directive {other:?}")),
        }
    }
    if replace {
        (original, changes) = (changes, Vec::new());
    }
    let mut merged = original.clone();
    for change in &changes {
        let at = change.get(key).ok_or("an element has no merge key")?;
        match merged.iter_mut().find(|element| element.get(key) == Some(at)) {
            Some(element) => {
                *element = object(map(element.clone())?, map(change.clone())?)?.into();
            }
            None => merged.push(change.clone()),
        }
    }
    Ok(ordered(merged, &changes, &original, key))
}

/// The elements that `order` names, in its order, and between them the others, each at its place of `before`.
fn ordered(merged: Vec<Value>, order: &[Value], before: &[Value], key: &str) -> Vec<Value> {
    let index =
        |list: &[Value], element: &Value| list.iter().position(|other| other.get(key) == element.get(key));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|element| index(order, element).is_some());
    named.sort_by_key(|element| index(order, element));
    others.sort_by_key(|element| index(before, element));
    let (mut left, mut right) = (others.into_iter().peekable(), named.into_iter().peekable());
    let mut all = Vec::new();
    loop {
        let first = match (left.peek(), right.peek()) {
            (Some(l), Some(r)) => matches!((index(before, l), index(before, r)), (Some(l), Some(r)) if l < r),
            (Some(_), None) => true,
            (None, _) => false,
        };
        match if first { left.next() } else { right.next() } {
            Some(element) => all.push(element),
            None => return all,
        }
    }
}

/// The elements of a patch have to come in the order that the directive gives.
fn in_order(patch: &[Value], order: &[Value], key: &str) -> Result<(), String> {
    let mut rest = order.iter();
    for change in patch.iter().filter(|change| change.get("$patch").is_none()) {
        if !order.is_empty() && !rest.any(|other| other.get(key) == change.get(key)) {
            return Err(format!("the order in the patch does not match $setElementOrder: {change}"));
        }
    }
    Ok(())
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept: Object =
                map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect();
            kept.into()
        }
        Value::Array(list) => list.into_iter().map(without_nulls).collect::<Vec<_>>().into(),
        other => other,
    }
}

fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key("$patch") => None,
        Value::Object(map) => {
            let kept: Object =
                map.into_iter().filter_map(|(k, v)| without_directives(v).map(|v| (k, v))).collect();
            Some(kept.into())
        }
        Value::Array(list) => {
            Some(list.into_iter().filter_map(without_directives).collect::<Vec<_>>().into())
        }
        other => Some(other),
    }
}

fn array(value: Option<Value>) -> Result<Vec<Value>, String> {
    match value {
        Some(Value::Array(list)) => Ok(list),
        other => Err(format!("not a list: {other:?}")),
    }
}

fn map(value: Value) -> Result<Object, String> {
    match value {
        Value::Object(map) => Ok(map),
        other => Err(format!("not an object: {other}")),
    }
}
