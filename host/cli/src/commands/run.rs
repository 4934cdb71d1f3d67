//! `guestline run`: tests by reference.

use crate::args::{GlobalArgs, RunArgs, Seed};
use crate::commands::check::start_log;
use crate::context::Context;
use crate::error::CommandError;
use crate::limits::{boot_limit, check_limit, ms};
use crate::own_kernel::{self, Named, Ready};
use crate::runner::{Host, Run};
use crate::suites;
use crate::terminal::Progress;
use crate::watch;
use guestline_harness::job::Limits;
use guestline_harness::outcome::Stage;
use guestline_harness::plan::{Files, Overrides, PlanQueue, PlanTerms, store};
use guestline_harness::run::{Broken, Target};
use guestline_harness::suite::shard::shuffle;
use guestline_harness::suite::test::shown;
use guestline_harness::text;
use std::collections::{BTreeSet, HashMap};
use tokio_util::sync::CancellationToken;

pub(crate) fn run(global: &GlobalArgs, args: &RunArgs) -> Result<u8, CommandError> {
    match args.watch {
        true => watch::again_and_again(args),
        false => once(global, args),
    }
}

fn once(global: &GlobalArgs, args: &RunArgs) -> Result<u8, CommandError> {
    let context = Context::new()?;
    let selected = suites::select(&args.select, &context, &CancellationToken::new())?;
    let qemu = args.subject.named_qemu(&context)?;
    let overrides = Overrides {
        fresh_reboot: args.fresh_reboot,
        own_kernel: args.kernel.kernel.is_some(),
        cmdline: args.kernel.cmdline.clone(),
        qemu: qemu.as_ref().map(|qemu| qemu.path.clone()),
        qemu_args: args.subject.qemu_arg.clone(),
        firmware: args.subject.firmware_named()?,
        not_subjects: args.subject.taken_back(),
        ..suites::overrides(&args.select)?
    };
    let packages = args.subject.packages()?;
    let named = own_kernel::named(&args.kernel)?;
    start_log(global.verbose);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _context = runtime.enter();
    let host = Host::new(global, &context, &runtime, args.options.bisect, qemu.as_ref())?;
    let terms = PlanTerms {
        overrides,
        limits: Limits {
            check_ms: ms(args.timeout.unwrap_or_else(|| check_limit(host.accel()))),
            boot_ms: ms(args.boot_timeout.unwrap_or_else(|| boot_limit(host.accel()))),
        },
        target: args.select.target.word(),
        isolation: args.isolation.map(|isolation| isolation.wanted()),
        retries: args.retries,
        repeat: args.repeat,
    };
    let mut surroundings = suites::surroundings(global, &args.select.environment, &context)?;
    let mut plan = selected.plan(&args.select, terms, &mut surroundings)?;
    if plan.items.is_empty() {
        let why = match selected.found.tests.len() {
            0 => "there is no test: `guestline list --all` says of each file why it is none"
                .to_owned(),
            there => format!("none of {there} tests is selected: `guestline list` shows them"),
        };
        eprintln!("{why}");
    }
    if let Some(Seed(seed)) = args.shuffle {
        eprintln!("order: --shuffle {seed}");
        shuffle(seed, &mut plan.items);
    }
    let is_in_machines = args.select.target == Target::Machine;
    for image in plan.images().into_iter().filter(|_| is_in_machines) {
        context.recipe(&image)?;
    }
    for warning in &plan.warnings {
        eprintln!("warning: {warning}");
    }
    for none in selected.found.none.iter().filter(|none| none.is_meant) {
        eprintln!("warning: {} is no test: {}", shown(&none.file), none.why);
    }
    let kernels = kernels(named, plan.images(), &context, &host);
    let (kernels, broken) = match kernels {
        Ok(kernels) => (kernels, None),
        Err(reason) => {
            let broken = Broken { stage: Stage::Image, reason, hints: vec![], log: vec![] };
            (HashMap::new(), Some(broken))
        }
    };
    let mut files = Files::default();
    let queue = PlanQueue::new(plan, &mut files, args.options.parallel());
    let queue = queue.map_err(|errors| suites::told(&errors))?;
    let own = kernels.values().flat_map(Ready::files).chain(packages.files);
    own.for_each(|(digest, path)| files.add(digest, path));
    let wanted = |(image, ready): (&String, &Ready)| Some((image.clone(), ready.wanted()?));
    let queue = queue
        .with_kernels(kernels.iter().filter_map(wanted).collect())
        .with_install(packages.wanted);
    if let Some(out) = &args.out {
        let written = store::write(queue, &files, out);
        let (jobs, without) = written.map_err(|error| {
            CommandError::new(format!("cannot write the plan to `{}`: {error}", out.display()))
        })?;
        for test in without {
            eprintln!("incompatible  {test}");
        }
        println!("{jobs} jobs in {}", out.join("jobs").display());
        return Ok(0);
    }
    if let Some(limit) = args.run_timeout {
        let cancel = host.cancel.clone();
        runtime.spawn(async move {
            tokio::time::sleep(limit).await;
            eprintln!(
                "the run is not over within {}: what runs is interrupted",
                text::limit(limit)
            );
            cancel.cancel();
        });
    }
    let run = Run {
        files: files.by_digest().clone(),
        broken,
        gdb: None,
        cpus: args.select.cpus.unwrap_or(1),
        options: &args.options,
        verbose: global.verbose > 0,
        fail_fast: args.fail_fast,
        again: again(global, args),
        qemus: queue.qemus(),
        qemu,
        suites: selected.suites(),
        target: args.select.target.clone(),
    };
    run.tests(host, queue)
}

/// The kernel that was named, as machines of each image take it.
fn kernels(
    named: Option<Named>,
    images: BTreeSet<String>,
    context: &Context,
    host: &Host<'_>,
) -> Result<HashMap<String, Ready>, String> {
    let Some(named) = named else { return Ok(HashMap::new()) };
    let ready = |image: String| {
        let ready = named.ready(context, &image, &host.cancel, &mut Progress::new())?;
        Ok((image, ready))
    };
    images.into_iter().map(ready).collect()
}

/// The command that runs one of these tests again, up to the test.
fn again(global: &GlobalArgs, args: &RunArgs) -> String {
    let mut words = vec!["guestline run".to_owned()];
    let mut add = |option: &str, value: Option<String>| {
        words.extend(value.map(|value| format!("--{option} {}", text::quote(&value))));
    };
    let select = &args.select;
    add("image", select.image.clone());
    add("memory", select.memory.map(|mib| format!("{mib}M")));
    add("cpus", select.cpus.map(|cpus| cpus.to_string()));
    for matrix in &select.matrix {
        add("matrix", Some(matrix.clone()));
    }
    for file in &select.environment {
        add("environment", Some(file.display().to_string()));
    }
    add("timeout", args.timeout.map(|timeout| format!("{}ms", timeout.as_millis())));
    add("boot-timeout", args.boot_timeout.map(|timeout| format!("{}ms", timeout.as_millis())));
    add("agent", global.agent.as_ref().map(|path| path.display().to_string()));
    add("accel", global.accel.word().map(str::to_owned));
    if select.target != Target::Machine {
        words.push(format!("--target {}", text::quote(&select.target.to_string())));
    }
    words.extend(args.kernel.words());
    words.extend(args.subject.words());
    if args.fresh_reboot {
        words.push("--fresh-reboot".to_owned());
    }
    words.join(" ")
}
