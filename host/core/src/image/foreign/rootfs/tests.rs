use super::*;

#[test]
fn a_layout_in_a_folder_is_bounded_by_its_blobs_as_an_archive_by_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = folder.path().join("blobs/sha256");
    let most = || bounds(folder.path(), Kind::OciLayout, folder.path()).unwrap().bytes;
    assert!(most() <= ALWAYS);
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("a"), "a").unwrap();
    // What is no blob does not count.
    File::create(folder.path().join("large")).unwrap().set_len(ALWAYS).unwrap();
    assert!(most() <= ALWAYS);
    for name in ["b", "c"] {
        File::create(blobs.join(name)).unwrap().set_len(ALWAYS / 2).unwrap();
    }
    assert_eq!(blobs_len(folder.path()).unwrap(), ALWAYS + 1);
}

#[test]
fn a_layer_that_holds_more_than_its_members_is_refused_and_an_interrupt_is_heard() {
    let folder = tempfile::tempdir().unwrap();
    let bounds = Bounds { bytes: 1000, why: Why::Rule("by a test"), members: 10 };
    let mut tree = FileTree::new(folder.path(), bounds).unwrap();
    let tar = vec![0; 100_000];
    let cancel = CancellationToken::new();
    let read = read::tar(&tar[..], TarKind::Layer, &mut tree, &cancel).unwrap_err();
    let said = crate::text::chain(&read);
    assert!(said.contains("it unpacks to far more than its members hold"), "{said}");
    cancel.cancel();
    let read = read::tar(&tar[..], TarKind::Layer, &mut tree, &cancel).unwrap_err();
    let said = crate::text::chain(&read);
    assert!(said.contains("interrupted"), "{said}");
}
