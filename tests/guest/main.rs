//! What the command `guest` reaches, over its own protocol: the real server, the real agent over a socket pair, clients
//! good and bad, the static program and the Python module. No machine is needed.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod hostile;
mod power;
mod program;
mod protocol;
mod python;
mod rig;
mod sides;

/// No file of this folder is forgotten above.
#[test]
fn every_file_is_listed() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/guest");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = format!("mod {};", name.trim_end_matches(".rs"));
        let is_listed = include_str!("main.rs").contains(&module);
        assert!(name == "main.rs" || is_listed || !name.ends_with(".rs"), "{name}");
    }
}
