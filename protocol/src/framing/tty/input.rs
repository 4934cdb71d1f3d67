//! Bytes that arrive on a tty, cut at zeros.

use super::MAX_ENCODED_LEN;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// Bytes from `start` to `end` have arrived and are not done with; there is no zero before `searched`.
    buffer: Vec<u8>,
    start: usize,
    searched: usize,
    end: usize,
    /// A run over [`MAX_ENCODED_LEN`] is under way: drop up to the next zero.
    is_overlong: bool,
    dropped: u64,
}

impl Input {
    pub(super) fn space(&mut self, len: usize) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.searched, self.end) = (0, 0, 0);
        } else if self.start > 0 && self.end.saturating_add(len) > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.searched = self.searched.saturating_sub(self.start);
            self.end = self.end.saturating_sub(self.start);
            self.start = 0;
        }
        let wanted = self.end.saturating_add(len);
        if wanted > self.buffer.len() {
            self.buffer.resize(wanted, 0);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    pub(super) fn filled(&mut self, len: usize) {
        self.end = self.end.saturating_add(len).min(self.buffer.len());
    }

    /// The next run between two zeros that could be a frame.
    pub(super) fn next_run(&mut self) -> Option<&[u8]> {
        loop {
            let unsearched = self.buffer.get(self.searched..self.end).unwrap_or_default();
            let Some(zero) = unsearched.iter().position(|&byte| byte == 0) else {
                self.searched = self.end;
                self.drop_overlong();
                return None;
            };
            let run = self.start..self.searched.saturating_add(zero);
            self.start = run.end.saturating_add(1);
            self.searched = self.start;
            if core::mem::take(&mut self.is_overlong) || run.len() > MAX_ENCODED_LEN {
                self.count_dropped(run.len());
            } else if !run.is_empty() {
                return self.buffer.get(run);
            }
        }
    }

    /// So many bytes were no frame.
    pub(super) fn count_dropped(&mut self, len: usize) {
        self.dropped = self.dropped.saturating_add(len as u64);
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// What arrived is of no use.
    pub(super) fn restart(&mut self) {
        *self = Self { dropped: self.dropped, ..Self::default() };
    }

    /// A run without an end takes no memory.
    fn drop_overlong(&mut self) {
        let len = self.end.saturating_sub(self.start);
        if self.is_overlong || len > MAX_ENCODED_LEN {
            self.count_dropped(len);
            *self = Self { is_overlong: true, dropped: self.dropped, ..Self::default() };
        }
    }
}
