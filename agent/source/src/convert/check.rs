//! Formats of names and values that several objects have in common.

use super::field::{FieldError, FieldPath, shorten};
use berth_core::{
    ids::{Namespace, PodName, PodUid},
    quantity::Quantity,
};
use std::{collections::BTreeMap, net::IpAddr};

/// Limit of a file name in bytes (`NAME_MAX`).
const MAX_FILE_NAME: usize = 255;

/// `[-._a-zA-Z0-9]{1,253}`, neither `.` nor starting with `..`: a key of a ConfigMap or Secret, which becomes
/// a file.
pub(crate) fn data_key(at: &FieldPath<'_>, key: &str) -> Result<(), FieldError> {
    let good = !key.is_empty()
        && key.len() <= 253
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        && key != "."
        && !key.starts_with("..");
    if good {
        return Ok(());
    }
    Err(at.error(format!(
        "{:?} is no key: 1 to 253 letters, digits, '-', '_' and '.', not \".\" and not starting with \"..\"",
        shorten(key)
    )))
}

/// A name of an environment variable or a prefix of one: printable ASCII without `=`.
pub(crate) fn env_name(at: &FieldPath<'_>, name: &str) -> Result<(), FieldError> {
    if name.is_empty() {
        return Err(at.error("is required"));
    }
    if name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        return Ok(());
    }
    Err(at.error(format!("{:?} must be printable ASCII characters other than '='", shorten(name))))
}

/// An IANA service name, for ports: at most 15 of lower-case letters, digits and single `-`, with a letter.
pub(crate) fn port_name(at: &FieldPath<'_>, name: &str) -> Result<(), FieldError> {
    let good = !name.is_empty()
        && name.len() <= 15
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && name.bytes().any(|b| b.is_ascii_lowercase())
        && !name.contains("--")
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good {
        return Ok(());
    }
    Err(at.error(format!(
        "port name {:?} must be at most 15 lower-case letters, digits and single '-' within, with at least one letter",
        shorten(name)
    )))
}

/// A port number.
pub(crate) fn port(at: &FieldPath<'_>, number: i32) -> Result<u16, FieldError> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(at.error(format!("port {number} must be 1 to 65535"))),
    }
}

/// An IP address.
pub(crate) fn address(at: &FieldPath<'_>, text: &str) -> Result<IpAddr, FieldError> {
    text.parse().ok().ok_or_else(|| at.error(format!("{:?} is no IP address", shorten(text))))
}

/// A quantity that is not negative.
pub(crate) fn quantity(at: &FieldPath<'_>, text: &str) -> Result<Quantity, FieldError> {
    let quantity: Quantity =
        text.parse().map_err(|e: berth_core::quantity::QuantityError| at.error(e.to_string()))?;
    if text.starts_with('-') && (quantity.millis() != 0 || quantity.units() != 0) {
        return Err(at.error(format!("quantity {} must not be negative", shorten(text))));
    }
    Ok(quantity)
}

/// A relative path without `..`.
pub(crate) fn path_below(at: &FieldPath<'_>, path: &str) -> Result<(), FieldError> {
    if path.starts_with('/') {
        return Err(at.error(format!("{:?} must be a relative path", shorten(path))));
    }
    no_parent(at, path)
}

