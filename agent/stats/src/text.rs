//! The text format of Prometheus, version 0.0.4: a writer into one buffer, without an allocation a sample.
//!
//! Invariants: every family has one `HELP` and one `TYPE` line, directly before its samples; a family without a
//! sample leaves nothing. Label values are escaped. The caller writes the samples of a family together, and
//! each family once.

use berth_core::{
    metrics::{FamilyType, ReadFamily, SeriesValue},
    time::Wall,
};
use std::fmt::Write as _;

/// The value of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// A whole number.
    Whole(u64),
    /// Nanoseconds, written as seconds without loss.
    Nanos(u64),
    /// Any other number.
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Value {
        Value::Whole(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Value {
        Value::Real(value)
    }
}

/// Writer of the text format.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    name: &'static str,
    /// Help and type of the family at hand, until its first sample.
    header: Option<(&'static str, FamilyType)>,
}

impl Exposition {
    /// A writer with room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Exposition {
        Exposition { text: String::with_capacity(bytes), ..Exposition::default() }
    }

    /// Begins a family. The samples that follow belong to it.
    pub fn family(&mut self, name: &'static str, help: &'static str, kind: FamilyType) {
        (self.name, self.header) = (name, Some((help, kind)));
    }

    /// Writes a sample with these written labels ([`labels`]) and more; `at` is its timestamp.
    pub fn sample(&mut self, labels: &str, more: &[(&str, &str)], value: Value, at: Option<Wall>) {
        self.suffixed("", labels, more, value, at);
    }

    fn suffixed(
        &mut self,
        suffix: &str,
        labels: &str,
        more: &[(&str, &str)],
        value: Value,
        at: Option<Wall>,
    ) {
        self.write_header();
        let text = &mut self.text;
        text.push_str(self.name);
        text.push_str(suffix);
        if !(labels.is_empty() && more.is_empty()) {
            text.push('{');
            text.push_str(labels);
            for (n, (name, value)) in more.iter().enumerate() {
                if n > 0 || !labels.is_empty() {
                    text.push(',');
                }
                label(text, name, value);
            }
            text.push('}');
        }
        text.push(' ');
        number(text, value);
        if let Some(at) = at {
            text.push(' ');
            let millis = at.0.div_euclid(1_000_000);
            if millis < 0 {
                text.push('-');
            }
            digits(text, millis.unsigned_abs(), 1);
        }
        text.push('\n');
    }

    fn write_header(&mut self) {
        let Some((help, kind)) = self.header.take() else { return };
        let kind = match kind {
            FamilyType::Counter => "counter",
            FamilyType::Gauge => "gauge",
            FamilyType::Histogram => "histogram",
        };
        for part in ["# HELP ", self.name, " ", help, "\n# TYPE ", self.name, " ", kind, "\n"] {
            self.text.push_str(part);
        }
    }

    /// Writes families that the process counts itself.
    pub fn read_families(&mut self, families: &[&dyn ReadFamily]) {
        for family in families {
            self.read_family(*family);
        }
    }

    /// Writes a family that the process counts itself.
    pub fn read_family(&mut self, family: &dyn ReadFamily) {
        self.family(family.name(), family.help(), family.family_type());
        let names = family.labels();
        let mut written = String::new();
        family.read(&mut |values, value| {
            written.clear();
            for (n, (name, value)) in names.iter().zip(values).enumerate() {
                if n > 0 {
                    written.push(',');
                }
                label(&mut written, name, value);
            }
            match value {
                SeriesValue::Count(count) => self.sample(&written, &[], Value::Whole(count), None),
                SeriesValue::Level(level) => self.sample(&written, &[], Value::Real(level), None),
                SeriesValue::Distribution(bounds, buckets) => {
                    let mut below = 0_u64;
                    let mut bound = String::new();
                    for (n, count) in buckets.counts.iter().enumerate() {
                        below = below.saturating_add(*count);
                        bound.clear();
                        match bounds.get(n) {
                            Some(at) => number(&mut bound, Value::Real(*at)),
                            None => bound.push_str("+Inf"),
                        }
                        self.suffixed("_bucket", &written, &[("le", &bound)], Value::Whole(below), None);
                    }
                    let sum = Value::Real(buckets.sum.as_secs_f64());
                    self.suffixed("_sum", &written, &[], sum, None);
                    self.suffixed("_count", &written, &[], Value::Whole(below), None);
                }
            }
        });
        self.header = None;
    }

    /// The text.
    pub fn finish(self) -> Vec<u8> {
        self.text.into_bytes()
    }
}

/// Writes labels, as [`Exposition::sample`] takes them.
pub fn labels(pairs: &[(&str, &str)]) -> String {
    let mut text =
        String::with_capacity(pairs.iter().map(|(name, value)| name.len() + value.len() + 4).sum());
    for (n, (name, value)) in pairs.iter().enumerate() {
        if n > 0 {
            text.push(',');
        }
        label(&mut text, name, value);
    }
    text
}

