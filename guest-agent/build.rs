//! Makes the build id: a hash of the sources that the agent is made from, so that a hello tells which agent speaks.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    shrink();
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let workspace = root.join("..");
    let mut files = Vec::new();
    for folder in [root.join("src"), workspace.join("protocol/src")] {
        println!("cargo::rerun-if-changed={}", folder.display());
        collect(&folder, &mut files);
    }
    for file in ["Cargo.toml", "Cargo.lock", "guest-agent/Cargo.toml", "protocol/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", workspace.join(file).display());
        files.push(workspace.join(file));
    }
    files.sort();
    // FNV-1a, 64 bits: it names the sources, it seals nothing.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for file in &files {
        let content = fs::read(file).unwrap_or_default();
        let name = file.strip_prefix(&root).unwrap_or(file).to_string_lossy();
        let len = (content.len() as u64).to_le_bytes();
        for byte in name.bytes().chain(len).chain(content) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    println!("cargo::rustc-env=GUESTLINE_AGENT_BUILD={hash:016x}");
}

/// A panic aborts, so the tables for unwinding are of no use. Here and not among the flags, whose paths would change the
/// build.
fn shrink() {
    println!("cargo::rerun-if-changed=no-unwinding.ld");
    let root = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let is_musl = env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "musl");
    // The agent's own profile, where a panic aborts, is the one that is built for size.
    if is_musl && env::var("OPT_LEVEL").is_ok_and(|level| level == "z") {
        println!(
            "cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr,--build-id=none,-z,noseparate-code,-z,norelro"
        );
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{root}/no-unwinding.ld");
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
}
