//! Where in an object something stands, and how a generic value becomes one of the API's types without losing a field
//! silently.

use super::decode::Lenient;
use k8s_openapi::serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::fmt;

/// A place in an object. It lives on the stack and costs nothing until something is wrong there.
#[derive(Clone, Copy)]
pub(super) struct FieldPath<'a> {
    parent: Option<&'a FieldPath<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

impl FieldPath<'_> {
    /// The object itself.
    pub(super) const ROOT: FieldPath<'static> = FieldPath { parent: None, step: Step::Root };

    /// A field of it.
    pub(super) fn key<'a>(&'a self, key: &'a str) -> FieldPath<'a> {
        FieldPath { parent: Some(self), step: Step::Key(key) }
    }

    /// An element of it.
    pub(super) fn index(&self, index: usize) -> FieldPath<'_> {
        FieldPath { parent: Some(self), step: Step::Index(index) }
    }

    /// Something is wrong here.
    pub(super) fn error(&self, reason: impl Into<String>) -> FieldError {
        let field = self.to_string();
        FieldError { field: (!field.is_empty()).then_some(field), reason: reason.into() }
    }
}

impl fmt::Display for FieldPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => {
                let top = self.parent.is_none_or(|p| matches!(p.step, Step::Root) && p.parent.is_none());
                let plain = !key.is_empty()
                    && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'$'));
                match (plain, top) {
                    (true, true) => f.write_str(key),
                    (true, false) => write!(f, ".{key}"),
                    (false, _) => write!(f, "[{:?}]", shorten(key)),
                }
            }
        }
    }
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FieldError {
    pub(super) field: Option<String>,
    pub(super) reason: String,
}

impl FieldError {
    /// Something that stands at no field.
    pub(super) fn plain(reason: impl Into<String>) -> FieldError {
        FieldError { field: None, reason: reason.into() }
    }
}

/// Foreign text as it may stand in a message.
pub(super) fn shorten(text: &str) -> String {
    if text.chars().nth(80).is_some() {
        text.chars().take(77).chain("...".chars()).collect()
    } else {
        text.to_owned()
    }
}

/// What a value is, for messages.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The value as a type of the API, and the fields that the type does not know: the generated types pass over them, so
/// they are found as what is missing when the typed value is written again.
pub(super) fn typed<T>(at: &FieldPath<'_>, value: &Value) -> Result<(T, Vec<FieldError>), FieldError>
where
    T: DeserializeOwned + Serialize,
{
    let typed: T = serde_path_to_error::deserialize(Lenient(value)).map_err(|e| {
        let path = e.path().to_string();
        let at = at.to_string();
        let field = match (at.is_empty(), path.as_str()) {
            (true, "." | "?") => String::new(),
            (false, "." | "?") => at,
            (true, path) => path.to_owned(),
            (false, path) if path.starts_with('[') => format!("{at}{path}"),
            (false, path) => format!("{at}.{path}"),
        };
        FieldError {
            field: (!field.is_empty()).then_some(field),
            reason: shorten_reason(&e.inner().to_string()),
        }
    })?;
    let again = serde_json::to_value(&typed).map_err(|e| at.error(e.to_string()))?;
    let mut unknown = Vec::new();
    missing(at, value, &again, &mut unknown);
    Ok((typed, unknown))
}

fn shorten_reason(text: &str) -> String {
    text.chars().take(300).collect()
}

/// The fields of `given` that `kept` lacks. `null` means "not given" everywhere in the API.
fn missing(at: &FieldPath<'_>, given: &Value, kept: &Value, found: &mut Vec<FieldError>) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (key, value) in given {
                match kept.get(key) {
                    Some(kept) => missing(&at.key(key), value, kept, found),
                    None if value.is_null() => {}
                    None => found.push(at.key(key).error("unknown field")),
                }
            }
        }
        (Value::Array(given), Value::Array(kept)) => {
            for (index, (given, kept)) in given.iter().zip(kept).enumerate() {
                missing(&at.index(index), given, kept, found);
            }
        }
        _ => {}
    }
}
