//! The options of commands that take a kernel of the user's.

use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Default, Args)]
pub(crate) struct KernelArgs {
    /// Boot this kernel instead of the image's: a bzImage, a vmlinux, or the tree that it was built in, with its
    /// modules; it is judged then: if it panics, the check failed
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) kernel: Option<PathBuf>,
    /// That kernel's modules: DIR/lib/modules/RELEASE, DIR/RELEASE or DIR itself
    #[arg(long, value_name = "DIR", requires = "kernel")]
    pub(crate) modules: Option<PathBuf>,
    /// Put this at the end of the kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = parse_cmdline)]
    pub(crate) cmdline: Option<String>,
}

/// Begins the names of parameters that say how machine and agent find each other.
const OURS: &str = "guestline.";

/// The longest command line that x86 takes (`COMMAND_LINE_SIZE`), less what an image may say.
const MAX_LEN: usize = 1024;

fn parse_cmdline(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.chars().any(char::is_control) {
        return Err("want one line without control characters".to_owned());
    }
    if text.len() > MAX_LEN {
        return Err(format!("it has {} bytes, and at most {MAX_LEN} have room", text.len()));
    }
    let ours = text.split(' ').find(|word| word.trim_start_matches('"').starts_with(OURS));
    match ours {
        Some(word) => {
            let name = word.split('=').next().unwrap_or(word);
            Err(format!("`{name}` is Guestline's own, which sets it for image and machine"))
        }
        None => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_parameters_are_refused_by_name() {
        assert_eq!(parse_cmdline(" nokaslr loglevel=7 ").as_deref(), Ok("nokaslr loglevel=7"));
        assert!(parse_cmdline("x guestline.root=ext4:x").unwrap_err().contains("`guestline.root`"));
        assert!(parse_cmdline("a\nb").is_err() && parse_cmdline(&"x".repeat(1025)).is_err());
    }
}
