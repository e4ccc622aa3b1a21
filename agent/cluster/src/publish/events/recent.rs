//! A map of bounded size that forgets what was not used for the longest time. Pure.

use std::collections::BTreeMap;

/// Values by key; the one that was used least recently goes first.
#[derive(Debug)]
pub(super) struct Recent<V> {
    most: usize,
    /// Each value with the number of its last use.
    values: BTreeMap<u64, (u64, V)>,
    /// The keys by their last use.
    uses: BTreeMap<u64, u64>,
    used: u64,
}

impl<V> Recent<V> {
    /// A map of at most `most` values.
    pub(super) fn new(most: usize) -> Recent<V> {
        Recent { most, values: BTreeMap::new(), uses: BTreeMap::new(), used: 0 }
    }

    /// The value of a key, made by `new` where there is none. Counts as a use.
    pub(super) fn entry(&mut self, key: u64, new: impl FnOnce() -> V) -> &mut V {
        self.used = self.used.saturating_add(1);
        let used = self.used;
        match self.values.get(&key) {
            Some((before, _)) => {
                self.uses.remove(before);
            }
            None if self.values.len() >= self.most => {
                if let Some((_, oldest)) = self.uses.pop_first() {
                    self.values.remove(&oldest);
                }
            }
            None => {}
        }
        self.uses.insert(used, key);
        let (last, value) = self.values.entry(key).or_insert_with(|| (used, new()));
        *last = used;
        value
    }

    /// The value of a key, without a use.
    pub(super) fn get_mut(&mut self, key: u64) -> Option<&mut V> {
        self.values.get_mut(&key).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_value_goes_first() {
        let mut recent = Recent::new(2);
        for (key, expected) in [(1, 1), (2, 1), (1, 2), (3, 1), (2, 1), (3, 2), (1, 1)] {
            let value = recent.entry(key, || 0);
            *value += 1;
            assert_eq!(*value, expected, "{key}");
            assert!(recent.values.len() <= 2 && recent.values.len() == recent.uses.len());
        }
        assert_eq!(recent.get_mut(2), None);
        assert_eq!(recent.get_mut(3), Some(&mut 2));
    }
}
