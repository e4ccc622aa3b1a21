//! Places of connections whose client has been allowed nothing yet: strangers, and those who may nothing here.
//!
//! One address holds at most as many places as are free, so at most half of them, and whoever fills its share keeps no
//! other address out. A connection beyond the share is refused at once: it would hold a descriptor while it waits.

use berth_core::sync::lock;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};

/// The places.
#[derive(Debug)]
pub(crate) struct Newcomers {
    limit: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: BTreeMap<IpAddr, usize>,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    of: Arc<Newcomers>,
    address: IpAddr,
}

impl Newcomers {
    /// So many places.
    pub(crate) fn new(limit: usize) -> Arc<Newcomers> {
        Arc::new(Newcomers { limit, taken: Mutex::default() })
    }

    /// A place for a connection from this address; `None` where it has its share.
    pub(crate) fn enter(self: &Arc<Newcomers>, address: IpAddr) -> Option<Place> {
        let mut taken = lock(&self.taken);
        let free = self.limit.saturating_sub(taken.all);
        let own = taken.by_address.get(&address).copied().unwrap_or_default();
        if own >= free {
            return None;
        }
        taken.all = taken.all.saturating_add(1);
        taken.by_address.insert(address, own.saturating_add(1));
        Some(Place { of: Arc::clone(self), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.of.taken);
        taken.all = taken.all.saturating_sub(1);
        if let Some(own) = taken.by_address.get_mut(&self.address) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_holds_at_most_half_of_the_places() {
        let newcomers = Newcomers::new(8);
        let enter = |last| newcomers.enter([10, 0, 0, last].into());
        let mut first: Vec<Place> = std::iter::from_fn(|| enter(1)).collect();
        assert_eq!(first.len(), 4);
        let second: Vec<Place> = std::iter::from_fn(|| enter(2)).collect();
        assert_eq!(second.len(), 2);
        let third = enter(3).unwrap();
        assert!(enter(1).is_none() && enter(2).is_none());
        first.clear();
        drop(third);
        assert!(enter(2).is_some(), "places that are given back count for everybody");
        drop(second);
        let taken = lock(&newcomers.taken);
        assert_eq!((taken.all, taken.by_address.len()), (0, 0));
    }
}