fn label(text: &mut String, name: &str, value: &str) {
    text.push_str(name);
    text.push_str("=\"");
    let mut rest = value;
    while let Some(at) = rest.find(['\\', '"', '\n']) {
        let (plain, special) = rest.split_at(at);
        text.push_str(plain);
        text.push_str(match special.as_bytes().first() {
            Some(b'\n') => "\\n",
            Some(b'"') => "\\\"",
            _ => "\\\\",
        });
        rest = special.get(1..).unwrap_or_default();
    }
    text.push_str(rest);
    text.push('"');
}

fn number(text: &mut String, value: Value) {
    match value {
        Value::Whole(n) => digits(text, n, 1),
        Value::Nanos(n) => {
            digits(text, n / 1_000_000_000, 1);
            let rest = n % 1_000_000_000;
            if rest > 0 {
                text.push('.');
                digits(text, rest, 9);
                text.truncate(text.trim_end_matches('0').len());
            }
        }
        Value::Real(n) if n.is_nan() => text.push_str("NaN"),
        Value::Real(n) if n.is_infinite() => text.push_str(if n > 0.0 { "+Inf" } else { "-Inf" }),
        Value::Real(n) => {
            // Writing to a string cannot fail.
            let _always_ok = write!(text, "{n}");
        }
    }
}

/// Writes a number with at least `width` digits.
fn digits(text: &mut String, mut n: u64, width: usize) {
    let mut reversed = [b'0'; 20];
    let mut used = 0;
    for digit in &mut reversed {
        if n == 0 && used >= width {
            break;
        }
        *digit = b'0' + u8::try_from(n % 10).unwrap_or_default();
        n /= 10;
        used += 1;
    }
    text.extend(reversed.iter().take(used).rev().map(|digit| char::from(*digit)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::metrics::{Counter, Gauge, Histogram};
    use proptest::prelude::*;
    use std::time::Duration;

    fn written(write: impl FnOnce(&mut Exposition)) -> String {
        let mut text = Exposition::default();
        write(&mut text);
        String::from_utf8(text.finish()).unwrap()
    }

    #[test]
    fn a_family_has_one_header_and_none_without_samples() {
        let text = written(|text| {
            text.family("none_total", "Nothing.", FamilyType::Counter);
            text.family("x_total", "X.", FamilyType::Counter);
            text.sample("", &[], 1.into(), None);
            text.sample(
                &labels(&[("a", "b")]),
                &[("c", "d")],
                Value::Nanos(1_500_000_000),
                Some(Wall(7_999_999)),
            );
        });
        let want = "# HELP x_total X.\n# TYPE x_total counter\nx_total 1\nx_total{a=\"b\",c=\"d\"} 1.5 7\n";
        assert_eq!(text, want);
    }

    #[test]
    fn values_are_exact() {
        for (value, want) in [
            (Value::Whole(0), "0"),
            (Value::Whole(u64::MAX), "18446744073709551615"),
            (Value::Nanos(0), "0"),
            (Value::Nanos(1), "0.000000001"),
            (Value::Nanos(20_030_000_000), "20.03"),
            (Value::Real(0.005), "0.005"),
            (Value::Real(1e9), "1000000000"),
            (Value::Real(f64::NAN), "NaN"),
            (Value::Real(f64::NEG_INFINITY), "-Inf"),
        ] {
            let mut text = String::new();
            number(&mut text, value);
            assert_eq!(text, want);
        }
    }

    #[test]
    fn families_of_the_process() {
        let counter = Counter::counter("c_total", "C.", &["a"]);
        counter.inc(&["x\"y\\z\n"]);
        let gauge = Gauge::gauge("g", "G.", &[]);
        gauge.set(&[], 0.25);
        let histogram = Histogram::histogram("h_seconds", "H.", &["op"], &[0.1, 1.0]);
        histogram.observe(&["a"], Duration::from_millis(50));
        histogram.observe(&["a"], Duration::from_secs(2));
        let empty = Counter::counter("e_total", "E.", &[]);
        let text = written(|text| {
            for family in [&counter as &dyn ReadFamily, &empty, &gauge, &histogram] {
                text.read_family(family);
            }
        });
        let want = concat!(
            "# HELP c_total C.\n# TYPE c_total counter\nc_total{a=\"x\\\"y\\\\z\\n\"} 1\n",
            "# HELP g G.\n# TYPE g gauge\ng 0.25\n",
            "# HELP h_seconds H.\n# TYPE h_seconds histogram\n",
            "h_seconds_bucket{op=\"a\",le=\"0.1\"} 1\nh_seconds_bucket{op=\"a\",le=\"1\"} 1\n",
            "h_seconds_bucket{op=\"a\",le=\"+Inf\"} 2\nh_seconds_sum{op=\"a\"} 2.05\nh_seconds_count{op=\"a\"} 2\n",
        );
        assert_eq!(text, want);
    }

    proptest! {
        #[test]
        fn any_number_reads_back(n in any::<u64>(), f in any::<f64>()) {
            let mut text = String::new();
            number(&mut text, Value::Nanos(n));
            let (whole, part) = text.split_once('.').unwrap_or((&text, "0"));
            let back = whole.parse::<u64>().unwrap() * 1_000_000_000 + format!("{part:0<9}").parse::<u64>().unwrap();
            prop_assert_eq!(back, n);
            let mut text = String::new();
            number(&mut text, Value::Real(f));
            prop_assert!(text.parse::<f64>().unwrap() == f || f.is_nan());
        }
    }
}
