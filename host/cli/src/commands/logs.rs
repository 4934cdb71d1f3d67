//! `guestline logs`: a log of a named machine.

use crate::args::{ClockArg, LogsArgs};
use crate::error::CommandError;
use crate::machines::{self, Failure, Up};
use guestline::guest::{Log, LogLine};
use guestline::link::LinkError;
use guestline::supervise;
use guestline::text;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// How often a console that is followed is looked at.
const LOOK: Duration = Duration::from_millis(200);

pub(crate) fn run(args: &LogsArgs) -> Result<u8, CommandError> {
    let which = &args.log;
    let log = match (&which.file, which.kernel, which.journal, which.syslog) {
        (Some(file), ..) => Some(Log::File(file.as_bytes().to_vec())),
        (_, true, ..) => Some(Log::Kernel),
        (_, _, true, _) => Some(Log::Journal),
        (.., true) => Some(Log::Syslog),
        _ => None,
    };
    machines::run(|dirs| async move {
        match log {
            None => console(&machines::find(dirs, &args.name).await?, args.follow).await,
            Some(log) => follow(args, dirs, &log).await,
        }
    })
}

/// The console as the supervisor records it: escaped, with the host's times.
async fn console(up: &Up, follow: bool) -> Result<u8, Failure> {
    let Some(path) = console_of(up) else {
        let name = &up.name;
        return Err(Failure::new(format!("`{name}` has no console that this host records")));
    };
    let mut file = tokio::fs::File::open(&path).await?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        // Looked at before the read: what was written before the end is read.
        let gone = follow && !path.exists();
        loop {
            let len = file.read(&mut buffer).await?;
            if len == 0 {
                break;
            }
            if !say(&buffer[..len])? {
                return Ok(0);
            }
        }
        if !follow {
            return Ok(0);
        }
        if gone {
            if let Some(word) = supervise::last_word(&up.dirs, &up.name) {
                eprintln!("{} is gone: {}", up.name, text::printable(&word.why));
            }
            return Ok(0);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A machine that is booting has not said yet where its console is; it is the first of its run.
fn console_of(up: &Up) -> Option<PathBuf> {
    let booting = up.status.endpoint.is_none().then(|| up.folder.join("1/console.log"));
    up.status.console.clone().or(booting)
}

async fn follow(args: &LogsArgs, dirs: guestline::dirs::Dirs, log: &Log) -> Result<u8, Failure> {
    let attached = machines::attach(dirs, &args.name).await?;
    let wrong = async |error: LinkError| attached.up.explain(error).await;
    let mut lines = match attached.guest.log(log, true, args.follow).await {
        Ok(lines) => lines,
        Err(error) => return Err(wrong(error).await),
    };
    loop {
        match lines.next().await {
            Ok(Some(line)) => {
                let line = if *log == Log::Kernel { kernel_line(line) } else { line };
                if !say(shown(&line, args.clock).as_bytes())? {
                    return Ok(0);
                }
            }
            Ok(None) => return Ok(0),
            Err(error) => return Err(wrong(error).await),
        }
    }
}

/// A record of /dev/kmsg, "6,358,1871011,-;text" with lines of a dictionary behind it (Linux
/// `Documentation/ABI/testing/dev-kmsg`), as dmesg(1) shows it.
fn kernel_line(line: LogLine) -> LogLine {
    let first = line.text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let parts = first.iter().position(|&byte| byte == b';').map(|at| first.split_at(at));
    let text = parts.and_then(|(head, text)| {
        let mut fields = str::from_utf8(head).ok()?.split(',').skip(2);
        let us: u64 = fields.next()?.parse().ok()?;
        let mut shown = format!("[{:5}.{:06}] ", us / 1_000_000, us % 1_000_000).into_bytes();
        shown.extend(unescape(&text[1..]));
        Some(shown)
    });
    match text {
        Some(text) => LogLine { text, ..line },
        None => line,
    }
}

/// The kernel writes what is not printable, and the backslash, as `\xHH`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, behind)) = rest.split_first() {
        let hex = behind.strip_prefix(b"x").and_then(|hex| str::from_utf8(hex.get(..2)?).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    bytes
}

/// False when nobody reads any more.
fn say(bytes: &[u8]) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn shown(line: &LogLine, clock: ClockArg) -> String {
    let text = line.to_text();
    match clock {
        ClockArg::Host => format!("{} {text}\n", time(line.host_us)),
        ClockArg::Guest => format!("{} {text}\n", time(line.guest_us)),
        ClockArg::Both => format!("{} {} {text}\n", time(line.host_us), time(line.guest_us)),
    }
}

/// "2026-07-31T12:00:00.123456Z" (RFC 3339). Days to dates as in H. Hinnant's `civil_from_days`.
fn time(us: u64) -> String {
    let (seconds, micros) = (us / 1_000_000, us % 1_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_the_kernel_are_lines() {
        let of = |text: &str| {
            let line = LogLine { host_us: 1, guest_us: 2, text: text.as_bytes().to_vec() };
            String::from_utf8(kernel_line(line).text).unwrap()
        };
        let record = "6,358,1871011,-;ACPI: \\x5c_SB_.GSIH\n SUBSYSTEM=acpi\n";
        assert_eq!(of(record), "[    1.871011] ACPI: \\_SB_.GSIH");
        assert_eq!(of("no record"), "no record");
        assert_eq!(of("6,1,2,-;cut \\x5"), "[    0.000002] cut \\x5");
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(time(951_782_400_000_001), "2000-02-29T00:00:00.000001Z");
        assert_eq!(time(1_700_000_000_123_456), "2023-11-14T22:13:20.123456Z");
        assert_eq!(time(4_102_444_799_999_999), "2099-12-31T23:59:59.999999Z");
    }
}
