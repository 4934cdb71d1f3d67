//! `guestline cache prune`.

use super::BROKEN;
use super::list::name;
use crate::args::CachePruneArgs;
use crate::commands::image::print;
use crate::context::Context;
use crate::error::CommandError;
use crate::machines::span;
use crate::table::table;
use guestline::provision::{PruneSpec, Pruned, Reason, Removal};
use guestline::text::{self, size};

pub(super) fn run(
    context: &Context,
    args: &CachePruneArgs,
    go_on: &dyn Fn() -> bool,
) -> Result<u8, CommandError> {
    let limit = args.limit.unwrap_or(context.limit);
    let spec = PruneSpec { limit: Some(limit), older_than: args.older_than, all: args.all };
    let cache = context.cache();
    let pruned = cache.prune(&spec, go_on);
    let left = cache.entries().iter().map(|entry| entry.bytes).sum();
    print(&told(&pruned, left, limit))?;
    let failed = pruned.iter().any(|pruned| matches!(pruned.removal, Removal::Failed(_)));
    Ok(if failed { BROKEN } else { 0 })
}

fn told(pruned: &[Pruned], left: u64, limit: u64) -> String {
    let (mut rows, mut freed) = (Vec::new(), 0_u64);
    for Pruned { entry, reason, removal } in pruned {
        let (word, why) = match removal {
            Removal::Removed => {
                freed = freed.saturating_add(entry.bytes);
                let why = match reason {
                    Reason::Unused(time) => format!("not used for {}", span(*time)),
                    reason => text::printable(&reason.to_string()),
                };
                ("removed", why)
            }
            Removal::InUse => ("stays", "in use".to_owned()),
            Removal::Failed(error) => ("stays", format!("cannot be removed: {error}")),
        };
        rows.push([word.to_owned(), name(entry), size(entry.bytes), why]);
    }
    let mut text = table(&rows) + &format!("freed {}, {} left", size(freed), size(left));
    if left > limit {
        text += &format!(", more than the limit of {}", size(limit));
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::super::list::tests::entries;
    use super::*;
    use std::io;

    #[test]
    fn what_went_and_what_stayed() {
        let reasons = [
            Reason::OverLimit,
            Reason::Damaged("ram was written to".to_owned()),
            Reason::Asked,
            Reason::Unused(std::time::Duration::from_secs(100)),
            Reason::LeftOver,
            Reason::OverLimit,
        ];
        let removal = |at| match at {
            0 => Removal::InUse,
            5 => Removal::Failed(io::Error::from_raw_os_error(30)),
            _ => Removal::Removed,
        };
        let pruned = entries().into_iter().zip(reasons).enumerate();
        let pruned: Vec<Pruned> = pruned
            .map(|(at, (entry, reason))| Pruned { entry, reason, removal: removal(at) })
            .collect();
        insta::assert_snapshot!(told(&pruned, 125_700_000, 100 << 20));
        assert_eq!(told(&[], 0, 1), "freed 0 B, 0 B left\n");
    }
}
