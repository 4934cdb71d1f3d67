//! The host's randomness for the guest: two machines restored from one snapshot would draw the same numbers.

use super::{invalid, open, refused};
use crate::sys::system;
use guestline_protocol::{AddEntropyRequest, RemoteError};
use nix::errno::Errno;
use std::os::fd::AsFd;
use std::path::Path;

/// As many bits as the generator's key has, so that one seed is enough.
const MIN_SEED_LEN: usize = 32;

/// Either does: the pool is one.
const DEVICES: [&str; 2] = ["/dev/urandom", "/dev/random"];

/// Stirs the seed into the pool, credits it, and has the generator draw a new key.
///
/// # Errors
/// Invalid for a seed that is too short or too long; else what the kernel says (`EPERM`).
pub(crate) fn add(request: &AddEntropyRequest) -> Result<(), RemoteError> {
    let len = request.seed.len();
    if !(MIN_SEED_LEN..=system::MAX_SEED_LEN).contains(&len) {
        let max = system::MAX_SEED_LEN;
        return Err(invalid(format!("a seed of {len} bytes is not {MIN_SEED_LEN} to {max} bytes")));
    }
    let [first, second] = DEVICES;
    let device = open(Path::new(first), 0).or_else(|_| open(Path::new(second), 0))?;
    system::add_entropy(device.as_fd(), &request.seed)
        .map_err(|errno| refused(&format!("seed of {len} bytes for the random pool"), errno))?;
    match system::reseed(device.as_fd()) {
        // An old kernel, which reseeds in its own time.
        Err(Errno::ENOTTY | Errno::EINVAL) | Ok(()) => Ok(()),
        Err(errno) => Err(refused("reseeding the random generator", errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestline_protocol::{ByteBuf, ErrorKind};
    use std::io::Read;

    #[test]
    fn seeds_have_a_length() {
        for len in [0, 31, 513] {
            let request = AddEntropyRequest { seed: ByteBuf::from(vec![0; len]) };
            let error = add(&request).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert_eq!(error.message, format!("a seed of {len} bytes is not 32 to 512 bytes"));
        }
    }

    #[test]
    fn the_kernel_takes_a_seed() {
        for len in [32, 512] {
            let mut seed = vec![0; len];
            open(Path::new("/dev/urandom"), 0).unwrap().read_exact(&mut seed).unwrap();
            match add(&AddEntropyRequest { seed: ByteBuf::from(seed) }) {
                Ok(()) => {}
                Err(error) => assert_eq!(error.errno, Some(Errno::EPERM as i32), "{error}"),
            }
        }
    }
}
