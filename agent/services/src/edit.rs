//! Difference of two lists of shared objects, by pointer: an unchanged object keeps its pointer.

use crate::Edit;
use berth_core::ids::PodKey;
use std::sync::Arc;

impl<T> Edit<T> {
    /// The edit from `before` to `now`; `None` where both are the same. The cost is one comparison of
    /// pointers for each object, and only differing elements are read. `object` takes the object from an
    /// element, and `key` takes its name.
    pub fn between<L>(
        source: usize,
        before: &[Arc<L>],
        now: &[Arc<L>],
        object: impl Fn(&Arc<L>) -> Arc<T>,
        key: impl Fn(&T) -> &PodKey,
    ) -> Option<Edit<T>> {
        let same = |(a, b): &(&Arc<L>, &Arc<L>)| Arc::ptr_eq(a, b);
        let frontend = before.iter().zip(now).take_while(same).count();
        let (before, now) = (before.get(frontend..)?, now.get(frontend..)?);
        let back = before.iter().rev().zip(now.iter().rev()).take_while(same).count();
        let before = before.get(..before.len().saturating_sub(back))?;
        let now = now.get(..now.len().saturating_sub(back))?;
        let mut edit = Edit { source, gone: Vec::new(), now: Vec::new() };
        // Lists of equal length usually have exchanged elements only.
        let in_place = before.len() == now.len();
        let other = |at: usize, there: &[Arc<L>], element: &Arc<L>| {
            !in_place || there.get(at).is_none_or(|there| !Arc::ptr_eq(there, element))
        };
        for (_, element) in before.iter().enumerate().filter(|(at, e)| other(*at, now, e)) {
            edit.gone.push(key(&object(element)).clone());
        }
        let came = now.iter().enumerate().filter(|(at, e)| other(*at, before, e));
        edit.now.extend(came.map(|(_, element)| object(element)));
        (!edit.gone.is_empty() || !edit.now.is_empty()).then_some(edit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::ids::{Namespace, PodName};

    fn key(name: &str) -> PodKey {
        PodKey { namespace: Namespace::new("n").unwrap(), name: PodName::new(name).unwrap() }
    }

    fn between(before: &[Arc<PodKey>], now: &[Arc<PodKey>]) -> Option<(String, String)> {
        let names = |keys: &mut dyn Iterator<Item = &PodKey>| {
            keys.map(|k| k.name.to_string()).collect::<Vec<_>>().join(" ")
        };
        let edit = Edit::<PodKey>::between(0, before, now, Arc::clone, |k| k)?;
        Some((names(&mut edit.gone.iter()), names(&mut edit.now.iter().map(AsRef::as_ref))))
    }

    #[test]
    fn only_what_differs_is_told() {
        let all: Vec<Arc<PodKey>> = ["a", "b", "c", "d", "e"].map(|n| Arc::new(key(n))).into();
        assert_eq!(between(&all, &all.clone()), None);
        let told = |now: &[Arc<PodKey>]| between(&all, now).unwrap();
        let mut changed = all.clone();
        changed[1] = Arc::new(key("b"));
        changed[3] = Arc::new(key("d"));
        assert_eq!(told(&changed), ("b d".into(), "b d".into()));
        let mut less = all.clone();
        less.remove(2);
        assert_eq!(told(&less), ("c".into(), String::new()));
        let mut more = all.clone();
        more.insert(0, Arc::new(key("0")));
        assert_eq!(told(&more), (String::new(), "0".into()));
        assert_eq!(told(&[]), ("a b c d e".into(), String::new()));
        assert_eq!(between(&[], &all), Some((String::new(), "a b c d e".into())));
        let mut both = all.clone();
        (both[0], both[4]) = (Arc::new(key("0")), Arc::new(key("9")));
        assert_eq!(told(&both), ("a e".into(), "0 9".into()));
        both.remove(2);
        assert_eq!(told(&both), ("a b c d e".into(), "0 b d 9".into()), "who has it already passes over it");
    }
}
