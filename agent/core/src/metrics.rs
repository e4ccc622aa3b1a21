//! Metrics that a process counts about itself, in the terms of Prometheus: families of counters, gauges and
//! histograms.
//!
//! A crate declares its families as statics in a module `metrics` of its own and counts where the thing
//! happens. The statistics endpoint reads all of them by [`ReadFamily`]. Every family starts empty with the
//! process, as those of any process do.
//!
//! Invariants: a family holds at most [`MAX_SERIES`] series; what comes beyond is counted in one series whose
//! labels are all [`OTHER`]. Counting takes one short lock and allocates for a new series alone. A number of
//! labels that is not the family's own counts nothing.

use crate::sync::lock;
use std::{cmp::Ordering, sync::Mutex, time::Duration};

/// The most series of one family.
pub const MAX_SERIES: usize = 4096;

/// The value of every label of the series that stands for all beyond [`MAX_SERIES`].
pub const OTHER: &str = "other";

/// Upper bounds of a histogram, in seconds, that suit most durations: Prometheus' default ones.
pub const DEFAULT_BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The label values of a series, in the order of the family's labels.
type LabelValues = Box<[Box<str>]>;

/// The series of one name: a value for each combination of label values.
#[derive(Debug)]
pub struct MetricFamily<V> {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    bounds: &'static [f64],
    /// Sorted by label values.
    series: Mutex<Vec<(LabelValues, V)>>,
}

/// MetricFamily of numbers that only grow.
pub type Counter = MetricFamily<u64>;

/// MetricFamily of numbers that come and go.
pub type Gauge = MetricFamily<f64>;

/// MetricFamily of distributions of durations.
pub type Histogram = MetricFamily<Buckets>;

/// The distribution of durations in one series of a [`Histogram`].
#[derive(Debug, Clone, PartialEq)]
pub struct Buckets {
    /// The number of durations in each bucket: above the bound before and up to the bucket's own. The last one
    /// has no bound.
    pub counts: Box<[u64]>,
    /// The sum of all durations.
    pub sum: Duration,
}

/// The value of one series, as read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SeriesValue<'a> {
    /// The value of a counter.
    Count(u64),
    /// The value of a gauge.
    Level(f64),
    /// The value of a histogram, with the upper bounds of its buckets in seconds.
    Distribution(&'static [f64], &'a Buckets),
}

/// The type of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FamilyType {
    /// Numbers that only grow.
    Counter,
    /// Numbers that come and go.
    Gauge,
    /// Durations, counted by the buckets into which they fall.
    Histogram,
}

