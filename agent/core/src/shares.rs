//! Slots that clients share fairly. Pure, except for its lock.
//!
//! A client may hold as many slots as are free. So a single client takes at most half of them, two
//! clients take a third each, and a client without a slot always finds a free one (the "dynamic
//! threshold" of shared-memory switches).

use crate::sync::lock;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
};

/// The slots and their holders. Clones share the same slots.
#[derive(Debug, Clone)]
pub struct Shares {
    most: usize,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    by_client: HashMap<IpAddr, usize>,
    total: usize,
}

/// One slot, released on drop.
#[derive(Debug)]
pub struct Slot {
    client: IpAddr,
    shares: Shares,
}

impl Shares {
    /// Returns `most` slots, all free.
    pub fn new(most: usize) -> Shares {
        Shares { most, held: Arc::default() }
    }

    /// A slot for that client, if its share allows one.
    pub fn take(&self, client: IpAddr) -> Option<Slot> {
        let client = client.to_canonical();
        let mut held = self.held();
        let free = self.most.saturating_sub(held.total);
        let own = held.by_client.get(&client).copied().unwrap_or(0);
        if own >= free {
            return None;
        }
        held.total += 1;
        held.by_client.insert(client, own + 1);
        Some(Slot { client, shares: self.clone() })
    }

    /// Whether no slot is held.
    pub fn unused(&self) -> bool {
        self.held().total == 0
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        lock(&self.held)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = self.shares.held();
        held.total = held.total.saturating_sub(1);
        if let Some(own) = held.by_client.get_mut(&self.client) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                held.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    fn fill(shares: &Shares, who: IpAddr) -> Vec<Slot> {
        std::iter::from_fn(|| shares.take(who)).collect()
    }

    #[test]
    fn one_client_gets_half_and_each_newcomer_finds_a_slot() {
        let shares = Shares::new(128);
        let first = fill(&shares, client(1));
        assert_eq!(first.len(), 64);
        let second = fill(&shares, client(2));
        assert_eq!(second.len(), 32);
        let others: Vec<_> = (3..8).map(|n| fill(&shares, client(n))).collect();
        assert!(others.iter().all(|slots| !slots.is_empty()), "{others:?}");
        // The IPv4-mapped address is the same client.
        assert!(shares.take("::ffff:10.0.0.1".parse().unwrap()).is_none());
        drop((first, second, others));
        assert!(shares.unused() && shares.held().by_client.is_empty());
        assert_eq!(fill(&shares, client(9)).len(), 64);
    }

    #[test]
    fn an_address_holds_at_most_half_of_the_places() {
        let shares = Shares::new(8);
        let enter = |last| shares.take([10, 0, 0, last].into());
        let mut first: Vec<Slot> = std::iter::from_fn(|| enter(1)).collect();
        assert_eq!(first.len(), 4);
        let second: Vec<Slot> = std::iter::from_fn(|| enter(2)).collect();
        assert_eq!(second.len(), 2);
        let third = enter(3).unwrap();
        assert!(enter(1).is_none() && enter(2).is_none());
        first.clear();
        drop(third);
        assert!(enter(2).is_some(), "places that are given back count for everybody");
        drop(second);
        let held = shares.held();
        assert_eq!((held.total, held.by_client.len()), (0, 0));
    }
}
