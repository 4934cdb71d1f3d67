//! Any bytes as a tree stream: no panic, and nothing is made outside the target.
#![no_main]

use guestline_files::{Target, TreeWriter, WriteOptions};

libfuzzer_sys::fuzz_target!(|pieces: Vec<Vec<u8>>| {
    let home = tempfile::tempdir().expect("a temporary folder");
    let target = home.path().join("target");
    let limits = WriteOptions {
        max_bytes: Some(1 << 20),
        max_items: Some(1000),
        ..WriteOptions::default()
    };
    if let Ok(mut writer) = TreeWriter::new(Target::Into(target), limits) {
        for piece in &pieces {
            if writer.take(piece).is_err() {
                break;
            }
        }
        let _ = writer.finish();
    }
    let outside = std::fs::read_dir(home.path()).expect("the folder").count();
    assert!(outside <= 1, "something beside the target");
});
