use super::super::tree::{Bounds, Node, Why};
use super::*;
use serde_json::{Value, json};

fn files() -> FileTree {
    let bounds = Bounds { bytes: 1 << 20, why: Why::Rule("by a test"), members: 100 };
    FileTree::new(&std::env::temp_dir(), bounds).unwrap()
}

fn put(files: &mut FileTree, name: &str, content: &Value) {
    let content = files.keep(&mut content.to_string().as_bytes()).unwrap();
    files.add(name.as_bytes(), Node::of(What::File(content), 0o644)).unwrap();
}

fn put_blob(files: &mut FileTree, content: &Value) -> String {
    let digest = Digest::of(content.to_string().as_bytes());
    put(files, &format!("blobs/sha256/{digest}"), content);
    format!("sha256:{digest}")
}

/// An image: the digest of its manifest, and where its configuration is.
fn image(files: &mut FileTree, number: u32) -> (String, String) {
    let config = put_blob(files, &json!({ "number": number }));
    let place = format!("blobs/{}", config.replace(':', "/"));
    (put_blob(files, &json!({ "config": { "digest": config }, "layers": [] })), place)
}

/// What `docker save` writes of some images with these names; without `docker`, what is an OCI archive and no more.
fn saved(images: &[(u32, &str)], docker: bool) -> (FileTree, Vec<String>) {
    let mut files = files();
    let (mut index, mut tags, mut digests) = (Vec::new(), Vec::new(), Vec::new());
    for (number, name) in images {
        let (digest, config) = image(&mut files, *number);
        let tag = name.rsplit(':').next().unwrap();
        let mut annotations = json!({ "org.opencontainers.image.ref.name": tag });
        if docker && !name.starts_with("untold") {
            annotations["io.containerd.image.name"] = json!(format!("docker.io/library/{name}"));
        }
        index.push(json!({ "digest": digest, "annotations": annotations }));
        tags.push(json!({ "Config": config, "RepoTags": [name], "Layers": [] }));
        digests.push(digest);
    }
    put(&mut files, "index.json", &json!({ "manifests": index }));
    if docker {
        put(&mut files, "manifest.json", &json!(tags));
    }
    (files, digests)
}

fn picked(files: &FileTree, name: Option<&str>) -> Result<String, String> {
    let index = document(files, "index.json").unwrap();
    choose(files, index, name, 0).map(|found| found.digest).map_err(|error| error.to_string())
}

#[test]
fn an_image_is_picked_by_any_name_that_it_has() {
    let (files, digests) = saved(&[(1, "a:latest"), (2, "b:latest"), (3, "untold:1")], true);
    for (name, wanted) in [
        ("a:latest", 0),
        ("b:latest", 1),
        ("docker.io/library/b:latest", 1),
        (&*digests[1], 1),
        ("untold:1", 2),
        ("1", 2),
    ] {
        assert_eq!(picked(&files, Some(name)).as_ref(), Ok(&digests[wanted]), "{name}");
    }
    insta::assert_snapshot!(
        picked(&files, Some("latest")).unwrap_err(),
        @"it holds 2 images that `latest` could be: a:latest, b:latest"
    );
    insta::assert_snapshot!(
        picked(&files, None).unwrap_err(),
        @"it holds 3 images: a:latest, b:latest, untold:1"
    );
    insta::assert_snapshot!(
        picked(&files, Some("c:latest")).unwrap_err(),
        @"it holds no image `c:latest`; it has a:latest, b:latest, untold:1"
    );
}

#[test]
fn one_image_of_two_names_is_one() {
    let (files, digests) = saved(&[(1, "a:latest"), (1, "b:latest")], true);
    for name in [None, Some("a:latest"), Some("b:latest"), Some("latest")] {
        assert_eq!(picked(&files, name).as_ref(), Ok(&digests[0]), "{name:?}");
    }
}

#[test]
fn images_of_one_name_are_told_apart_by_their_digests() {
    let (files, digests) = saved(&[(1, "latest"), (2, "latest")], false);
    let said = picked(&files, Some("latest")).unwrap_err();
    assert!(said.ends_with(&digests.join(", ")), "{said}");
    assert_eq!(picked(&files, Some(&digests[1])).as_ref(), Ok(&digests[1]));
}
