//! What the guest is busy with, sampled: three small reads into fixed buffers, since it is done often.

use crate::linux::clock_us;
use guestline_protocol::SampleEvent;
use nix::unistd::{SysconfVar, sysconf};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// `USER_HZ`, which is this wherever the C library does not know better.
const USER_HZ: u64 = 100;

/// Samples memory and CPU use; what the kernel does not tell is 0.
pub(crate) fn sample() -> SampleEvent {
    let hz = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    let hz = hz.and_then(|hz| u64::try_from(hz).ok()).filter(|hz| *hz > 0).unwrap_or(USER_HZ);
    sample_from(Path::new("/proc"), hz)
}

fn sample_from(proc: &Path, hz: u64) -> SampleEvent {
    let mut sample = SampleEvent { clock_us: clock_us(), ..SampleEvent::default() };
    // The lines that matter are the first ones.
    let mut buffer = [0; 1024];
    let (busy, idle) = processors(read(&proc.join("stat"), &mut buffer));
    sample.cpu_busy_us = microseconds(busy, hz);
    sample.cpu_idle_us = microseconds(idle, hz);
    let memory = read(&proc.join("meminfo"), &mut buffer);
    sample.memory_total_kib = amount(memory, "MemTotal:").unwrap_or(0);
    // A kernel before 3.14 has no better word for it.
    let available = amount(memory, "MemAvailable:").or_else(|| amount(memory, "MemFree:"));
    sample.memory_available_kib = available.unwrap_or(0);
    sample.runnable = runnable(read(&proc.join("loadavg"), &mut buffer)).unwrap_or(0);
    sample
}

/// The beginning of a text, as far as it fits and is one.
fn read<'a>(path: &Path, buffer: &'a mut [u8]) -> &'a str {
    let len = File::open(path).and_then(|mut file| file.read(buffer)).unwrap_or(0);
    let bytes = buffer.get(..len).unwrap_or_default();
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// Ticks that all CPUs were busy and idle (proc_stat(5)). The guests' time is in `user` and `nice` already.
fn processors(stat: &str) -> (u64, u64) {
    let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let (mut busy, mut idle) = (0_u64, 0_u64);
    for (column, ticks) in line.split_whitespace().take(8).enumerate() {
        let ticks = ticks.parse().unwrap_or(0);
        // user, nice, system, idle, iowait, irq, softirq, steal
        let sum = if matches!(column, 3 | 4) { &mut idle } else { &mut busy };
        *sum = sum.saturating_add(ticks);
    }
    (busy, idle)
}

fn microseconds(ticks: u64, hz: u64) -> u64 {
    let microseconds = u128::from(ticks).saturating_mul(1_000_000).checked_div(u128::from(hz));
    microseconds.and_then(|us| u64::try_from(us).ok()).unwrap_or(u64::MAX)
}

/// KiB of a line of proc_meminfo(5).
fn amount(memory: &str, name: &str) -> Option<u64> {
    let text = memory.lines().find_map(|line| line.strip_prefix(name))?;
    text.split_whitespace().next()?.parse().ok()
}

/// Those that want a CPU, of `0.20 0.18 0.12 1/80 11206` (proc_loadavg(5)).
fn runnable(load: &str) -> Option<u32> {
    let (runnable, _all) = load.split_whitespace().nth(3)?.split_once('/')?;
    runnable.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_sample_is_read_from_the_kernels_texts() {
        let proc = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(proc.path().join(name), text).unwrap();
        let many = "intr 1 2 3\n".repeat(1000);
        write("stat", &format!("cpu  100 20 30 4000 500 6 7 8 50 10\ncpu0 1 1 1 1\n{many}"));
        write("meminfo", "MemTotal:       2048 kB\nMemFree:  1 kB\nMemAvailable:    1024 kB\n");
        write("loadavg", "0.20 0.18 0.12 3/80 11206\n");
        let sample = sample_from(proc.path(), 100);
        let expected = SampleEvent {
            clock_us: sample.clock_us,
            cpu_busy_us: 1_710_000,
            cpu_idle_us: 45_000_000,
            memory_total_kib: 2048,
            memory_available_kib: 1024,
            runnable: 3,
        };
        assert_eq!(sample, expected);
    }

    #[test]
    fn what_is_missing_is_nothing() {
        let proc = tempfile::tempdir().unwrap();
        let sample = sample_from(proc.path(), 100);
        assert!(sample.clock_us > 0);
        assert_eq!(sample, SampleEvent { clock_us: sample.clock_us, ..SampleEvent::default() });
        fs::write(proc.path().join("meminfo"), "MemTotal: 10 kB\nMemFree: 4 kB\n").unwrap();
        assert_eq!(sample_from(proc.path(), 100).memory_available_kib, 4);
        assert_eq!(microseconds(u64::MAX, 100), u64::MAX);
        assert_eq!(microseconds(1, 0), u64::MAX);
    }

    #[test]
    fn this_machine_is_sampled() {
        let sample = sample();
        assert!(sample.cpu_idle_us > 0 && sample.memory_available_kib > 0, "{sample:?}");
        assert!(sample.memory_total_kib >= sample.memory_available_kib);
    }
}
