//! Signs of life.

use super::{Guest, Way};
use crate::link::{LinkError, unexpected};
use guestline_protocol::{PingRequest, Reply, Request};
use std::time::{Duration, Instant};

/// What several pings gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PingStatistics {
    /// How many were answered; the first one that is not ends the series.
    pub count: u32,
    /// The quickest.
    pub min: Duration,
    /// Half took no longer.
    pub median: Duration,
    /// Of a hundred, ninety-nine took no longer.
    pub p99: Duration,
    /// The slowest.
    pub max: Duration,
    /// Their sum by their number.
    pub mean: Duration,
}

impl PingStatistics {
    /// Of these times; none for none.
    pub fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        let at = |share: f64| {
            let index = (share * times.len() as f64).ceil() as usize;
            times.get(index.saturating_sub(1)).copied()
        };
        let count = u32::try_from(times.len()).unwrap_or(u32::MAX);
        Some(Self {
            count,
            min: *times.first()?,
            median: at(0.5)?,
            p99: at(0.99)?,
            max: *times.last()?,
            mean: times.iter().sum::<Duration>() / count,
        })
    }
}

impl Guest {
    /// Asks for a sign of life and returns how long it took.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn ping(&self) -> Result<Duration, LinkError> {
        let link = match &self.way {
            Way::Agent(link) => link,
            Way::Qga(qga) => return qga.ping().await,
        };
        let started = Instant::now();
        let token = 0x6775_6573;
        match link.ask(&Request::Ping(PingRequest { token })).await? {
            Reply::Ping(pong) if pong.token == token => Ok(started.elapsed()),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks for so many signs of life, with a pause after each.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn ping_times(
        &self,
        count: u32,
        pause: Duration,
    ) -> Result<Vec<Duration>, LinkError> {
        let mut times = Vec::new();
        for number in 0..count {
            times.push(self.ping().await?);
            if !pause.is_zero() && number + 1 < count {
                tokio::time::sleep(pause).await;
            }
        }
        Ok(times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_a_hundred() {
        let times = (1..=100).map(Duration::from_millis).collect();
        let of = PingStatistics::of(times).unwrap();
        let ms = |d: Duration| d.as_micros();
        assert_eq!((of.count, ms(of.min), ms(of.max)), (100, 1_000, 100_000));
        assert_eq!((ms(of.median), ms(of.p99), ms(of.mean)), (50_000, 99_000, 50_500));
        assert_eq!(PingStatistics::of(vec![]), None);
    }
}
