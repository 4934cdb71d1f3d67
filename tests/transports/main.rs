//! The real agent over every transport, and a qemu-guest-agent, scripted and real; machines in `machine` only.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod machine;
mod qga;
mod real_qga;
mod rig;
mod streams;
mod tty;

/// No file of this folder is forgotten above.
#[test]
fn every_file_is_listed() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/transports");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = format!("mod {};", name.trim_end_matches(".rs"));
        assert!(name == "main.rs" || include_str!("main.rs").contains(&module), "{name}");
    }
}
