//! What a guest's kernel said while a test ran: warnings, oopses, taint (`--fail-on`).
//!
//! Its log and its taint are read before the test and after it; nothing is read while it runs. Records of programs carry
//! another facility than the kernel's, which they cannot give themselves (Linux `Documentation/ABI/testing/dev-kmsg`).

use crate::job::FailOn;
use crate::text;
use guestline::guest::{Guest, Log};
use guestline::link::LinkError;

/// Bits of `/proc/sys/kernel/tainted` (Linux `Documentation/admin-guide/tainted-kernels.rst`), from 0.
const TAINTS: [(char, &str); 20] = [
    ('P', "a proprietary module was loaded"),
    ('F', "a module was loaded by force"),
    ('S', "an unsupported CPU"),
    ('R', "a module was unloaded by force"),
    ('M', "a machine check"),
    ('B', "a bad page"),
    ('U', "a program asked for it"),
    ('D', "an oops or BUG"),
    ('A', "an ACPI table was replaced"),
    ('W', "a warning"),
    ('C', "a staging driver was loaded"),
    ('I', "a workaround of firmware"),
    ('O', "a module from outside of the tree was loaded"),
    ('E', "an unsigned module was loaded"),
    ('L', "a soft lockup"),
    ('K', "a live patch"),
    ('X', "the distribution's own"),
    ('T', "structures are laid out at random"),
    ('N', "a test was run in the kernel"),
    ('J', "a dangerous call of fwctl"),
];

/// The bits that a warning and an oops set.
const WARNED: u64 = 1 << 9;
const OOPSED: u64 = 1 << 7;

/// How an oops begins; each also has its number, as in `[#1]`.
const OOPSES: [&str; 5] =
    ["BUG: ", "kernel BUG at ", "Oops: ", "general protection fault", "watchdog: BUG: "];

/// How a warning begins.
const WARNINGS: [&str; 2] = ["WARNING: ", "UBSAN: "];

/// Where a kernel's log and taint were before a test.
#[derive(Debug)]
pub(super) struct KernelWatch {
    wanted: Vec<FailOn>,
    taint: u64,
    /// The number of the first record that is looked at, where any are.
    from: Option<u64>,
}

/// What a kernel did that was not to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    /// In words.
    pub(super) reason: String,
    /// What it said.
    pub(super) line: Option<String>,
}

impl KernelWatch {
    /// Looks at a kernel before a test, if anything is wanted.
    ///
    /// # Errors
    /// [`LinkError`], also that the guest has no such log.
    pub(super) async fn begin(wanted: &[FailOn], guest: &Guest) -> Result<Option<Self>, LinkError> {
        if wanted.is_empty() {
            return Ok(None);
        }
        let mut from = None;
        if wanted.iter().any(|wanted| *wanted != FailOn::Taint) {
            let mut next = 0;
            each_record(guest, |record| next = next.max(record.number.saturating_add(1))).await?;
            from = Some(next);
        }
        Ok(Some(Self { wanted: wanted.to_vec(), taint: guest.facts().await?.taint, from }))
    }

    /// What it did since then.
    ///
    /// # Errors
    /// [`LinkError`].
    pub(super) async fn complaint(&self, guest: &Guest) -> Result<Option<Complaint>, LinkError> {
        let mut said = Said::default();
        if let Some(from) = self.from {
            each_record(guest, |record| said.hear(from, &record)).await?;
        }
        let added = guest.facts().await?.taint & !self.taint;
        Ok(judge(&self.wanted, said, added))
    }
}

/// A record of the kernel's own.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    number: u64,
    text: String,
}

/// What counts of what a kernel said: no more is kept of a guest that may say anything.
#[derive(Debug, Default)]
struct Said {
    /// The first of each.
    oops: Option<String>,
    warning: Option<String>,
}

impl Said {
    /// Hears a record, unless it was there before.
    fn hear(&mut self, from: u64, record: &Record) {
        if record.number < from {
            return;
        }
        let line = || text::one_line(record.text.trim(), 200);
        if self.oops.is_none() && is_oops(&record.text) {
            self.oops = Some(line());
        }
        if self.warning.is_none() && is_warning(&record.text) {
            self.warning = Some(line());
        }
    }
}

/// Hands out the kernel's own records; those of programs are left out.
async fn each_record(guest: &Guest, mut hand: impl FnMut(Record)) -> Result<(), LinkError> {
    let mut log = guest.log(&Log::Kernel, true, false).await?;
    while let Some(line) = log.next().await? {
        if let Some(record) = parse(&String::from_utf8_lossy(&line.text)) {
            hand(record);
        }
    }
    Ok(())
}

/// "PRIORITY,NUMBER,TIME,FLAGS;TEXT"; the priority has the facility above its three lowest bits, and the kernel's is 0.
fn parse(text: &str) -> Option<Record> {
    let (head, text) = text.split_once(';')?;
    let mut fields = head.split(',');
    let priority: u64 = fields.next()?.parse().ok()?;
    let number = fields.next()?.parse().ok()?;
    let first = text.lines().next().unwrap_or_default();
    (priority >> 3 == 0).then(|| Record { number, text: first.to_owned() })
}

