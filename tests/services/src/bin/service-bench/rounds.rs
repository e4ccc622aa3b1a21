//! Runs the arms of a comparison in rotating order and computes medians of per-round ratios. Absolute rates
//! drift, and the arm that always runs first is always slower.

use crate::{say, stop};
use anyhow::Result;
use berth_harness::stats::{median, spread};

/// One side of a comparison.
pub(crate) struct Arm<'a> {
    pub(crate) name: &'static str,
    /// Loads the arm once and returns its rate.
    pub(crate) run: Box<dyn Fn() -> Result<f64> + 'a>,
}

/// Rates of all arms, by arm and round.
pub(crate) struct Rates(Vec<(&'static str, Vec<f64>)>);

/// Turns of each arm in a round. Several short turns even out other load on the machine, which changes every
/// second.
pub(crate) const TURNS: u32 = 4;

/// Runs all arms in each round, [`TURNS`] times; an arm's rate of the round is the mean. Each pass starts
/// with another arm, and every second pass runs backwards.
pub(crate) fn rotate(what: &str, arms: &[Arm<'_>], rounds: usize) -> Result<Rates> {
    let mut rates: Vec<(&'static str, Vec<f64>)> = arms.iter().map(|arm| (arm.name, Vec::new())).collect();
    let mut walk = 0;
    for _ in 0..rounds {
        let mut sums = vec![0.0; arms.len()];
        for _ in 0..TURNS {
            for turn in order(arms.len(), walk) {
                stop::check()?;
                if let (Some(arm), Some(sum)) = (arms.get(turn), sums.get_mut(turn)) {
                    *sum += (arm.run)()?;
                }
            }
            walk += 1;
        }
        for ((_, rates), sum) in rates.iter_mut().zip(sums) {
            rates.push(sum / f64::from(TURNS));
        }
    }
    let rates = Rates(rates);
    for (name, of) in &rates.0 {
        say(&format!("{what}: {name:28} {}", spread(of, 0)));
    }
    Ok(rates)
}

/// Order of the arms in a pass.
fn order(arms: usize, walk: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..arms).map(|n| (n + walk / 2) % arms).collect();
    if walk % 2 == 1 {
        order.reverse();
    }
    order
}

/// Median of the ratios of two arms.
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) n: usize,
    /// p10 and p90 as text.
    pub(crate) spread: String,
}

impl Rates {
    fn of(&self, name: &str) -> &[f64] {
        self.0.iter().find(|(n, _)| *n == name).map_or(&[], |(_, rates)| rates)
    }

    /// Ratio of two arms, round by round.
    pub(crate) fn ratio(&self, arm: &str, against: &str) -> Ratio {
        let pairs = self.of(arm).iter().zip(self.of(against));
        let ratios: Vec<f64> = pairs.map(|(a, b)| a / b).collect();
        Ratio { median: median(&ratios), n: ratios.len(), spread: spread(&ratios, 3) }
    }

    /// Median rate of an arm.
    pub(crate) fn median(&self, arm: &str) -> f64 {
        median(self.of(arm))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn every_arm_has_every_place_as_often() {
        for arms in [2, 3] {
            let mut places: BTreeMap<(usize, usize), usize> = BTreeMap::new();
            for walk in 0..12 {
                let order = order(arms, walk);
                assert_eq!(order.iter().sum::<usize>(), (0..arms).sum::<usize>());
                for (place, arm) in order.into_iter().enumerate() {
                    *places.entry((place, arm)).or_default() += 1;
                }
            }
            assert!(places.values().all(|n| *n == 12 / arms), "{places:?}");
        }
    }
}