/// A path without `..`.
pub(crate) fn no_parent(at: &FieldPath<'_>, path: &str) -> Result<(), FieldError> {
    if path.contains('\0') {
        return Err(at.error("must not contain a NUL character"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(at.error(format!("{:?} must not contain \"..\"", shorten(path))));
    }
    Ok(())
}

/// The path of a file in a volume that is made from keys: relative, and not a name that the volume itself
/// uses (`..data`).
pub(crate) fn item_path(at: &FieldPath<'_>, path: &str) -> Result<(), FieldError> {
    if path.is_empty() {
        return Err(at.error("is required"));
    }
    path_below(at, path)?;
    if path.starts_with("..") {
        return Err(at.error(format!("{:?} must not start with \"..\"", shorten(path))));
    }
    Ok(())
}

/// File mode bits.
pub(crate) fn mode(at: &FieldPath<'_>, mode: i32) -> Result<u32, FieldError> {
    match u32::try_from(mode) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(at.error(format!("mode {mode} must be 0 to 0777 octal (511 decimal)"))),
    }
}

/// `[prefix/]name`: the form of label keys, annotation keys and condition types.
pub(crate) fn qualified_name(at: &FieldPath<'_>, text: &str) -> Result<(), FieldError> {
    let (prefix, name) = match text.rsplit_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let prefix_good = prefix.is_none_or(|p| PodName::new(p).is_ok());
    if prefix_good && !name.is_empty() && label_shape(name) {
        return Ok(());
    }
    Err(at.error(format!(
        "{:?} must be a name of at most 63 letters, digits, '-', '_' and '.', with an optional DNS prefix and '/'",
        shorten(text)
    )))
}

fn label_shape(text: &str) -> bool {
    let ends = |c: Option<u8>| c.is_none_or(|b| b.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && ends(text.bytes().next())
        && ends(text.bytes().last())
}

/// `metadata.labels` or a selector.
pub(crate) fn labels(at: &FieldPath<'_>, labels: &BTreeMap<String, String>) -> Result<(), FieldError> {
    for (key, value) in labels {
        qualified_name(at, key)?;
        if !label_shape(value) {
            return Err(at.key(key).error(format!(
                "label value {:?} must be at most 63 letters, digits, '-', '_' and '.', alphanumeric at both ends",
                shorten(value)
            )));
        }
    }
    Ok(())
}

/// `metadata.annotations`: names checked without regard to case, 256 KiB in all.
pub(crate) fn annotations(
    at: &FieldPath<'_>,
    annotations: &BTreeMap<String, String>,
) -> Result<(), FieldError> {
    let mut total = 0_usize;
    for (key, value) in annotations {
        qualified_name(at, &key.to_ascii_lowercase())?;
        total = total.saturating_add(key.len()).saturating_add(value.len());
    }
    if total > 256 << 10 {
        return Err(at.error(format!("hold {total} bytes, more than 262144")));
    }
    Ok(())
}

/// The name of an object that a pod refers to, a DNS subdomain.
pub(crate) fn object_name(at: &FieldPath<'_>, name: &str) -> Result<(), FieldError> {
    if name.is_empty() {
        return Err(at.error("is required"));
    }
    PodName::new(name).map(drop).map_err(|e| at.error(format!("object name {:?} {}", e.text, e.reason)))
}

/// A non-negative 32-bit amount, for example seconds.
pub(crate) fn amount(at: &FieldPath<'_>, value: i64) -> Result<u32, FieldError> {
    u32::try_from(value)
        .ok()
        .filter(|v| *v <= i32::MAX.unsigned_abs())
        .ok_or_else(|| at.error(format!("{value} must be 0 to {}", i32::MAX)))
}

/// `terminationGracePeriodSeconds`: a negative one is 1, as the API server makes of it; one beyond 32 bits is
/// 68 years.
pub(crate) fn grace(seconds: i64) -> u32 {
    match u32::try_from(seconds) {
        Ok(seconds) => seconds.min(i32::MAX.unsigned_abs()),
        Err(_) if seconds < 0 => 1,
        Err(_) => i32::MAX.unsigned_abs(),
    }
}

/// An id of the core model.
pub(crate) fn id<T>(at: &FieldPath<'_>, made: Result<T, berth_core::ids::IdError>) -> Result<T, FieldError> {
    made.map_err(|e| if e.text.is_empty() { at.error("is required") } else { at.error(e.to_string()) })
}

/// The value of one of a few words; the first is the default.
pub(crate) fn choice<T: Copy + Default>(
    at: &FieldPath<'_>,
    word: Option<&str>,
    of: &[(&str, T)],
) -> Result<T, FieldError> {
    let Some(word) = word.filter(|w| !w.is_empty()) else {
        return Ok(of.first().map(|(_, value)| *value).unwrap_or_default());
    };
    of.iter().find(|(name, _)| *name == word).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = of.iter().map(|(name, _)| *name).collect();
        at.error(format!("{:?} must be one of {}", shorten(word), names.join(", ")))
    })
}

/// Refuses names too long for the directory of the pod's logs: nothing of such a pod could be started.
pub(crate) fn output_name(
    at: &FieldPath<'_>,
    namespace: &Namespace,
    name: &PodName,
    uid: &PodUid,
) -> Result<(), FieldError> {
    // `<namespace>_<name>_<uid>`.
    let others = namespace.as_str().len() + uid.as_str().len() + 2;
    let length = others + name.as_str().len();
    if length <= MAX_FILE_NAME {
        return Ok(());
    }
    Err(at.error(format!(
        "is too long by {}: the output of a pod lies in a directory <namespace>_<name>_<uid>, a name of at most \
         {MAX_FILE_NAME} bytes, so that the name may have {} here",
        length - MAX_FILE_NAME,
        MAX_FILE_NAME.saturating_sub(others)
    )))
}
