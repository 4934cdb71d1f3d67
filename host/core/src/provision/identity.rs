//! What makes a machine itself: its time, its randomness, its names. A machine that was restored has all of that from the
//! one that was saved; it is given its own before anything runs in it. One that has booted is treated alike.

use super::lease::LeaseError;
use crate::guest::{Guest, Skew};
use guestline_protocol::{IdentityRequest, NicIdentity};
use ulid::Ulid;

/// Sets the guest's clock, stirs the host's randomness into its own, and gives it its names and addresses. Tells how far
/// the clock was off.
///
/// # Errors
/// [`LeaseError::Settle`].
pub(super) async fn settle(
    guest: &Guest,
    hostname: &str,
    nics: Vec<NicIdentity>,
) -> Result<Skew, LeaseError> {
    let identity = IdentityRequest {
        hostname: Some(hostname.to_owned()),
        machine_id: Some(format!("{:032x}", draw())),
        nics,
        ..IdentityRequest::default()
    };
    // At once: each is a round trip, and none waits for another.
    let (skew, seeded, named) =
        tokio::join!(guest.set_clock(), guest.add_entropy(), guest.set_identity(identity));
    seeded.and(named).and(skew).map_err(LeaseError::Settle)
}

/// A host name that no other machine has, such as `tiny-3f9a2c1e`.
pub(super) fn hostname(image: &str) -> String {
    format!("{image}-{:08x}", draw() & 0xffff_ffff)
}

/// 128 random bits.
pub(super) fn draw() -> u128 {
    Ulid::generate().random() << 64 | Ulid::generate().random() & u128::from(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_never_the_same() {
        let names: std::collections::HashSet<String> =
            (0..1000).map(|_| hostname("tiny")).collect();
        assert_eq!(names.len(), 1000);
        assert!(
            names.iter().all(|name| name.len() == 13 && name.starts_with("tiny-")),
            "{names:?}"
        );
        assert_ne!(draw(), draw());
    }
}
