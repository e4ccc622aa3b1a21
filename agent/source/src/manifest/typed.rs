//! A generic value as one of Kubernetes' API types, without a field getting lost silently.

use super::decode::Lenient;
use crate::convert::field::{FieldError, FieldPath};
use k8s_openapi::serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Decodes a value as a type of the API; an unknown field is an error.
pub(super) fn strict<T: DeserializeOwned + Serialize>(
    at: &FieldPath<'_>,
    value: &Value,
) -> Result<T, FieldError> {
    let (object, unknown) = typed(at, value)?;
    unknown.into_iter().next().map_or(Ok(object), Err)
}

/// Decodes a value as a type of the API and finds the fields that the type does not know. The generated types
/// skip unknown fields silently, so they are found as those missing when the decoded value is encoded again.
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

/// Collects the fields of `given` that `kept` lacks. `null` means "not given" everywhere in the API.
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
