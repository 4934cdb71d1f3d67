//! What `--kernel`, `--modules` and `--cmdline` name, made ready for machines.

use crate::args::KernelArgs;
use crate::context::Context;
use crate::error::CommandError;
use crate::terminal::Progress;
use guestline::digest::Digest;
use guestline::image::{MAX_KERNEL_LEN, ModuleTree, OwnKernel, OwnModules, TreeError};
use guestline::text;
use guestline_harness::job::{MachineWanted, ModulesWanted};
use guestline_harness::plan::KernelWanted;
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A kernel that was named, before anything is made of it.
pub(crate) struct Named {
    own: OwnKernel,
    digest: Digest,
    /// What is wrong with the modules of its tree is told as an outcome.
    modules: Result<Option<ModuleTree>, TreeError>,
}

/// A kernel as machines take it.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    pub(crate) kernel: Option<(PathBuf, Digest)>,
    pub(crate) kconfig: Option<(PathBuf, Digest)>,
    pub(crate) modules: Option<OwnModules>,
}

/// No limit, for what waits for a person.
pub(crate) const NO_LIMIT: Duration = Duration::from_secs(100 * 86_400);

/// The kernel's command line for a debugger: symbols are where the file says.
pub(crate) fn cmdline(args: &KernelArgs, gdb: bool) -> Option<String> {
    let more = args.cmdline.as_deref();
    match (gdb, more) {
        (true, Some(more)) => Some(format!("nokaslr {more}")),
        (true, None) => Some("nokaslr".to_owned()),
        (false, more) => more.map(str::to_owned),
    }
}

/// The line that attaches a debugger.
pub(crate) fn gdb_line(vmlinux: Option<&Path>, socket: &Path) -> String {
    let target = text::quote(&format!("target remote {}", socket.display()));
    let vmlinux = vmlinux.map(|path| format!("{} ", text::quote(&path.display().to_string())));
    format!("gdb {}-ex {target}", vmlinux.unwrap_or_default())
}

/// Looks at what the options name. Nothing is written.
///
/// # Errors
/// Wrong usage: what is not there, modules of another kernel.
pub(crate) fn named(args: &KernelArgs) -> Result<Option<Named>, CommandError> {
    let Some(path) = &args.kernel else { return Ok(None) };
    let own = OwnKernel::at(path).map_err(|error| {
        CommandError::new(format!("cannot read the kernel `{}`: {error}", path.display())).hint(
            "--kernel wants a bzImage, a vmlinux with a PVH entry, or the tree it was built in",
        )
    })?;
    // What is there and cannot be read or is no kernel is told as an outcome, before its digest is asked for.
    let found = own.kernel.metadata();
    let is_one = found.is_ok_and(|found| found.is_file() && found.len() <= MAX_KERNEL_LEN);
    let digest = is_one.then(|| Digest::of_file(&own.kernel).ok()).flatten();
    let modules = match own.modules(args.modules.as_deref()) {
        Err(error) if args.modules.is_some() => {
            let hint = error.hint();
            let wrong = CommandError::new(error);
            return Err(match hint {
                Some(hint) => wrong.hint(hint),
                None => wrong,
            });
        }
        modules => modules,
    };
    Ok(Some(Named { own, digest: digest.unwrap_or_else(|| Digest::of(b"")), modules }))
}

impl Named {
    /// The kernel with its symbols.
    pub(crate) fn vmlinux(&self) -> Option<PathBuf> {
        self.own.vmlinux.clone()
    }

    /// Packs its modules for an image, unless they are packed already.
    ///
    /// # Errors
    /// In words, what is broken.
    pub(crate) fn ready(
        &self,
        context: &Context,
        image: &str,
        cancel: &CancellationToken,
        progress: &mut Progress,
    ) -> Result<Ready, String> {
        let Self { own, digest, modules } = self;
        let kconfig =
            own.config().and_then(|path| Some((path.clone(), Digest::of_file(&path).ok()?)));
        let kernel = Some((own.kernel.clone(), digest.clone()));
        let explained = |error: &TreeError| match error.hint() {
            Some(hint) => format!("{}; {hint}", text::chain(error)),
            None => text::chain(error),
        };
        let Some(tree) = modules.as_ref().map_err(explained)? else {
            return Ok(Ready { kernel, kconfig, modules: None });
        };
        let load = context.recipe(image).map(|recipe| recipe.kernel.load).unwrap_or_default();
        let progress = std::cell::RefCell::new(progress);
        let begin = |count: usize| {
            let line = format!("kernel {}: packs {count} modules …", tree.release);
            progress.borrow_mut().show(&line);
        };
        let packed = OwnModules::pack(&context.dirs, tree, &load, &begin, cancel);
        progress.borrow_mut().clear();
        let modules = packed.map_err(|error| text::chain(&error))?;
        Ok(Ready { kernel, kconfig, modules: Some(modules) })
    }
}

impl Ready {
    /// As a plan names it.
    pub(crate) fn wanted(&self) -> Option<KernelWanted> {
        let (_, kernel) = self.kernel.clone()?;
        let kconfig = self.kconfig.as_ref().map(|(_, digest)| digest.clone());
        let modules = self.modules.as_ref().map(|modules| ModulesWanted {
            early: modules.early.0.clone(),
            names: modules.names.clone(),
            disk: modules.disk.as_ref().map(|(digest, _)| digest.clone()),
        });
        Some(KernelWanted { kernel, kconfig, modules })
    }

    /// As a job names it.
    pub(crate) fn name_in(&self, machine: &mut MachineWanted) {
        let Some(KernelWanted { kernel, kconfig, modules }) = self.wanted() else { return };
        machine.kernel = Some(kernel);
        machine.kconfig = kconfig;
        machine.modules = modules;
    }

    /// The files that a job names.
    pub(crate) fn files(&self) -> HashMap<Digest, PathBuf> {
        let kernel = self.kernel.iter().chain(&self.kconfig);
        let kernel = kernel.map(|(path, digest)| (digest.clone(), path.clone()));
        let modules = self.modules.iter();
        let modules =
            modules.flat_map(|modules| [Some(modules.early.clone()), modules.disk.clone()]);
        kernel.chain(modules.flatten()).collect()
    }
}

impl KernelArgs {
    /// The options again, with paths that do not depend on the folder we are in.
    pub(crate) fn absolute_words(&self) -> std::io::Result<Vec<OsString>> {
        let mut words = Vec::new();
        for (option, path) in [("--kernel", &self.kernel), ("--modules", &self.modules)] {
            if let Some(path) = path {
                words.extend([option.into(), std::path::absolute(path)?.into_os_string()]);
            }
        }
        words.extend(self.cmdline.iter().map(|text| format!("--cmdline={text}").into()));
        Ok(words)
    }

    /// The options as they were given.
    pub(crate) fn words(&self) -> Vec<String> {
        let path = |path: &Path| text::quote(&path.display().to_string());
        let kernel = self.kernel.iter().map(|kernel| format!("--kernel {}", path(kernel)));
        let modules = self.modules.iter().map(|modules| format!("--modules {}", path(modules)));
        let cmdline = self.cmdline.iter().map(|line| text::quote(&format!("--cmdline={line}")));
        kernel.chain(modules).chain(cmdline).collect()
    }
}
