//! Kubernetes quantities (`k8s.io/apimachinery/pkg/api/resource`): `100m`, `64Mi`, `1.5`, `2e3`.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A positive or negative amount, exact to 1e-9 of its unit. Finer digits are rounded up, as in Kubernetes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Quantity {
    nanos: i128,
    text: String,
}

/// Error: a text is no valid quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "quantity {0:?} must be a number with an optional suffix of n u m k M G T P E Ki Mi Gi Ti Pi Ei or e<number>"
)]
pub struct QuantityError(pub String);

impl Quantity {
    /// Thousandths, rounded up: millicores of a CPU quantity. Clamped to `i64`.
    pub fn millis(&self) -> i64 {
        clamp(div_ceil(self.nanos, 1_000_000))
    }

    /// Whole units, rounded up: bytes of a memory quantity. Clamped to `i64`.
    pub fn units(&self) -> i64 {
        clamp(div_ceil(self.nanos, 1_000_000_000))
    }

    /// The canonical form (`CanonicalizeBytes` of Kubernetes): the largest suffix that loses no precision.
    /// Powers of 1024 are kept where the text used one and the amount is whole and at least 1024.
    pub fn canonical(&self) -> String {
        const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        const UNIT: i128 = 1_000_000_000;
        if self.nanos == 0 {
            return "0".to_owned();
        }
        let suffix =
            self.text.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | '+' | '-'));
        if suffix.ends_with('i') && self.nanos % UNIT == 0 && self.nanos.abs() >= 1024 * UNIT {
            let (mut number, mut power) = (self.nanos / UNIT, 0_usize);
            while number % 1024 == 0 && power < BINARY.len() - 1 {
                number /= 1024;
                power += 1;
            }
            return format!("{number}{}", BINARY.get(power).copied().unwrap_or_default());
        }
        let (mut number, mut power) = (self.nanos, 0_usize);
        while number % 1000 == 0 && power < DECIMAL.len() - 1 {
            number /= 1000;
            power += 1;
        }
        let exponent = suffix.starts_with(['e', 'E']) && suffix.len() > 1;
        match (exponent, power) {
            (true, 3) => number.to_string(),
            (true, power) => format!("{number}e{}", i64::try_from(power).map_or(0, |p| p * 3 - 9)),
            (false, power) => format!("{number}{}", DECIMAL.get(power).copied().unwrap_or_default()),
        }
    }

    /// Both together, written in the form of this one, or of the other where this one is 0 (`Quantity.Add`).
    pub fn plus(&self, other: &Quantity) -> Quantity {
        let form = if self.nanos == 0 { other } else { self };
        let sum = Quantity { nanos: self.nanos.saturating_add(other.nanos), text: form.text.clone() };
        Quantity { text: sum.canonical(), ..sum }
    }

    /// Whether it is nothing.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// The larger of both amounts.
    pub fn larger<'q>(&'q self, other: &'q Quantity) -> &'q Quantity {
        if other.nanos > self.nanos { other } else { self }
    }

    /// The text as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn clamp(v: i128) -> i64 {
    i64::try_from(v).unwrap_or(if v > 0 { i64::MAX } else { i64::MIN })
}

fn div_ceil(a: i128, b: i128) -> i128 {
    let q = a.div_euclid(b);
    if a.rem_euclid(b) == 0 { q } else { q.saturating_add(1) }
}

