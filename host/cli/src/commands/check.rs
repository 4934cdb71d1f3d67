//! `guestline check`: command lines, each a test in its own pristine machine.

use super::template::{self, Options};
use crate::args::{CheckArgs, FailOnArg, GlobalArgs};
use crate::context::Context;
use crate::error::CommandError;
use crate::limits::{boot_limit, check_limit, ms};
use crate::own_kernel::{self, NO_LIMIT, Ready};
use crate::runner::{Host, Run};
use crate::terminal::Progress;
use clap::ValueEnum;
use guestline::machine::Accel;
use guestline::provision::{Hardware, NamedTemplate};
use guestline_harness::job::{
    FailOn, Job, JobTest, LayerWanted, Limits, MachineWanted, QemuWanted, TestCommand,
};
use guestline_harness::outcome::Stage;
use guestline_harness::run::{Broken, Once, Target};
use guestline_harness::text;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The longest word that a Linux kernel takes (`MAX_ARG_STRLEN`, execve(2)), with its end.
const MAX_WORD_LEN: usize = 128 * 1024 - 1;

pub(crate) fn run(global: &GlobalArgs, args: &CheckArgs) -> Result<u8, CommandError> {
    let commands = commands(args)?;
    let context = Context::new()?;
    let machine = machine(&context, args)?;
    context.recipe(&machine.image)?;
    if args.gdb && commands.len() > 1 {
        return Err(CommandError::new("a debugger takes one machine, and each line has its own")
            .hint("--gdb wants one line"));
    }
    let named = own_kernel::named(&args.kernel)?;
    let qemu = args.subject.named_qemu(&context)?;
    let packages = args.subject.packages()?;
    let mut files = packages.files;
    let firmware = args.subject.firmware_wanted(&mut files)?;
    let vmlinux = named.as_ref().and_then(own_kernel::Named::vmlinux);
    start_log(global.verbose);

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _context = runtime.enter();
    let host = Host::new(global, &context, &runtime, args.options.bisect, qemu.as_ref())?;
    let limits = limits(args, host.accel());

    let ready = named
        .map(|named| named.ready(&context, &machine.image, &host.cancel, &mut Progress::new()));
    let (own, broken) = match ready.transpose() {
        Ok(ready) => (ready.unwrap_or_default(), None),
        Err(reason) => (
            Ready::default(),
            Some(Broken { stage: Stage::Image, reason, hints: vec![], log: vec![] }),
        ),
    };
    let mut machine = machine;
    own.name_in(&mut machine);
    machine.qemu = qemu
        .as_ref()
        .map(|qemu| QemuWanted { digest: qemu.digest.clone(), version: qemu.version.to_string() });
    machine.qemu_args.clone_from(&args.subject.qemu_arg);
    machine.firmware = firmware;
    machine.layers.extend(packages.wanted.map(LayerWanted::Install));
    let with = args.with.wanted()?;
    machine.with = with.iter().map(|(wanted, _)| wanted.clone()).collect();
    let fail_on: Vec<FailOn> = args.fail_on.iter().map(|what| what.wanted()).collect();
    let job = |command| Job {
        tests: vec![JobTest::of_command(command, fail_on.clone())],
        machine: machine.clone(),
        machines: BTreeMap::new(),
        fixtures: Vec::new(),
        subjects: machine.subjects(&args.subject.taken_back()),
        limits,
    };
    let jobs: Vec<Job> = commands.into_iter().map(job).collect();

    let (gdb, mut waiting) = tokio::sync::mpsc::unbounded_channel::<PathBuf>();
    runtime.spawn(async move {
        while let Some(socket) = waiting.recv().await {
            let line = own_kernel::gdb_line(vmlinux.as_deref(), &socket);
            eprintln!("the machine waits for a debugger: {line}");
        }
    });
    files.extend(own.files());
    files.extend(with.into_iter().map(|(wanted, path)| (wanted.digest, path)));
    let run = Run {
        files,
        broken,
        gdb: args.gdb.then_some(gdb),
        cpus: args.cpus,
        options: &args.options,
        verbose: global.verbose > 0,
        fail_fast: false,
        again: again(global, args),
        qemus: qemu.iter().cloned().collect(),
        qemu,
        suites: BTreeMap::new(),
        target: Target::Machine,
    };
    run.tests(host, Once::new(jobs))
}

