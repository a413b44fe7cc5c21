//! Fresh ids without a system call each.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use uuid::Uuid;

/// Makes version 7 UUIDs: a millisecond time, a counter within it, the maker's own bits, and bits that nobody can guess (keyed hashes, their key drawn
/// once).
#[derive(Debug, Default)]
pub(crate) struct Ids {
    key: RandomState,
    millis: u64,
    in_this_milli: u16,
    made: u64,
}

/// The counter within a millisecond has this many bits: the `rand_a` field of RFC 9562.
const COUNTER_MAX: u16 = 0xfff;

impl Ids {
    /// The next id. Ids sort in the order in which they were made, also when the clock goes backwards.
    pub(crate) fn next(&mut self, unix_millis: u64) -> Uuid {
        if unix_millis > self.millis {
            (self.millis, self.in_this_milli) = (unix_millis, 0);
        } else if self.in_this_milli == COUNTER_MAX {
            (self.millis, self.in_this_milli) = (self.millis + 1, 0);
        } else {
            self.in_this_milli += 1;
        }
        self.made += 1;
        // The first number that is hashed, 0, is the maker's.
        let [m0, m1, m2, m3, ..] = self.key.hash_one(0_u64).to_be_bytes();
        let [b0, b1, b2, b3, ..] = self.key.hash_one(self.made).to_be_bytes();
        let [c0, c1] = self.in_this_milli.to_be_bytes();
        uuid::Builder::from_unix_timestamp_millis(self.millis, &[c0, c1, m0, m1, m2, m3, b0, b1, b2, b3]).into_uuid()
    }
}

/// Whether one maker has made both: the 30 bits behind the variant are its own.
pub(crate) fn are_of_one_maker(left: Uuid, right: Uuid) -> bool {
    const MAKER: std::ops::Range<usize> = 8..12;
    left.as_bytes().get(MAKER) == right.as_bytes().get(MAKER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_of_version_7_and_sort_in_the_order_in_which_they_were_made() {
        let mut ids = Ids::default();
        let millis = [5, 5, 7, 6, 7, 8].into_iter().chain(std::iter::repeat_n(8, 10_000));
        let made: Vec<Uuid> = millis.map(|millis| ids.next(millis)).collect();
        assert!(made.is_sorted() && made.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(made.iter().all(|id| id.get_version_num() == 7 && id.get_variant() == uuid::Variant::RFC4122));
    }

    #[test]
    fn an_id_tells_its_maker() {
        let (mut left, mut right) = (Ids::default(), Ids::default());
        let of_left: Vec<Uuid> = (0..100).map(|millis| left.next(millis)).collect();
        assert!(of_left.iter().all(|id| are_of_one_maker(*id, of_left[0])));
        assert!(!are_of_one_maker(right.next(0), of_left[0]));
    }

    #[test]
    fn two_makers_never_make_the_same_id() {
        let (mut left, mut right) = (Ids::default(), Ids::default());
        let unequal = (0..1000).all(|millis| left.next(millis) != right.next(millis));
        assert!(unequal);
    }
}
