//! The value of a plain YAML scalar for Kubernetes: YAML 1.1 by Go's decoder (`go.yaml.in/yaml/v2`
//! resolve.go), then converted to JSON (`sigs.k8s.io/yaml`). `y`, `No` and `on` are booleans, `yEs` is a
//! text; `0644` is octal; a number that is whole is an integer however it is written.

use serde_json::{Number, Value};

/// The value of a plain scalar without a tag. Fails for numbers that JSON does not have.
pub(super) fn plain(text: &str) -> Result<Value, &'static str> {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Ok(true.into());
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Ok(false.into());
        }
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf"
        | "-.Inf" | "-.INF" => {
            return Err("is no finite number: quote it where it is a text");
        }
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return Ok(text.into());
    }
    let digits: String = text.chars().filter(|c| *c != '_').collect();
    if !text.starts_with('.') {
        if let Some(number) = integer(&digits) {
            return Ok(Value::Number(number));
        }
        if !looks_like_float(&digits) {
            return Ok(text.into());
        }
    }
    if text.starts_with('.') && !looks_like_float(text) {
        return Ok(text.into());
    }
    match digits.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(float(value)),
        _ => Ok(text.into()),
    }
}

/// The text of a plain scalar as the key of an object, as Go prints such a value.
pub(super) fn plain_key(text: &str) -> Result<String, &'static str> {
    match plain(text)? {
        Value::String(text) => Ok(text),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Null => Err("must not be null: quote it where it is a text"),
        Value::Number(_) => {
            let digits: String = text.chars().filter(|c| *c != '_').collect();
            Ok(match integer(&digits) {
                Some(number) => number.to_string(),
                None => digits.parse().map_or_else(|_| text.to_owned(), float_key),
            })
        }
        Value::Array(_) | Value::Object(_) => Err("must be a scalar"),
    }
}

/// `strconv.ParseInt` of base 0: a sign, then `0x`, `0o`, `0b`, a leading 0 (octal) or decimal digits.
fn integer(text: &str) -> Option<Number> {
    let (negative, rest) = match text.strip_prefix(['+', '-']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    let lower = rest.to_ascii_lowercase();
    let (radix, digits) = match (lower.strip_prefix("0x"), lower.strip_prefix("0o"), lower.strip_prefix("0b"))
    {
        (Some(hex), _, _) => (16, hex),
        (_, Some(octal), _) => (8, octal),
        (_, _, Some(binary)) => (2, binary),
        _ if lower.len() > 1 && lower.starts_with('0') => (8, lower.get(1..)?),
        _ => (10, lower.as_str()),
    };
    if !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    let value = i128::from_str_radix(digits, radix).ok()?;
    let value = if negative { value.checked_neg()? } else { value };
    match (i64::try_from(value), u64::try_from(value)) {
        (Ok(value), _) => Some(value.into()),
        (_, Ok(value)) => Some(value.into()),
        _ => None,
    }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn looks_like_float(text: &str) -> bool {
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))),
        None => (text, None),
    };
    let good = match mantissa.split_once('.') {
        Some(("", fraction)) => !fraction.is_empty() && digits(fraction),
        Some((whole, fraction)) => digits(whole) && digits(fraction),
        None => !mantissa.is_empty() && digits(mantissa),
    };
    good && exponent.is_none_or(|e| !e.is_empty() && digits(e))
}

/// A number as Go's JSON writes and reads it again: below 1e21 a whole number has neither point nor exponent.
#[expect(clippy::cast_possible_truncation, reason = "whole and within i128 is what was just asked")]
fn float(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e21 {
        let whole = value as i128;
        if let Ok(whole) = i64::try_from(whole) {
            return whole.into();
        }
        if let Ok(whole) = u64::try_from(whole) {
            return whole.into();
        }
    }
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// `strconv.FormatFloat(value, 'g', -1, 32)`.
#[expect(clippy::cast_possible_truncation, reason = "Go rounds a key to 32 bits too")]
fn float_key(value: f64) -> String {
    let value = value as f32;
    let scientific = format!("{value:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(exponent) if (-4..6).contains(&exponent) => value.to_string(),
        Ok(exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
        }
        Err(_) => scientific,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Each was decoded by `sigs.k8s.io/yaml` v1.6.0.
    #[test]
    fn plain_scalars_have_the_values_of_gos_decoder() {
        for (text, value) in [
            ("y", json!(true)),
            ("NO", json!(false)),
            ("Off", json!(false)),
            ("yEs", json!("yEs")),
            ("nO", json!("nO")),
            ("tRue", json!("tRue")),
            ("nULL", json!("nULL")),
            ("", json!(null)),
            ("~", json!(null)),
            ("0644", json!(420)),
            ("0o644", json!(420)),
            ("089", json!(89)),
            ("0x1F", json!(31)),
            ("0b101", json!(5)),
            ("-0b101", json!(-5)),
            ("1_000", json!(1000)),
            ("+12", json!(12)),
            ("18446744073709551615", json!(u64::MAX)),
            ("1.00065e+09", json!(1_000_650_000)),
            ("5.0", json!(5)),
            ("1e3", json!(1000)),
            ("8e3", json!(8000)),
            ("5.5", json!(5.5)),
            (".5", json!(0.5)),
            ("-1.5e-3", json!(-0.0015)),
            ("1.2.3", json!("1.2.3")),
            ("1e", json!("1e")),
            ("-", json!("-")),
            (".", json!(".")),
            ("+", json!("+")),
            ("100m", json!("100m")),
            ("12:30:45", json!("12:30:45")),
            ("2024-01-01", json!("2024-01-01")),
            ("_1", json!("_1")),
            ("-inf", json!("-inf")),
            ("0x", json!("0x")),
        ] {
            assert_eq!(plain(text), Ok(value), "{text:?}");
        }
        assert!(plain(".nan").is_err() && plain("-.Inf").is_err());
    }

    #[test]
    fn plain_keys_have_the_texts_of_gos_decoder() {
        for (text, key) in [
            ("on", "true"),
            ("n", "false"),
            ("a", "a"),
            ("0644", "420"),
            ("1.10", "1.1"),
            ("1.0", "1"),
            ("1e6", "1e+06"),
            ("0.00001", "1e-05"),
            ("1.00065e+09", "1.00065e+09"),
        ] {
            assert_eq!(plain_key(text).as_deref(), Ok(key), "{text}");
        }
        assert!(plain_key("~").is_err());
    }
}
