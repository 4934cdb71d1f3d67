//! What a loop that accepts connections does when the kernel refuses them, as it does while too many files are open.

use std::time::Duration;
use tokio::time::Instant;

/// The kernel refuses the next one as quickly: so long is waited.
const PAUSE: Duration = Duration::from_millis(100);

/// After so long without any, a refusal is news again.
const QUIET: Duration = Duration::from_secs(60);

/// The refusals of one loop.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    last: Option<Instant>,
}

impl Refusals {
    /// Is one to be told? Some connections may be accepted between two of them.
    pub(crate) fn is_news(&mut self) -> bool {
        self.last.replace(Instant::now()).is_none_or(|last| last.elapsed() > QUIET)
    }

    /// Waits before the next attempt.
    pub(crate) async fn pause(&self) {
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_trouble_is_told_once_and_again_when_it_comes_back() {
        let mut refusals = Refusals::default();
        let mut told = 0;
        for _ in 0..2000 {
            told += usize::from(refusals.is_news());
            refusals.pause().await;
        }
        assert_eq!(told, 1);
        tokio::time::sleep(QUIET).await;
        assert!(refusals.is_news());
    }
}
