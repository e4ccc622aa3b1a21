//! The path of a field within an object, and an error that names one.

use serde_json::Value;
use std::fmt;

/// Path of a field, like `field.Path` of Kubernetes. It lives on the stack and is written out only in an
/// error.
#[derive(Clone, Copy)]
pub(crate) struct FieldPath<'a> {
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
    /// The path of the whole object.
    pub(crate) const ROOT: FieldPath<'static> = FieldPath { parent: None, step: Step::Root };

    /// The path of a field of this object.
    pub(crate) fn key<'a>(&'a self, key: &'a str) -> FieldPath<'a> {
        FieldPath { parent: Some(self), step: Step::Key(key) }
    }

    /// The path of an element of this list.
    pub(crate) fn index(&self, index: usize) -> FieldPath<'_> {
        FieldPath { parent: Some(self), step: Step::Index(index) }
    }

    /// An error about the value at this path.
    pub(crate) fn error(&self, reason: impl Into<String>) -> FieldError {
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

/// An error about one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldError {
    /// The field's path; `None` for an error about the document as a whole.
    pub(crate) field: Option<String>,
    /// What is wrong with the value, for people.
    pub(crate) reason: String,
}

impl FieldError {
    /// An error about no field in particular.
    pub(crate) fn plain(reason: impl Into<String>) -> FieldError {
        FieldError { field: None, reason: reason.into() }
    }
}

/// Text of a manifest, cut to 80 characters for a message.
pub(crate) fn shorten(text: &str) -> String {
    if text.chars().nth(80).is_some() {
        text.chars().take(77).chain("...".chars()).collect()
    } else {
        text.to_owned()
    }
}

/// The name of a JSON value's type, for messages.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
