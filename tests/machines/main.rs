//! Every test here boots real machines; `make test` runs them.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod archives;
mod axes;
mod cache;
mod checks;
mod clients;
mod conformance;
mod debian;
mod devices;
mod embed;
mod evidence;
mod fail_on;
mod faults;
mod gdb;
mod guest_command;
mod guests;
mod images;
mod import;
mod interrupts;
mod kernels;
mod named;
mod oldest_qemu;
mod output;
mod own_modules;
mod pool;
mod sbom;
mod sharing;
mod sides;
mod snapshots;
mod static_web;
mod suites;
mod targets;
mod templates;
mod transfers;
mod verdicts;
mod virt_builder;
mod web;

/// No file of this folder is forgotten above.
#[test]
fn every_file_is_listed() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/machines");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = format!("mod {};", name.trim_end_matches(".rs"));
        assert!(name == "main.rs" || include_str!("main.rs").contains(&module), "{name}");
    }
}
