//! JSON null in the place of a value.

use serde::{Deserialize, Deserializer};

/// Reads null as the default value: Go writes absent maps and slices as null, and reads null as an absent
/// value.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}
