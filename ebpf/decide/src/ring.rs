//! The translations that a socket remembers: the backend of each dialled address.
//!
//! Invariants:
//! - A dialled address has one backend at a time, so the socket keeps its backend as long as that serves.
//! - Two addresses may have the same backend. Their first entry is the address that was dialled last, and the
//!   backend's answers are shown as from that address.

use crate::Family;

/// The entries of a socket, for a call that names an address.
pub trait Ring<A: Family> {
    /// Reference to an entry, ordered as in the ring.
    type Place: Copy + PartialOrd;
    /// An address with a port.
    type Addr: Copy;

    /// The first entry.
    fn first(&self) -> Self::Place;
    /// The next entry.
    fn after(&self, place: Self::Place) -> Self::Place;
    /// The entry to overwrite, which becomes the newest.
    fn oldest(&self) -> Self::Place;
    /// Number of entries, hidden from the compiler, which would copy the body of a loop for each.
    fn size(&self) -> u32;
    /// Address and port that the call names.
    fn named(&self) -> Self::Addr;
    /// Whether the entry is that of this dialled address.
    fn is_dialled(&self, place: Self::Place, addr: Self::Addr) -> bool;
    /// Whether the entry has this backend.
    fn leads_to(&self, place: Self::Place, backend: Self::Addr) -> bool;
    /// Copies the dialled address from one entry to another.
    fn copy_dialled(&self, from: Self::Place, to: Self::Place);
    /// Writes the dialled address of an entry.
    fn write_dialled(&self, place: Self::Place, addr: Self::Addr);
    /// Writes the backend of an entry.
    fn write_backend(&self, place: Self::Place, backend: Self::Addr);
}

/// The first entry for which `holds` returns true.
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

/// Makes an entry the one of its backend that was dialled last.
#[inline(always)]
pub fn again<A: Family, R: Ring<A>>(ring: &R, kept: R::Place, backend: R::Addr) {
    if let Some(there) = search(ring, |place| ring.leads_to(place, backend))
        && there < kept
    {
        // An earlier entry has the same backend and another address: the two exchange their addresses.
        ring.copy_dialled(there, kept);
        ring.write_dialled(there, ring.named());
    }
}

/// Stores the backend of the address that the call names, as the one dialled last. `kept` is the existing
/// entry of the address, if any.
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

/// As [`remember`], for a socket that connects. Such a socket has no other address to remember, so the entry
/// of the same backend is overwritten.
#[inline(always)]
pub fn remember_alone<A: Family, R: Ring<A>>(ring: &R, backend: R::Addr) {
    let place = match search(ring, |place| ring.leads_to(place, backend)) {
        Some(there) => there,
        None => ring.oldest(),
    };
    ring.write_dialled(place, ring.named());
    ring.write_backend(place, backend);
}
