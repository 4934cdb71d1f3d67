//! How a machine ended, in words.

use super::control::How;
use crate::capture::{ConsoleLine, PANIC_MARK};
use crate::machine::Ending;
use crate::text;
use std::time::Instant;

/// Why a machine ended.
pub(super) struct End {
    pub(super) how: How,
    pub(super) ending: Option<Ending>,
    pub(super) link: Option<String>,
}

/// The kernel's own words, since then.
pub(super) fn has_panicked(console: &[ConsoleLine], since: Instant) -> bool {
    console.iter().any(|line| line.at >= since && line.text.contains(PANIC_MARK))
}

/// For people: "it powered itself off".
pub(super) fn in_words(end: &End, console: &[ConsoleLine]) -> String {
    match end.how {
        How::Up => "its supervisor was killed".to_owned(),
        How::NeverUp => "it never came up".to_owned(),
        How::Down => "it was taken down".to_owned(),
        How::Killed => "it was taken down, and killed".to_owned(),
        How::LetGo => "it was let go".to_owned(),
        How::PoweredOff => "it powered itself off".to_owned(),
        How::Reset => "it reset".to_owned(),
        How::Panicked => {
            let panic = console.iter().rev().find_map(|line| {
                let at = line.text.find(PANIC_MARK)?;
                Some(text::printable(line.text.get(at..)?.trim_end()))
            });
            match panic {
                Some(line) => format!("it panicked: {line}"),
                None => "it panicked".to_owned(),
            }
        }
        How::QemuDied => match &end.ending {
            Some(Ending::QemuDied { how, stderr, .. }) => match stderr.lines().last() {
                Some(line) => format!("QEMU {how}: {}", text::printable(line)),
                None => format!("QEMU {how}"),
            },
            _ => "QEMU died".to_owned(),
        },
        How::LinkEnded => {
            format!("its link ended: {}", end.link.as_deref().unwrap_or("the link is gone"))
        }
    }
}
