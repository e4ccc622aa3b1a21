//! What the node knows of an object that a pod names.

use std::fmt;

/// What a source knows of an object. Only a source that has asked can say that an object does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<T> {
    /// The object.
    Known(T),
    /// The object does not exist.
    Absent,
    /// The object may exist. A pod that names it waits, also where the reference is optional.
    Unknown(Why),
}

impl<T> Value<T> {
    /// The part of a known object that `part` finds; absent where it finds none.
    pub fn and_then<U>(self, part: impl FnOnce(T) -> Option<U>) -> Value<U> {
        match self {
            Value::Known(object) => part(object).map_or(Value::Absent, Value::Known),
            Value::Absent => Value::Absent,
            Value::Unknown(why) => Value::Unknown(why),
        }
    }

    /// Why the object is unknown; `None` where it is known or absent.
    pub fn why(self) -> Option<Why> {
        match self {
            Value::Unknown(why) => Some(why),
            Value::Known(_) | Value::Absent => None,
        }
    }
}

/// Why an object is unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The source has not asked for the object yet, or has no answer yet.
    NotAsked,
    /// The object is not yet as the pod needs it, which others see to, and what is missing.
    Pending(String),
    /// The source's server refuses the object to this node, with its text. A pod that needs the object shows that as an
    /// error, and tries again.
    Refused(String),
    /// The source's server did not answer, with the error.
    Unreachable(String),
}

impl Why {
    /// Whether the server has answered and refuses the object, so that to wait without a word helps nobody.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Why::Refused(_))
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::NotAsked => f.write_str("not read yet"),
            Why::Pending(text) => f.write_str(text),
            Why::Refused(text) => write!(f, "refused: {text}"),
            Why::Unreachable(text) => write!(f, "unreachable: {text}"),
        }
    }
}
