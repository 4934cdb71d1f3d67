//! Shards: a share of the tests, so that several hosts run all of them; and another order, by a seed.
//!
//! Items are dealt out in their order, one to each in turn, before anything is filtered: all hosts find the same items in
//! the same order, shards differ by one item at most, and what stands together (the variants of a slow test) is
//! spread. By a hash of the name a test would keep its shard when others are added, but shards of ten tests would have
//! none and four; what a template was made for is found by its key, wherever the test runs.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use thiserror::Error;

/// There are not more shards.
const MAX_SHARDS: u32 = 10_000;

/// One of so many shares: `2/5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 1.
    index: NonZeroU32,
    count: NonZeroU32,
}

/// Words that are no shard.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ShardError {
    /// They do not look like one.
    #[error("`{words}` is no shard: write K/N, as 2/5 for the second of five")]
    Form {
        /// They.
        words: String,
    },
    /// There are none, or too many.
    #[error("there may be 1 to {MAX_SHARDS} shards, not {count}")]
    Count {
        /// How many.
        count: u32,
    },
    /// There is no such one.
    #[error("of {count} shards there is no number {index}: they go from 1 to {count}")]
    Index {
        /// Which.
        index: u32,
        /// Of how many.
        count: u32,
    },
}

impl Shard {
    /// Its number, from 1.
    pub fn index(self) -> u32 {
        self.index.get()
    }

    /// How many there are.
    pub fn count(self) -> u32 {
        self.count.get()
    }

    /// Whether it has the item at this place, from 0, among all that there are before anything is filtered.
    pub fn has(self, place: usize) -> bool {
        place as u64 % u64::from(self.count.get()) == u64::from(self.index.get() - 1)
    }

    /// Its items of these, which are all that there are.
    pub fn of<T>(self, items: impl IntoIterator<Item = T>) -> impl Iterator<Item = T> {
        items.into_iter().enumerate().filter(move |(place, _)| self.has(*place)).map(|(_, it)| it)
    }
}

impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(words: &str) -> Result<Self, ShardError> {
        let form = || ShardError::Form { words: crate::text::one_line(words, 40) };
        // What Rust takes for a number may have a sign.
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse::<u32>().map_err(|_| form()),
            false => Err(form()),
        };
        let (index, count) = words.split_once('/').ok_or_else(form)?;
        let (index, count) = (number(index)?, number(count)?);
        let shards = NonZeroU32::new(count).filter(|count| count.get() <= MAX_SHARDS);
        let shards = shards.ok_or(ShardError::Count { count })?;
        match NonZeroU32::new(index) {
            Some(index) if index <= shards => Ok(Self { index, count: shards }),
            _ => Err(ShardError::Index { index, count }),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// Puts items into another order, for the same seed always into the same (Fisher and Yates).
pub fn shuffle<T>(seed: u64, items: &mut [T]) {
    let mut random = SplitMix(seed);
    for last in (1..items.len()).rev() {
        items.swap(last, random.below(last as u64 + 1) as usize);
    }
}

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014): part of what a seed means, so it
/// is not left to a library.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `0..end`; with 64 bits, that some come more often is not to be seen.
    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shard(words: &str) -> Shard {
        words.parse().unwrap()
    }

    #[test]
    fn a_shard_is_one_of_so_many() {
        assert_eq!((shard("2/5").index(), shard("2/5").count()), (2, 5));
        assert_eq!(shard("02/5").to_string(), "2/5");
        assert_eq!(shard("2/3").of(0..8).collect::<Vec<_>>(), [1, 4, 7]);
        assert_eq!(shard("1/1").of(0..3).count(), 3);
        let why = |words: &str| words.parse::<Shard>().unwrap_err().to_string();
        for wrong in ["", "2", "/", "2/", "/5", "+2/5", "2/5/6", "a/b", "2 / 5", "99999999999/2"] {
            assert!(why(wrong).ends_with("write K/N, as 2/5 for the second of five"), "{wrong}");
        }
        assert_eq!(why("1/0"), "there may be 1 to 10000 shards, not 0");
        assert_eq!(why("1/10001"), "there may be 1 to 10000 shards, not 10001");
        assert_eq!(why("0/5"), "of 5 shards there is no number 0: they go from 1 to 5");
        assert_eq!(why("6/5"), "of 5 shards there is no number 6: they go from 1 to 5");
    }

    /// A seed that somebody wrote down means the same in every version.
    #[test]
    fn a_seed_means_always_the_same() {
        let mut random = SplitMix(1_234_567);
        let known =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(known, [random.next(), random.next(), random.next()]);
        let mut items: Vec<_> = (0..8).collect();
        shuffle(1, &mut items);
        assert_eq!(items, [0, 3, 7, 1, 2, 6, 5, 4]);
        let mut others: Vec<_> = (0..8).collect();
        shuffle(2, &mut others);
        assert_ne!(items, others);
        shuffle::<u8>(1, &mut []);
    }

    proptest! {
        #[test]
        fn each_item_is_in_one_shard(count in 1..40_u32, len in 0..200_usize) {
            let mut seen = vec![0; len];
            for index in 1..=count {
                let its: Vec<_> = shard(&format!("{index}/{count}")).of(0..len).collect();
                let share = len / count as usize;
                prop_assert!((share..=share + 1).contains(&its.len()));
                its.into_iter().for_each(|item| seen[item] += 1);
            }
            prop_assert!(seen.iter().all(|&times| times == 1));
        }

        #[test]
        fn shuffled_they_are_the_same(seed in any::<u64>(), len in 0..100_usize) {
            let mut items: Vec<_> = (0..len).collect();
            shuffle(seed, &mut items);
            items.sort();
            prop_assert_eq!(items, (0..len).collect::<Vec<_>>());
        }

        #[test]
        fn no_words_panic(words in "\\PC{0,12}|[0-9/]{0,9}") {
            let _ = words.parse::<Shard>();
        }
    }
}
