//! Which accelerator runs the guest's code: KVM only when it has been seen to run it.
//!
//! `/dev/kvm` opens on hosts where no 64-bit guest ever gets anywhere (nested set-ups). So a child
//! process runs three tiny guests ([`probe`]) under limits on its CPU and wall time, and the
//! answer is remembered until the host boots again.

pub mod probe;

use crate::dirs::Dirs;
use crate::host::boot_id;
use crate::recall;
use crate::sys;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const KVM: &str = "/dev/kvm";

/// In the cache folder.
const REMEMBERED: &str = "acceleration.json";

/// CPU time that a probe may take; one that works takes a tenth of it. Also limited from inside, see
/// [`probe`].
const CPU_PATIENCE: Duration = Duration::from_millis(250);

/// Wall time that it may take. A host too busy to tell gets no answer that is remembered.
const WALL_PATIENCE: Duration = Duration::from_millis(900);

/// What runs the guest's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The host's CPU.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Accel {
    /// The CPU model that a guest is given. Under TCG without the promise of quick string instructions: it translates them
    /// byte by byte, and a kernel that believes in them copies at a fifth of the speed (docs/link.md).
    pub fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "max,erms=off,fsrm=off",
        }
    }

    /// As QEMU's `-accel` takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// What the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccelChoice {
    /// KVM where it works, else TCG.
    Auto,
    /// This one, whatever the probe would say.
    Only(Accel),
}

/// What is used, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceleration {
    /// What is used.
    pub accel: Accel,
    /// Why, as a clause.
    pub why: String,
    /// The probe ran just now; otherwise the answer was known.
    #[serde(skip)]
    pub fresh: bool,
}

/// How to run the probe: this program with these arguments has to call [`probe::main`].
#[derive(Debug, Clone)]
pub struct ProbeProgram {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

/// Decides. `again` runs the probe even when its answer is remembered.
pub fn decide(dirs: &Dirs, choice: AccelChoice, probe: &ProbeProgram, again: bool) -> Acceleration {
    let answer = |accel, why: &str| Acceleration { accel, why: why.to_owned(), fresh: false };
    match choice {
        AccelChoice::Only(accel) => return answer(accel, "as asked"),
        AccelChoice::Auto => {}
    }
    let device = match OpenOptions::new().read(true).write(true).open(KVM) {
        Ok(_) => fs::metadata(KVM).map(|found| (found.rdev(), found.ino())).unwrap_or_default(),
        Err(error) => return answer(Accel::Tcg, &why_closed(&error)),
    };
    let key = Key { boot_id: boot_id(), device };
    let known = recall::recall(dirs, REMEMBERED);
    if let Some(known) = known.filter(|known: &Known| known.key == key && !again) {
        return known.acceleration;
    }
    let answered = run_probe(probe);
    let mut acceleration = match &answered {
        Ok(()) => answer(Accel::Kvm, "64-bit guest code runs on /dev/kvm"),
        Err(Unusable { why, .. }) => answer(Accel::Tcg, why),
    };
    if answered.is_ok() || answered.is_err_and(|unusable| unusable.sure) {
        recall::keep(dirs, REMEMBERED, &Known { key, acceleration: acceleration.clone() });
    }
    acceleration.fresh = true;
    acceleration
}

/// The answer holds for this boot of the host and this device.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    boot_id: String,
    device: (u64, u64),
}

#[derive(Debug, Serialize, Deserialize)]
struct Known {
    key: Key,
    acceleration: Acceleration,
}

fn why_closed(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "this host has no /dev/kvm".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "/dev/kvm may not be opened by this user; who is in its group may".to_owned()
        }
        _ => format!("/dev/kvm does not open: {error}"),
    }
}

/// KVM is not to be used.
#[derive(Debug)]
struct Unusable {
    why: String,
    /// The probe came to an answer; otherwise the host was too busy to tell.
    sure: bool,
}

/// Runs the probe in a child and waits for it, or kills it.
fn run_probe(probe: &ProbeProgram) -> Result<(), Unusable> {
    let mut command = Command::new(&probe.program);
    command.args(&probe.args).stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped());
    sys::die_with_us(&mut command);
    let mut child = command.spawn().map_err(|error| Unusable {
        why: format!("the probe `{}` cannot be run: {error}", probe.program.display()),
        sure: false,
    })?;
    let started = Instant::now();
    let sure = loop {
        match child.try_wait() {
            Ok(Some(_)) => break true,
            Ok(None) if cpu_time(child.id()) > CPU_PATIENCE => break true,
            Ok(None) if started.elapsed() < WALL_PATIENCE => {
                std::thread::sleep(Duration::from_millis(2));
            }
            _ => break false,
        }
    };
    let _ = child.kill();
    let _ = child.wait();
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        let _ = io::Read::read_to_string(&mut stdout, &mut said);
    }
    probe::verdict(&said).map_err(|why| match sure {
        true => Unusable { why, sure },
        false => Unusable { why: format!("{why} (the host is too busy to be sure)"), sure },
    })
}

/// User and system time of a process (proc_pid_stat(5), fields 14 and 15, ticks of 10 ms).
fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the host would take with a probe that does what `script` does.
    fn decided(script: &str) -> (Acceleration, bool, Duration) {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(home.path());
        let args = vec!["-c".into(), script.into()];
        let probe = ProbeProgram { program: "/bin/sh".into(), args };
        let began = Instant::now();
        let acceleration = match run_probe(&probe) {
            Ok(()) => Accel::Kvm,
            Err(_) => Accel::Tcg,
        };
        let took = began.elapsed();
        let decided = decide(&dirs, AccelChoice::Auto, &probe, false);
        // Where there is a device, the probe decides; elsewhere there is nothing to probe.
        if OpenOptions::new().read(true).write(true).open(KVM).is_ok() {
            assert_eq!(decided.accel, acceleration);
        } else {
            assert_eq!(decided.accel, Accel::Tcg);
        }
        (decided, dirs.cache.join("acceleration.json").exists(), took)
    }

    #[test]
    fn a_host_whose_guests_never_get_anywhere_is_found_out_in_time() {
        let hangs = "echo begin real; echo done real; echo begin long; while :; do :; done";
        let (decided, _, took) = decided(hangs);
        assert_eq!(decided.accel, Accel::Tcg);
        assert!(took < PATIENCE_IN_TESTS, "{took:?}");
        let (decided, remembered, took) = super::tests::decided("echo begin long; exec sleep 60");
        assert_eq!(decided.accel, Accel::Tcg);
        assert!(!remembered, "a host too busy to tell is asked again");
        assert!(took < PATIENCE_IN_TESTS, "{took:?}");
    }

    /// A busy machine may take its time to kill.
    const PATIENCE_IN_TESTS: Duration = Duration::from_secs(20);

    #[test]
    fn an_answer_is_remembered_for_this_boot() {
        let (decided, remembered, _) = decided("echo begin long; echo done long");
        assert_eq!(remembered, decided.fresh);
    }

    #[test]
    fn what_the_user_wants_is_not_probed() {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(home.path());
        let probe = ProbeProgram { program: "/none".into(), args: vec![] };
        let kvm = decide(&dirs, AccelChoice::Only(Accel::Kvm), &probe, true);
        assert_eq!((kvm.accel, kvm.why.as_str()), (Accel::Kvm, "as asked"));
    }
}
