//! The checksum of a file's content: XXH64 with seed 0 (xxHash specification 0.1.1), which costs little also where a CPU
//! is emulated.
//!
//! The agent is built for size but for this crate: every byte of a transfer passes here.
#![forbid(unsafe_code)]

use std::hash::Hasher;
use twox_hash::XxHash64;

/// A checksum in the making.
#[derive(Debug, Clone)]
pub struct Checksum(XxHash64);

impl Default for Checksum {
    fn default() -> Self {
        Self(XxHash64::with_seed(0))
    }
}

impl Checksum {
    /// Takes more bytes.
    #[inline(never)]
    pub fn write(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The checksum of all so far.
    #[inline(never)]
    pub fn finish(&self) -> u64 {
        self.0.finish()
    }

    /// The checksum of these bytes.
    pub fn of(bytes: &[u8]) -> u64 {
        let mut checksum = Self::default();
        checksum.write(bytes);
        checksum.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_xxh64() {
        // The specification's value for nothing, and a known one.
        assert_eq!(Checksum::default().finish(), 0xef46_db37_51d8_e999);
        assert_eq!(Checksum::of(b"abc"), 0x44bc_2cf5_ad77_0999);
    }

    #[test]
    fn pieces_give_the_same() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for cut in [0, 1, 31, 32, 500, 1000] {
            let mut checksum = Checksum::default();
            checksum.write(&bytes[..cut]);
            checksum.write(&bytes[cut..]);
            assert_eq!(checksum.finish(), Checksum::of(&bytes));
        }
    }
}