/// The machine that is wanted: of options, or of a template with a name.
fn machine(context: &Context, args: &CheckArgs) -> Result<MachineWanted, CommandError> {
    let options = Options {
        image: &args.image,
        memory_mib: args.memory,
        cpus: args.cpus,
        devices: &args.devices,
    };
    let wanted = template::wanted(&context.dirs, args.template.as_ref(), options)?;
    let NamedTemplate { image, memory_mib, cpus, disks, nics, layers, .. } = wanted;
    let fresh_reboot = args.fresh_reboot || args.gdb;
    let cmdline = own_kernel::cmdline(&args.kernel, args.gdb);
    let (kernel, kconfig, modules) = (None, None, None);
    Ok(MachineWanted {
        image,
        kernel,
        kconfig,
        modules,
        cmdline,
        memory_mib,
        cpus,
        disks,
        nics,
        qemu: None,
        qemu_args: Vec::new(),
        firmware: None,
        hardware: Hardware::default(),
        with: Vec::new(),
        fresh_reboot,
        layers: layers.into_iter().map(LayerWanted::Lines).collect(),
    })
}

impl FailOnArg {
    fn wanted(self) -> FailOn {
        match self {
            Self::Warn => FailOn::Warn,
            Self::Taint => FailOn::Taint,
            Self::Oops => FailOn::Oops,
        }
    }
}

/// The tests that the command line names.
fn commands(args: &CheckArgs) -> Result<Vec<TestCommand>, CommandError> {
    let words = args.lines.iter().chain(&args.argv);
    if let Some(word) = words.clone().find(|word| word.len() > MAX_WORD_LEN) {
        let message = format!(
            "`{}` has {} bytes, and Linux takes at most {MAX_WORD_LEN}",
            text::one_line(word, 40),
            word.len()
        );
        return Err(CommandError::new(message).hint("put what is long into a file"));
    }
    if let Some(program) = args.argv.first() {
        if program.is_empty() {
            return Err(CommandError::new("the program to run has no name"));
        }
        let len: usize = args.argv.iter().map(String::len).sum();
        if len > MAX_WORD_LEN {
            let message =
                format!("the command has {len} bytes, and at most {MAX_WORD_LEN} are taken");
            return Err(CommandError::new(message).hint("put what is long into a file"));
        }
        if let [word] = &args.argv[..] {
            refuse_host_file(word)?;
        }
        return Ok(vec![TestCommand::Argv(args.argv.clone())]);
    }
    args.lines
        .iter()
        .map(|line| {
            if line.trim().is_empty() {
                return Err(CommandError::new("an empty command line checks nothing"));
            }
            refuse_host_file(line)?;
            Ok(TestCommand::Line(line.clone()))
        })
        .collect()
}

/// A lone word that is the relative name of a file here was surely meant as that file.
fn refuse_host_file(line: &str) -> Result<(), CommandError> {
    let lone = !line.contains(char::is_whitespace);
    if lone && Path::new(line).is_relative() && Path::new(line).is_file() {
        let message =
            format!("`{line}` is a file of this host, and a command line for the guest is wanted");
        return Err(CommandError::new(message)
            .hint("a command line is run in the guest: guestline check 'uname -r'")
            .hint(format!(
                "if the guest has a command of that name: guestline check 'command {line}'"
            )));
    }
    Ok(())
}

fn limits(args: &CheckArgs, accel: Accel) -> Limits {
    if args.gdb {
        return Limits { check_ms: ms(NO_LIMIT), boot_ms: ms(NO_LIMIT) };
    }
    Limits {
        // A limit that somebody set is what they set.
        check_ms: ms(args.timeout.unwrap_or_else(|| check_limit(accel))),
        boot_ms: ms(args.boot_timeout.unwrap_or_else(|| boot_limit(accel))),
    }
}

