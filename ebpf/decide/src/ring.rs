//! What a socket remembers: which backend it was given for which address it dialled.
//!
//! Invariants:
//! - A dialled address has one backend at a time, so a socket stays with it for as long as that serves.
//! - Two addresses may lead to one backend. The entry that was dialled last is the first of them: an answer of the backend
//!   is shown as from that address.

use crate::Family;

/// The entries of a socket, for a call that names an address.
pub trait Ring<A: Family> {
    /// Where an entry lies; the order is that of the ring.
    type Place: Copy + PartialOrd;
    /// An address with a port.
    type Addr: Copy;

    /// The first entry.
    fn first(&self) -> Self::Place;
    /// The next one.
    fn after(&self, place: Self::Place) -> Self::Place;
    /// The entry to be overwritten, which is the newest then.
    fn oldest(&self) -> Self::Place;
    /// How many there are. The compiler does not see it: it would write a loop's body once for each.
    fn size(&self) -> u32;
    /// What the call names.
    fn named(&self) -> Self::Addr;
    /// Whether an entry is of this dialled address.
    fn is_dialled(&self, place: Self::Place, addr: Self::Addr) -> bool;
    /// Whether an entry leads to this backend.
    fn leads_to(&self, place: Self::Place, backend: Self::Addr) -> bool;
    /// Copies the dialled address of one entry to another.
    fn copy_dialled(&self, from: Self::Place, to: Self::Place);
    /// Writes the dialled address.
    fn write_dialled(&self, place: Self::Place, addr: Self::Addr);
    /// Writes the backend.
    fn write_backend(&self, place: Self::Place, backend: Self::Addr);
}

/// The first entry of which this holds.
#[inline(always)]
pub fn search<A: Family, R: Ring<A>>(ring: &R, holds: impl Fn(R::Place) -> bool) -> Option<R::Place> {
    let mut left = ring.size();
    let mut here = ring.first();
    loop {
        if holds(here) {
            return Some(here);
        }
        left -= 1;
        if left == 0 {
            return None;
        }
        here = ring.after(here);
    }
}

/// The entry of the address that the call names.
#[inline(always)]
pub fn kept<A: Family, R: Ring<A>>(ring: &R) -> Option<R::Place> {
    let named = ring.named();
    search(ring, |place| ring.is_dialled(place, named))
}

/// Makes an entry the last one of its backend that was dialled.
#[inline(always)]
pub fn again<A: Family, R: Ring<A>>(ring: &R, kept: R::Place, backend: R::Addr) {
    if let Some(there) = search(ring, |place| ring.leads_to(place, backend))
        && there < kept
    {
        // Another address leads there, by an earlier entry: the two change places.
        ring.copy_dialled(there, kept);
        ring.write_dialled(there, ring.named());
    }
}

/// Remembers that the address which the call names leads to this backend, as the last one that was dialled. `kept` is the
/// entry of the address, where there is one.
#[inline(always)]
pub fn remember<A: Family, R: Ring<A>>(ring: &R, kept: Option<R::Place>, backend: R::Addr) {
    let there = search(ring, |place| ring.leads_to(place, backend));
    let mut place = match kept {
        Some(kept) => kept,
        None => ring.oldest(),
    };
    ring.write_backend(place, backend);
    if let Some(there) = there
        && there < place
    {
        ring.copy_dialled(there, place);
        place = there;
    }
    ring.write_dialled(place, ring.named());
}

/// The same for a socket that is being connected, which has no other address to remember: an entry of the backend is
/// overwritten.
#[inline(always)]
pub fn remember_alone<A: Family, R: Ring<A>>(ring: &R, backend: R::Addr) {
    let place = match search(ring, |place| ring.leads_to(place, backend)) {
        Some(there) => there,
        None => ring.oldest(),
    };
    ring.write_dialled(place, ring.named());
    ring.write_backend(place, backend);
}
