//! A datagram socket in memory that behaves as with the socket hooks, for tests.

use crate::{
    Aligned, ClientIdentity, ClientLocation, Decision, Family, Maps, MemberQuery, Selection, SocketCall,
    Unserved, backend_hash, decide_into, may_keep_backend, refusal,
    ring::{Ring, again, kept, remember, search},
};
use berth_ebpf_abi::{REVERSE, Reverses, ServiceKey};
use core::cell::RefCell;

/// An unconnected datagram socket.
#[derive(Debug, Clone)]
pub struct Socket<A> {
    /// Location of the socket.
    pub from: ClientLocation<A>,
    /// Cookie of the socket.
    pub cookie: u64,
    /// Translations that the socket remembers.
    pub ring: RefCell<Reverses<A>>,
}

/// Result of sending a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent<A> {
    /// The datagram goes to the address that the call names.
    AsItIs,
    /// The datagram goes to a backend.
    To(A, u16),
    /// The call fails with this error.
    Failed(i32),
}

impl<A: Family> Socket<A> {
    /// A socket that remembers no translation.
    pub fn new(from: ClientLocation<A>, cookie: u64) -> Socket<A> {
        Socket { from, cookie, ring: RefCell::default() }
    }

    /// Sends a datagram to the address and port in `key`.
    pub fn send<M: Maps<A>>(&self, maps: &M, key: &ServiceKey<A>) -> Sent<A> {
        let call = Call { socket: self, key };
        let kept = kept(&call);
        if let Some(kept) = kept {
            let entry = self.ring.borrow().entries[kept];
            let backend = (entry.backend, entry.backend_port);
            let (mut key, mut asked) = (Aligned(*key), MemberQuery::default());
            (asked.member.addr, asked.member.port) = backend;
            if may_keep_backend(maps, &mut key, &mut asked) {
                again(&call, kept, backend);
                return Sent::To(backend.0, backend.1);
            }
        }
        let (mut key, mut selection) = (Aligned(*key), Selection::default());
        match decide_into(maps, &mut key, Sender(self), &mut selection) {
            Decision::To(..) => {
                let backend = (selection.last.backend.addr, selection.last.backend.port);
                remember(&call, kept, backend);
                Sent::To(backend.0, backend.1)
            }
            decision => refusal(Unserved::of(&decision), self.from == ClientLocation::Host, SocketCall::Send)
                .map_or(Sent::AsItIs, Sent::Failed),
        }
    }

    /// Address and port that a client sees as the source of a backend's answer.
    pub fn shown(&self, addr: A, port: u16) -> (A, u16) {
        let key = ServiceKey::default();
        let call = Call { socket: self, key: &key };
        match search(&call, |place| call.leads_to(place, (addr, port))) {
            Some(at) => {
                let ring = self.ring.borrow();
                (ring.entries[at].addr, ring.entries[at].port)
            }
            None => (addr, port),
        }
    }
}

/// The socket as a client.
#[derive(Debug, Clone, Copy)]
struct Sender<'s, A>(&'s Socket<A>);

impl<A: Family> ClientIdentity<A> for Sender<'_, A> {
    fn is_host(self) -> bool {
        self.0.from.is_host()
    }

    fn outside(self) -> u32 {
        self.0.from.outside()
    }

    fn put_addr(self, into: &mut A) {
        self.0.from.put_addr(into);
    }

    fn backend_hash<M: Maps<A>>(self, _maps: &M, service: u32) -> u32 {
        backend_hash(self.0.cookie, service)
    }
}

/// A call that names an address.
struct Call<'s, A> {
    socket: &'s Socket<A>,
    key: &'s ServiceKey<A>,
}

impl<A: Family> Ring<A> for Call<'_, A> {
    type Place = usize;
    type Addr = (A, u16);

    fn first(&self) -> usize {
        0
    }

    fn after(&self, place: usize) -> usize {
        place + 1
    }

    fn oldest(&self) -> usize {
        let mut ring = self.socket.ring.borrow_mut();
        let place = ring.next as usize % REVERSE;
        ring.next = ring.next.wrapping_add(1);
        place
    }

    fn size(&self) -> u32 {
        REVERSE as u32
    }

    fn named(&self) -> (A, u16) {
        (self.key.addr, self.key.port)
    }

    fn is_dialled(&self, place: usize, addr: (A, u16)) -> bool {
        let entry = &self.socket.ring.borrow().entries[place];
        (entry.addr, entry.port) == addr
    }

    fn leads_to(&self, place: usize, backend: (A, u16)) -> bool {
        let entry = &self.socket.ring.borrow().entries[place];
        (entry.backend, entry.backend_port) == backend
    }

    fn copy_dialled(&self, from: usize, to: usize) {
        let mut ring = self.socket.ring.borrow_mut();
        let entry = ring.entries[from];
        (ring.entries[to].addr, ring.entries[to].port) = (entry.addr, entry.port);
    }

    fn write_dialled(&self, place: usize, addr: (A, u16)) {
        let entry = &mut self.socket.ring.borrow_mut().entries[place];
        (entry.addr, entry.port) = addr;
    }

    fn write_backend(&self, place: usize, backend: (A, u16)) {
        let entry = &mut self.socket.ring.borrow_mut().entries[place];
        (entry.backend, entry.backend_port) = backend;
    }
}