/// The command that runs one of these tests again, up to the test.
fn again(global: &GlobalArgs, args: &CheckArgs) -> String {
    let mut words = vec!["guestline check".to_owned()];
    let mut add = |option: &str, value: Option<String>| {
        words.extend(value.map(|value| format!("--{option} {}", text::quote(&value))));
    };
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    add("image", Some(args.devices.image(&args.image)).filter(|image| image != "tiny"));
    add("template", args.template.as_ref().map(|name| name.as_str().to_owned()));
    add("timeout", args.timeout.map(|timeout| format!("{}ms", timeout.as_millis())));
    add("boot-timeout", args.boot_timeout.map(|timeout| format!("{}ms", timeout.as_millis())));
    add("memory", args.memory.map(|mib| format!("{mib}M")));
    add("cpus", Some(args.cpus.to_string()).filter(|cpus| cpus != "1"));
    add("agent", path(&global.agent));
    add("accel", global.accel.word().map(str::to_owned));
    words.extend(args.kernel.words());
    words.extend(args.subject.words());
    let words_of =
        |what: &FailOnArg| what.to_possible_value().map(|value| value.get_name().to_owned());
    let fail_on: Vec<String> = args.fail_on.iter().filter_map(words_of).collect();
    if !fail_on.is_empty() {
        words.push(format!("--fail-on {}", fail_on.join(",")));
    }
    words.extend(args.devices.words().iter().map(|word| text::quote(word)));
    words.extend(args.with.words().map(|word| text::quote(&word)));
    if args.fresh_reboot {
        words.push("--fresh-reboot".to_owned());
    }
    if args.gdb {
        words.push("--gdb".to_owned());
    }
    if args.options.bisect {
        words.push("--bisect".to_owned());
    }
    words.join(" ")
}

/// The program's own log, on stderr, from the second `-v` on.
pub(crate) fn start_log(verbose: u8) {
    let level = match verbose {
        0 => return,
        1 => "warn",
        2 => "debug",
        _ => "trace",
    };
    let filter =
        tracing_subscriber::EnvFilter::new(format!("guestline={level},guestline_harness={level}"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::Parser;

    fn args(words: &[&str]) -> (GlobalArgs, CheckArgs) {
        let cli = Cli::try_parse_from([&["guestline", "check"], words].concat()).unwrap();
        let crate::args::Command::Check(check) = cli.command else { unreachable!() };
        (cli.global, check)
    }

    #[test]
    fn a_host_file_is_refused_and_a_guest_command_is_not() {
        let of = |words: &[&str]| commands(&args(words).1).map_err(|error| error.to_text());
        // Tests run in the crate's folder.
        assert!(of(&["Cargo.toml"]).unwrap_err().contains("is a file of this host"));
        assert!(of(&["./Cargo.toml"]).is_err());
        assert!(of(&["true", "./Cargo.toml"]).is_err());
        assert!(of(&["--", "./Cargo.toml"]).is_err());
        assert!(of(&["cat Cargo.toml"]).is_ok());
        assert!(of(&["/bin/true"]).is_ok());
        assert!(of(&["--", "cat", "Cargo.toml"]).is_ok());
        assert!(of(&[" "]).is_err());
        assert!(of(&[&"x".repeat(MAX_WORD_LEN + 1)]).is_err());
    }

    #[test]
    fn lines_and_argv_exclude_each_other() {
        for wrong in [&["a", "--", "b"][..], &[], &["--cpus", "0", "a"], &["--memory", "x", "a"]] {
            let words = [&["guestline", "check"], wrong].concat();
            assert!(Cli::try_parse_from(words).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_command_for_again_says_what_was_asked() {
        let (global, check) = args(&["--memory", "1G", "--timeout", "5", "--accel", "tcg", "true"]);
        assert_eq!(
            again(&global, &check),
            "guestline check --timeout 5000ms --memory 1024M --accel tcg"
        );
        let (global, check) =
            args(&["--kernel", "a b", "--modules=m", "--cmdline", "-x y", "--cpus=2", "true"]);
        let said = "guestline check --cpus 2 --kernel 'a b' --modules m '--cmdline=-x y'";
        assert_eq!(again(&global, &check), said);
        let (global, check) = args(&[
            "--qemu=./q",
            "--qemu-arg=-device",
            "--qemu-arg=edu",
            "--install=a.deb",
            "--not-subject=qemu",
            "true",
        ]);
        let said = "guestline check --qemu ./q --qemu-arg=-device --qemu-arg=edu --install a.deb --not-subject qemu";
        assert_eq!(again(&global, &check), said);
        let (global, check) = args(&["--fail-on", "warn,oops", "--fail-on=taint", "true"]);
        assert_eq!(again(&global, &check), "guestline check --fail-on warn,oops,taint");
        let (global, check) = args(&["--nic", "--nic=10.1.0.5/24", "--disk=1G", "true"]);
        let said = "guestline check --disk=1024M --nic= --nic=10.1.0.5/24";
        assert_eq!(again(&global, &check), said);
    }

    #[test]
    fn a_limit_that_was_set_is_not_scaled() {
        let (_, check) = args(&["--timeout", "5", "true"]);
        assert_eq!(limits(&check, Accel::Tcg).check_ms, 5000);
        let (_, check) = args(&["true"]);
        assert!(limits(&check, Accel::Tcg).check_ms >= 90_000);
    }
}