fn is_oops(text: &str) -> bool {
    let numbered = || {
        let rest = text.split_once("[#").and_then(|(_, rest)| rest.split_once(']'));
        rest.is_some_and(|(number, _)| {
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    OOPSES.iter().any(|begin| text.starts_with(begin)) || numbered()
}

fn is_warning(text: &str) -> bool {
    WARNINGS.iter().any(|begin| text.starts_with(begin))
}

/// The first of what was not to be. A warning is also what is worse than one.
fn judge(wanted: &[FailOn], said: Said, added: u64) -> Option<Complaint> {
    let wants = |what: FailOn| wanted.contains(&what);
    let with_oops = wants(FailOn::Oops) || wants(FailOn::Warn);
    let complaint = |reason: &str, line| Some(Complaint { reason: reason.to_owned(), line });
    if with_oops && (said.oops.is_some() || added & OOPSED != 0) {
        return complaint("the kernel oopsed", said.oops);
    }
    if wants(FailOn::Warn) && (said.warning.is_some() || added & WARNED != 0) {
        return complaint("the kernel warned", said.warning);
    }
    if wants(FailOn::Taint) && added != 0 {
        return complaint(&format!("the kernel was tainted: {}", taint_in_words(added)), None);
    }
    None
}

/// "W (a warning), bit 30".
fn taint_in_words(bits: u64) -> String {
    let words =
        (0..64).filter(|bit| bits >> bit & 1 == 1).map(|bit: usize| match TAINTS.get(bit) {
            Some((letter, what)) => format!("{letter} ({what})"),
            None => format!("bit {bit}"),
        });
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(wanted: &[FailOn], records: &[&str], added: u64) -> Option<String> {
        found_from(0, wanted, records, added)
    }

    fn found_from(from: u64, wanted: &[FailOn], records: &[&str], added: u64) -> Option<String> {
        let mut said = Said::default();
        records.iter().filter_map(|text| parse(text)).for_each(|record| said.hear(from, &record));
        let complaint = judge(wanted, said, added)?;
        Some(format!("{}: {}", complaint.reason, complaint.line.unwrap_or_default()))
    }

    // As Linux 6.1 writes them.
    const WARNING: &str =
        "4,512,1234567,-;WARNING: CPU: 0 PID: 70 at kernel/x.c:7 init+0x5/0xff0 [x]";
    const OOPS: &str =
        "1,513,1234568,-;BUG: kernel NULL pointer dereference, address: 0000000000000000";
    const NUMBERED: &str = "4,514,1234569,-;divide error: 0000 [#1] PREEMPT SMP NOPTI";
    /// What `echo WARNING: … > /dev/kmsg` makes.
    const FAKE: &str = "12,515,1234570,-;WARNING: CPU: 0 PID: 70 at kernel/x.c:7";

    #[test]
    fn what_the_kernel_says_is_told_from_what_programs_say() {
        let warn = [FailOn::Warn];
        let warned =
            "the kernel warned: WARNING: CPU: 0 PID: 70 at kernel/x.c:7 init+0x5/0xff0 [x]";
        assert_eq!(found(&warn, &[WARNING], 0).as_deref(), Some(warned));
        assert_eq!(found(&warn, &[FAKE, "-,-,-,-;guestline: records were lost", ""], 0), None);
        assert_eq!(found(&[FailOn::Oops], &[WARNING], WARNED), None);
        assert_eq!(found(&[FailOn::Taint], &[WARNING, OOPS], 0), None);
        for oops in [OOPS, NUMBERED] {
            for wanted in [FailOn::Oops, FailOn::Warn] {
                assert!(found(&[wanted], &[oops], 0).unwrap().starts_with("the kernel oopsed: "));
            }
        }
        assert_eq!(found(&[FailOn::Oops], &["6,1,1,-;x [#abc] y", "6,2,1,-;a BUG: b"], 0), None);
    }

    #[test]
    fn what_was_there_before_does_not_count() {
        let warn = [FailOn::Warn];
        let first = "4,0,1,-;WARNING: the very first record";
        assert!(found_from(0, &warn, &[first], 0).unwrap().ends_with("the very first record"));
        assert_eq!(found_from(1, &warn, &[first], 0), None);
        let oops = found_from(513, &warn, &[WARNING, OOPS, NUMBERED], 0).unwrap();
        assert!(oops.ends_with("address: 0000000000000000"), "{oops}");
    }

    #[test]
    fn taint_is_told_in_words_and_stands_for_what_is_lost() {
        let taint = found(&[FailOn::Taint], &[], 1 | 1 << 12 | 1 << 40).unwrap();
        let words = "P (a proprietary module was loaded), O (a module from outside of the tree was loaded), bit 40";
        assert_eq!(taint, format!("the kernel was tainted: {words}: "));
        assert_eq!(found(&[FailOn::Warn], &[], WARNED).as_deref(), Some("the kernel warned: "));
        assert_eq!(found(&[FailOn::Oops], &[], OOPSED).as_deref(), Some("the kernel oopsed: "));
        assert_eq!(found(&[FailOn::Warn, FailOn::Oops], &[], 1), None);
    }
}
