//! Incremental checksums (RFC 1624) over words in memory order: the sum is independent of the byte order.

use berth_ebpf_abi::{V4, V6};

/// An address as a summand of a checksum.
pub trait Summand: Copy {
    /// Sum of the address's words.
    fn sum(self) -> u64;
    /// Sum of the complements of the address's words.
    fn complement(self) -> u64;
}

impl Summand for V4 {
    #[inline(always)]
    fn sum(self) -> u64 {
        u64::from(self)
    }

    #[inline(always)]
    fn complement(self) -> u64 {
        u64::from(!self)
    }
}

impl Summand for V6 {
    #[inline(always)]
    fn sum(self) -> u64 {
        let [a, b, c, d] = self;
        u64::from(a) + u64::from(b) + u64::from(c) + u64::from(d)
    }

    #[inline(always)]
    fn complement(self) -> u64 {
        let [a, b, c, d] = self;
        u64::from(!a) + u64::from(!b) + u64::from(!c) + u64::from(!d)
    }
}

/// Two ports as the word that they form in a packet.
#[inline(always)]
pub fn ports(src: u16, dst: u16) -> u32 {
    let [a, b] = src.to_ne_bytes();
    let [c, d] = dst.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// Difference that a change of words makes to a sum, in the form of the kernel's `__wsum`.
#[inline(always)]
pub fn difference(complement_of_old: u64, sum_of_new: u64) -> u32 {
    fold32(complement_of_old + sum_of_new)
}

/// Folds a sum to 32 bits. Sums of fewer than 2^31 words keep their value modulo 2^32 - 1.
#[inline(always)]
pub fn fold32(sum: u64) -> u32 {
    let once = (sum & 0xffff_ffff) + (sum >> 32);
    let twice = (once & 0xffff_ffff) + (once >> 32);
    (twice & 0xffff_ffff) as u32
}

/// Folds a sum to 16 bits.
#[inline(always)]
pub fn fold16(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    (twice & 0xffff) as u16
}

/// New value of a checksum field after a change.
#[inline(always)]
pub fn replace(field: u16, difference: u32) -> u16 {
    !fold16(fold32(u64::from(!field) + u64::from(difference)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(words: &[u32]) -> u16 {
        !fold16(fold32(words.iter().map(|w| u64::from(*w)).sum()))
    }

    proptest! {
        #[test]
        fn a_replaced_checksum_is_that_of_the_new_words(old: [u32; 5], new: [u32; 4]) {
            let [a, b, c, d] = new;
            let field = whole(&old);
            let change = difference([old[0], old[1], old[2], old[3]].complement(), new.sum());
            let (got, wanted) = (replace(field, change), whole(&[a, b, c, d, old[4]]));
            // In this arithmetic 0 and 0xffff are the same number.
            prop_assert!(got == wanted || (got ^ wanted == 0xffff && (got == 0 || wanted == 0)));
        }

        #[test]
        fn ports_form_the_word_in_the_packet(src: u16, dst: u16) {
            let mut bytes = [0; 4];
            bytes[..2].copy_from_slice(&src.to_ne_bytes());
            bytes[2..].copy_from_slice(&dst.to_ne_bytes());
            prop_assert_eq!(ports(src, dst).to_ne_bytes(), bytes);
        }
    }
}
