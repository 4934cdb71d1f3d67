//! Puts the programs for guests into this one: the files that `GUESTLINE_AGENT`, `GUESTLINE_FLOOR` and `GUESTLINE_GUEST`
//! name, made by `guest-agent/build.sh`. Without the variables the program is built all the same; it carries no agent
//! then, and wants `--agent FILE`, cannot measure its link, and has no command `guest` for scripts inside machines.

use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if !embed("GUESTLINE_AGENT", "agent")? {
        println!(
            "cargo::warning=this build carries no guest agent: `make build` builds one and puts it in, or run with --agent FILE"
        );
    }
    embed("GUESTLINE_FLOOR", "floor")?;
    embed("GUESTLINE_GUEST", "guest")?;
    Ok(())
}

fn embed(variable: &str, name: &str) -> Result<bool, Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-env-changed={variable}");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?).join(name);
    match env::var_os(variable) {
        Some(file) if !file.is_empty() => {
            let file = PathBuf::from(file);
            println!("cargo::rerun-if-changed={}", file.display());
            fs::copy(&file, &out)
                .map_err(|error| format!("{variable} `{}`: {error}", file.display()))?;
            Ok(true)
        }
        _ => {
            fs::write(&out, [])?;
            Ok(false)
        }
    }
}