fn scale(suffix: &str) -> Option<(i128, i128)> {
    const KI: i128 = 1024;
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (KI, 1),
        "Mi" => (KI.pow(2), 1),
        "Gi" => (KI.pow(3), 1),
        "Ti" => (KI.pow(4), 1),
        "Pi" => (KI.pow(5), 1),
        "Ei" => (KI.pow(6), 1),
        _ => {
            let exp: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            if !(-18..=18).contains(&exp) {
                return None;
            }
            let p = 10i128.pow(exp.unsigned_abs());
            if exp < 0 { (1, p) } else { (p, 1) }
        }
    })
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(s: &str) -> Result<Self, QuantityError> {
        let err = || QuantityError(s.chars().take(80).collect());
        let (negative, rest) = match s.as_bytes().first() {
            Some(b'-') => (true, s.get(1..).unwrap_or_default()),
            Some(b'+') => (false, s.get(1..).unwrap_or_default()),
            _ => (false, s),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (int, frac) = number.split_once('.').unwrap_or((number, ""));
        if (int.is_empty() && frac.is_empty()) || frac.contains('.') || int.len() > 24 || frac.len() > 64 {
            return Err(err());
        }
        let (mul, div) = scale(suffix).ok_or_else(err)?;
        let mut nanos: i128 = 0;
        if !int.is_empty() {
            let v: i128 = int.parse().ok().ok_or_else(err)?;
            // An amount larger than any real one is clamped rather than rejected, like Kubernetes' cap at
            // 2^63-1.
            nanos = v.saturating_mul(mul).saturating_mul(1_000_000_000) / div;
            if div > 1_000_000_000 && v.saturating_mul(1_000_000_000) % div != 0 {
                nanos = nanos.saturating_add(1);
            }
        }
        let mut unit: i128 = 1_000_000_000_000_000_000;
        let mut fraction: i128 = 0;
        let mut beyond = false;
        for b in frac.bytes() {
            unit /= 10;
            let digit = i128::from(b - b'0');
            beyond |= unit == 0 && digit != 0;
            fraction += digit * unit;
        }
        // `fraction` is in units of 1e-18. Convert it to 1e-9 of the unit, rounding up.
        nanos = nanos
            .saturating_add(div_ceil(fraction.saturating_mul(mul), 1_000_000_000_i128.saturating_mul(div)));
        if beyond && fraction == 0 {
            nanos = nanos.saturating_add(1);
        }
        Ok(Quantity { nanos: if negative { -nanos } else { nanos }, text: s.to_owned() })
    }
}

impl TryFrom<String> for Quantity {
    type Error = QuantityError;
    fn try_from(s: String) -> Result<Self, QuantityError> {
        s.parse()
    }
}

impl From<Quantity> for String {
    fn from(q: Quantity) -> String {
        q.text
    }
}

impl fmt::Debug for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_kubernetes_forms() {
        let q = |s: &str| s.parse::<Quantity>().unwrap();
        assert_eq!(q("100m").millis(), 100);
        assert_eq!(q("1").millis(), 1000);
        assert_eq!(q("1.5").millis(), 1500);
        assert_eq!(q("0.0001").millis(), 1);
        assert_eq!(q("64Mi").units(), 64 << 20);
        assert_eq!(q("1.5Gi").units(), 3 << 29);
        assert_eq!(q("2e3").units(), 2000);
        assert_eq!(q("2E").units(), 2_000_000_000_000_000_000);
        assert_eq!(q("1n").units(), 1);
        assert_eq!(q("-5").units(), -5);
        assert_eq!(q(".5").millis(), 500);
        assert_eq!(q("5.").units(), 5);
        assert_eq!(q("100Ei").units(), i64::MAX);
    }

    /// Some of these values were observed on a kubelet.
    #[test]
    fn writes_what_kubernetes_writes() {
        for (given, canonical) in [
            ("0.1Gi", "107374182400m"),
            ("1000", "1k"),
            ("0.15", "150m"),
            ("20480Ki", "20Mi"),
            ("100m", "100m"),
            ("64Mi", "64Mi"),
            ("1.5Gi", "1536Mi"),
            ("1Ki", "1Ki"),
            ("1023", "1023"),
            ("0.5Ki", "512"),
            ("0Mi", "0"),
            ("2e3", "2e3"),
            ("1e2", "100"),
            ("-1000", "-1k"),
            ("1500m", "1500m"),
        ] {
            assert_eq!(given.parse::<Quantity>().unwrap().canonical(), canonical, "{given}");
        }
    }

    #[test]
    fn a_sum_has_the_form_of_its_first() {
        let q = |s: &str| s.parse::<Quantity>().unwrap();
        for (a, b, sum) in
            [("1Gi", "10Mi", "1034Mi"), ("100m", "0.15", "250m"), ("0", "1Ki", "1Ki"), ("500", "500", "1k")]
        {
            assert_eq!(q(a).plus(&q(b)).as_str(), sum, "{a} {b}");
        }
        assert_eq!(q("1Ki").larger(&q("1k")).as_str(), "1Ki");
    }

    #[test]
    fn refuses_the_rest() {
        for bad in ["", "m", "1.2.3", "1 ", " 1", "1mm", "0x1", "1e99", "--1", "1Kib", "١"] {
            assert!(bad.parse::<Quantity>().is_err(), "{bad}");
        }
    }
}
