//! Everything on real folders, in one binary.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod hostile;
mod ops;
mod reading;
mod roundtrip;
mod support;
mod writing;

/// No file of this folder is forgotten above.
#[test]
fn every_file_is_a_module() {
    let main = include_str!("main.rs");
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(name == "main" || main.contains(&format!("mod {name};")), "{name}");
    }
}
