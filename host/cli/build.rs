//! Puts the guest agent into the program: the file that `GUESTLINE_AGENT` names, made by `guest-agent/build.sh`. Without the
//! variable the program is built all the same, carries no agent, and wants `--agent FILE`.

use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-env-changed=GUESTLINE_AGENT");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?).join("agent");
    match env::var_os("GUESTLINE_AGENT") {
        Some(agent) if !agent.is_empty() => {
            let agent = PathBuf::from(agent);
            println!("cargo::rerun-if-changed={}", agent.display());
            fs::copy(&agent, &out)
                .map_err(|error| format!("GUESTLINE_AGENT `{}`: {error}", agent.display()))?;
        }
        _ => {
            println!(
                "cargo::warning=this build carries no guest agent: `make build` builds one and puts it in, or run with --agent FILE"
            );
            fs::write(&out, [])?;
        }
    }
    Ok(())
}
