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

#[test]
fn whatever_is_wrong_has_a_way_out() {
    let io = |kind: io::ErrorKind| io::Error::from(kind);
    let tree = |source| RootfsError::Tree { kind: Kind::Tar, path: "x".into(), source };
    let oci = |source| RootfsError::Oci { kind: Kind::OciArchive, path: "x".into(), source };
    let bomb = || FileTreeError::TooLarge { bytes: 1, why: "by a test" };
    let full = || FileTreeError::NoRoom { path: "x".into(), free_mib: 1, keep_mib: 2 };
    let spool = FileTreeError::Spool { path: "x".into(), source: io(io::ErrorKind::StorageFull) };
    let secret = io(io::ErrorKind::PermissionDenied);
    let missing =
        OciError::Document { name: "index.json".to_owned(), why: "is missing".to_owned() };
    let digest = || "sha256:1".to_owned();
    for (error, wanted) in [
        (tree(FileTreeError::name(b"../x", "has `..` in its name")), "make it anew"),
        (tree(bomb()), "import the folder"),
        (tree(FileTreeError::TooMany { members: 1 }), "make it anew"),
        (tree(full()), "cache prune"),
        (tree(spool), "cache prune"),
        (tree(FileTreeError::Read(io(io::ErrorKind::UnexpectedEof))), "cut or damaged"),
        (tree(FileTreeError::Read(io(io::ErrorKind::InvalidData))), "cut or damaged"),
        (tree(FileTreeError::HostFile { path: "x".into(), source: secret }), "as root"),
        (oci(missing), "docker save"),
        (oci(OciError::Digest { digest: digest() }), "once more"),
        (oci(OciError::Platform { found: "linux/arm64".to_owned() }), "--platform linux/amd64"),
        (oci(OciError::Several { names: Vec::new() }), "--pick NAME"),
        (oci(OciError::Ambiguous { name: digest(), names: Vec::new() }), "--pick NAME"),
        (oci(OciError::NoSuch { name: digest(), names: Vec::new() }), "without --pick"),
        (oci(OciError::Layer { digest: digest(), source: bomb() }), "import the folder"),
        (oci(OciError::Layer { digest: digest(), source: full() }), "cache prune"),
        (RootfsError::Change { name: "x".to_owned(), source: full() }, "cache prune"),
        (
            RootfsError::Read { path: "x".into(), source: io(io::ErrorKind::NotFound) },
            "apt-get install",
        ),
    ] {
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains(wanted), "{}: {hint:?}", crate::text::chain(&error));
    }
}
