//! `guestline job`: a job of a plan that another process made.

use crate::args::{GlobalArgs, JobArgs, SubjectArgs};
use crate::commands::check::start_log;
use crate::context::Context;
use crate::error::CommandError;
use crate::runner::{Host, Run};
use guestline_harness::plan::store;
use guestline_harness::run::Once;
use std::collections::BTreeMap;

pub(crate) fn run(global: &GlobalArgs, args: &JobArgs) -> Result<u8, CommandError> {
    let (job, files) = store::read(&args.file)?;
    let context = Context::new()?;
    start_log(global.verbose);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _context = runtime.enter();
    let named = SubjectArgs { qemu: args.qemu.clone(), ..SubjectArgs::default() };
    let named = named.named_qemu(&context)?;
    let host = Host::new(global, &context, &runtime, args.options.bisect, named.as_ref())?;
    let run = Run {
        files,
        broken: None,
        gdb: None,
        cpus: job.machine.cpus,
        options: &args.options,
        verbose: global.verbose > 0,
        fail_fast: false,
        again: "guestline run".to_owned(),
        qemu: None,
        qemus: named.into_iter().collect(),
        suites: BTreeMap::new(),
        target: args.target.clone(),
    };
    run.tests(host, Once::new(vec![job]))
}