/// A family as the statistics endpoint reads it.
pub trait ReadFamily: Sync {
    /// The name of the family.
    fn name(&self) -> &'static str;
    /// What the family counts, in one sentence.
    fn help(&self) -> &'static str;
    /// The names of the labels.
    fn labels(&self) -> &'static [&'static str];
    /// The type of the family.
    fn family_type(&self) -> FamilyType;
    /// Calls `each` with the label values and the value of every series, in the order of label values. The
    /// family is locked meanwhile.
    fn read(&self, each: &mut dyn FnMut(&[Box<str>], SeriesValue<'_>));
}

impl<V> MetricFamily<V> {
    const fn declare(
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> MetricFamily<V> {
        MetricFamily { name, help, labels, bounds: &[], series: Mutex::new(Vec::new()) }
    }

    /// Removes a series, because the object that the labels name is gone.
    pub fn remove(&self, labels: &[&str]) {
        lock(&self.series).retain(|(own, _)| compare(own, labels) != Ordering::Equal);
    }

    fn change(&self, labels: &[&str], first: impl Fn() -> V, change: impl FnOnce(&mut V)) {
        if labels.len() != self.labels.len() {
            return;
        }
        let mut series = lock(&self.series);
        let mut place = series.binary_search_by(|(own, _)| compare(own, labels));
        let mut owned = LabelValues::default();
        if place.is_err() {
            if series.len() < MAX_SERIES - 1 {
                owned = labels.iter().map(|&l| l.into()).collect();
            } else {
                owned = labels.iter().map(|_| OTHER.into()).collect();
                place = series.binary_search_by(|(own, _)| own.cmp(&owned));
            }
        }
        let at = match place {
            Ok(at) => at,
            Err(at) => {
                series.insert(at, (owned, first()));
                at
            }
        };
        if let Some((_, value)) = series.get_mut(at) {
            change(value);
        }
    }

    fn each(&self, mut each: impl FnMut(&[Box<str>], &V)) {
        for (labels, value) in lock(&self.series).iter() {
            each(labels, value);
        }
    }
}

impl Counter {
    /// Declares a family of counters; Prometheus' names of counters end in `_total`.
    pub const fn counter(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Counter {
        MetricFamily::declare(name, help, labels)
    }

    /// Adds one.
    pub fn inc(&self, labels: &[&str]) {
        self.add(labels, 1);
    }

    /// Adds `n`. With 0 the series exists from then on.
    pub fn add(&self, labels: &[&str], n: u64) {
        self.change(labels, || 0, |count| *count = count.saturating_add(n));
    }
}

impl Gauge {
    /// Declares a family of gauges.
    pub const fn gauge(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Gauge {
        MetricFamily::declare(name, help, labels)
    }

    /// Sets the value.
    pub fn set(&self, labels: &[&str], value: f64) {
        self.change(labels, || 0.0, |level| *level = value);
    }
}

impl Histogram {
    /// Declares a family of histograms with these upper bounds in seconds, in ascending order.
    pub const fn histogram(
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        bounds: &'static [f64],
    ) -> Histogram {
        MetricFamily { name, help, labels, bounds, series: Mutex::new(Vec::new()) }
    }

    /// Counts a duration.
    pub fn observe(&self, labels: &[&str], took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        let first = || Buckets { counts: vec![0; self.bounds.len() + 1].into(), sum: Duration::ZERO };
        self.change(labels, first, |buckets| {
            buckets.sum = buckets.sum.saturating_add(took);
            if let Some(count) = buckets.counts.get_mut(bucket) {
                *count = count.saturating_add(1);
            }
        });
    }
}

/// The value of one series, by which the type of its family is known.
pub trait Series: Send + 'static {
    /// The type of a family of such values.
    const TYPE: FamilyType;

    /// The value as it is read. `bounds` are those of the family's buckets.
    fn value(&self, bounds: &'static [f64]) -> SeriesValue<'_>;
}

impl Series for u64 {
    const TYPE: FamilyType = FamilyType::Counter;

    fn value(&self, _: &'static [f64]) -> SeriesValue<'_> {
        SeriesValue::Count(*self)
    }
}

impl Series for f64 {
    const TYPE: FamilyType = FamilyType::Gauge;

    fn value(&self, _: &'static [f64]) -> SeriesValue<'_> {
        SeriesValue::Level(*self)
    }
}

impl Series for Buckets {
    const TYPE: FamilyType = FamilyType::Histogram;

    fn value(&self, bounds: &'static [f64]) -> SeriesValue<'_> {
        SeriesValue::Distribution(bounds, self)
    }
}

impl<V: Series> ReadFamily for MetricFamily<V> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn help(&self) -> &'static str {
        self.help
    }

    fn labels(&self) -> &'static [&'static str] {
        self.labels
    }

    fn family_type(&self) -> FamilyType {
        V::TYPE
    }

    fn read(&self, each: &mut dyn FnMut(&[Box<str>], SeriesValue<'_>)) {
        self.each(|labels, value| each(labels, value.value(self.bounds)));
    }
}

fn compare(own: &[Box<str>], labels: &[&str]) -> Ordering {
    own.iter().map(|l| &**l).cmp(labels.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(family: &Counter) -> Vec<(Vec<String>, u64)> {
        let mut found = Vec::new();
        family.each(|labels, n| found.push((labels.iter().map(ToString::to_string).collect(), *n)));
        found
    }

    #[test]
    fn a_series_is_what_its_labels_say_and_series_are_sorted() {
        let family = Counter::counter("x_total", "X.", &["a", "b"]);
        for labels in [["b", "1"], ["a", "2"], ["b", "1"], ["a", "1"]] {
            family.inc(&labels);
        }
        family.add(&["c", ""], 0);
        family.inc(&["too few"]);
        let want = [("a", "1", 1), ("a", "2", 1), ("b", "1", 2), ("c", "", 0)];
        let want = want.map(|(a, b, n)| (vec![a.to_owned(), b.to_owned()], n));
        assert_eq!(counts(&family), want);
        family.remove(&["a", "2"]);
        family.remove(&["none", ""]);
        assert_eq!(counts(&family), [want[0].clone(), want[2].clone(), want[3].clone()]);
    }

    #[test]
    fn what_comes_beyond_the_bound_is_counted_together() {
        let family = Counter::counter("x_total", "X.", &["a"]);
        let total = MAX_SERIES + 5;
        for n in 0..total {
            family.inc(&[&n.to_string()]);
            family.inc(&["0"]);
        }
        let found = counts(&family);
        assert_eq!(found.len(), MAX_SERIES);
        let of = |label: &str| found.iter().find(|(l, _)| l[0] == label).map(|(_, n)| *n);
        assert_eq!(of("0"), Some(total as u64 + 1));
        assert_eq!(of(OTHER), Some(6));
    }

    #[test]
    fn a_duration_counts_in_the_first_bucket_that_holds_it() {
        let family = Histogram::histogram("x_seconds", "X.", &[], &[0.1, 1.0]);
        for millis in [0, 100, 101, 1000, 5000] {
            family.observe(&[], Duration::from_millis(millis));
        }
        let mut seen = Vec::new();
        family.read(&mut |labels, value| seen.push((labels.len(), format!("{value:?}"))));
        let want = Buckets { counts: [2, 2, 1].into(), sum: Duration::from_millis(6201) };
        assert_eq!(seen, [(0, format!("{:?}", SeriesValue::Distribution(&[0.1, 1.0], &want)))]);
    }

    #[test]
    fn a_gauge_is_its_last_value() {
        let family = Gauge::gauge("x", "X.", &["a"]);
        family.set(&["1"], 2.5);
        family.set(&["1"], -1.0);
        let mut seen = Vec::new();
        family.read(&mut |_, value| seen.push(format!("{value:?}")));
        assert_eq!(seen, ["Level(-1.0)"]);
        assert_eq!(family.family_type(), FamilyType::Gauge);
    }
}
