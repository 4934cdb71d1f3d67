//! The guest's clock, randomness, identity, power and file systems.

use super::{Guest, Way};
use crate::clock::now_us;
use crate::link::{LinkError, clean, unexpected};
use guestline_protocol::{
    AddEntropyRequest, ByteBuf, FreezeRequest, IdentityRequest, PowerAction, PowerRequest, Reply,
    Request, SetClockRequest, ThawRequest,
};
use std::io::Read;
use std::time::{Duration, Instant};

/// So many random bytes are given at a time.
const SEED_LEN: usize = 64;

/// How far the guest's clock was from the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skew {
    /// Guest's time less host's, microseconds.
    pub micros: i64,
    /// It cannot be told more exactly than this, for the way there and back.
    pub error: Duration,
}

impl Skew {
    /// A guest that said `guest_us` at some time between `before` and `after` it.
    fn of(guest_us: u64, before_us: u64, took: Duration) -> Self {
        let host_us = before_us.saturating_add((took / 2).as_micros() as u64);
        let micros = i128::from(guest_us) - i128::from(host_us);
        let micros = i64::try_from(micros).unwrap_or(if micros < 0 { i64::MIN } else { i64::MAX });
        Self { micros, error: took / 2 }
    }
}

impl Guest {
    /// Sets the guest's wall clock to the host's and tells how far off it was.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn set_clock(&self) -> Result<Skew, LinkError> {
        let (before_us, began) = (now_us(), Instant::now());
        let link = match &self.way {
            Way::Agent(link) => link,
            Way::Qga(qga) => {
                let guest_us = qga.clock_us().await?;
                let skew = Skew::of(guest_us, before_us, began.elapsed());
                qga.set_clock(now_us()).await?;
                return Ok(skew);
            }
        };
        let request = SetClockRequest { clock_us: before_us };
        match link.ask(&Request::SetClock(request)).await? {
            Reply::SetClock(set) => Ok(Skew::of(set.before_us, before_us, began.elapsed())),
            other => Err(unexpected(&other)),
        }
    }

    /// How far the guest's wall clock is from the host's.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn skew(&self) -> Result<Skew, LinkError> {
        let (before_us, began) = (now_us(), Instant::now());
        let link = match &self.way {
            Way::Agent(link) => link,
            Way::Qga(qga) => {
                let guest_us = qga.clock_us().await?;
                return Ok(Skew::of(guest_us, before_us, began.elapsed()));
            }
        };
        let ping = Request::Ping(guestline_protocol::PingRequest { token: before_us });
        match link.ask(&ping).await? {
            Reply::Ping(pong) => Ok(Skew::of(pong.clock_us, before_us, began.elapsed())),
            other => Err(unexpected(&other)),
        }
    }

    /// Stirs the host's randomness into the guest's and reseeds its generator.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn add_entropy(&self) -> Result<(), LinkError> {
        let what = "add randomness to the guest's";
        let link = self.link_to(what)?;
        let mut seed = vec![0; SEED_LEN];
        // The host's own source does not block (random(4)); without one there is nothing to give.
        let read =
            std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut seed));
        if read.is_err() {
            let what = "give randomness of a host that has none";
            return Err(LinkError::Unsupported { transport: link.transport(), what });
        }
        let request = Request::AddEntropy(AddEntropyRequest { seed: ByteBuf::from(seed) });
        self.done(&request, what).await
    }

    /// Gives the guest an identity; what is absent in the request stays.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn set_identity(&self, identity: IdentityRequest) -> Result<(), LinkError> {
        self.done(&Request::Identity(identity), "give the guest an identity").await
    }

    /// Powers the guest off. The machine's end tells when that is done.
    ///
    /// # Errors
    /// [`LinkError`], though not when the guest was quicker than its answer.
    pub async fn power_off(&self) -> Result<(), LinkError> {
        self.power(PowerAction::Off, false).await
    }

    /// Boots the guest again. [`Guest::reconnect`] waits for it.
    ///
    /// # Errors
    /// As [`Guest::power_off`].
    pub async fn reboot(&self) -> Result<(), LinkError> {
        self.power(PowerAction::Reboot, false).await
    }

    /// Ends the guest in any way; `force` goes past syncing and past its init.
    ///
    /// # Errors
    /// As [`Guest::power_off`].
    pub async fn power(&self, action: PowerAction, force: bool) -> Result<(), LinkError> {
        let link = match &self.way {
            Way::Agent(link) => link,
            Way::Qga(qga) => return qga.power(&action, force).await,
        };
        match link.ask(&Request::Power(PowerRequest { action, force })).await {
            Ok(Reply::Leaving(_)) | Err(LinkError::Restarted) => Ok(()),
            Err(error) if error.is_closed() => Ok(()),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(error),
        }
    }

    /// Stops writing to the file system that is mounted at a path, until it is thawed or the session ends.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn freeze(&self, path: &[u8]) -> Result<(), LinkError> {
        if let Way::Qga(qga) = &self.way {
            return qga.freeze(path).await;
        }
        let request = Request::Freeze(FreezeRequest { path: ByteBuf::from(path) });
        self.done(&request, "freeze a file system").await
    }

    /// Goes on writing to a frozen file system; a qemu-guest-agent, to all that are frozen.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn thaw(&self, path: &[u8]) -> Result<(), LinkError> {
        if let Way::Qga(qga) = &self.way {
            return qga.thaw().await;
        }
        let request = Request::Thaw(ThawRequest { path: ByteBuf::from(path) });
        self.done(&request, "thaw a file system").await
    }

    /// A request that is answered by its being done.
    pub(super) async fn done(
        &self,
        request: &Request,
        what: &'static str,
    ) -> Result<(), LinkError> {
        match self.link_to(what)?.ask(request).await? {
            Reply::Done(_) => Ok(()),
            Reply::Error(error) => Err(LinkError::Refused(clean(error))),
            other => Err(unexpected(&other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skew_is_what_is_left_of_half_the_way() {
        let skew = Skew::of(1_000_000, 3_000_000, Duration::from_millis(2));
        assert_eq!(skew, Skew { micros: -2_001_000, error: Duration::from_millis(1) });
        assert_eq!(Skew::of(u64::MAX, 0, Duration::ZERO).micros, i64::MAX);
    }
}
