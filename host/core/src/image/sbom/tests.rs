use super::*;
use crate::digest::Digest;
use crate::image::manifest::{DiskRecord, FORMAT, FileRecord, Manifest};
use crate::machine::{DiskFormat, Drive, FirmwareKind};

fn example() -> (Manifest, Recipe) {
    let text = "name = 'small'\nsummary = 'As small as it gets'\nsuite = 'bookworm'\npackages = []\n\
        memory_mib = 64\n[kernel]\npackage = 'linux-image'\ncmdline = 'quiet'\n";
    let recipe = Recipe::parse(text).unwrap();
    let package = |name: &str, version: &str| PackageRecord {
        name: name.to_owned(),
        version: version.to_owned(),
        sha256: Digest::of(name.as_bytes()),
    };
    let file = |name: &str| FileRecord {
        name: name.to_owned(),
        size: 1,
        sha256: Digest::of(name.as_bytes()),
    };
    let manifest = Manifest {
        format: FORMAT,
        name: recipe.name.clone(),
        recipe: recipe.digest(),
        agent: Digest::of(b"agent"),
        packages: vec![package("libstdc++6", "12.2.0-14+deb12u1"), package("login", "1:4.13+~1")],
        kernel_release: "6.1.0-cloud-amd64".to_owned(),
        cmdline: "quiet".to_owned(),
        memory_mib: 64,
        warm_up: None,
        ready: recipe.ready.clone(),
        shell: recipe.shell.clone(),
        provides: Vec::new(),
        owner: "somebody".to_owned(),
        licence: "each package's own".to_owned(),
        disk: None,
        files: vec![file("initrd.cpio"), file("kernel")],
    };
    (manifest, recipe)
}

#[test]
fn what_is_in_an_image_as_cyclonedx() {
    let (manifest, recipe) = example();
    insta::assert_snapshot!(String::from_utf8(cyclonedx(&manifest, &recipe)).unwrap());
}

#[test]
fn what_is_in_an_image_as_spdx() {
    let (manifest, recipe) = example();
    insta::assert_snapshot!(String::from_utf8(spdx(&manifest, &recipe)).unwrap());
}

#[test]
fn without_a_suite_the_distribution_is_not_named() {
    let (manifest, mut recipe) = example();
    assert_eq!(
        purl(&manifest.packages[1], &recipe),
        "pkg:deb/debian/login@1:4.13%2B~1?distro=bookworm"
    );
    recipe.suite = None;
    assert_eq!(purl(&manifest.packages[1], &recipe), "pkg:deb/debian/login@1:4.13%2B~1");
}

#[test]
fn the_bill_of_what_was_imported_says_that_it_is_incomplete() {
    let (mut manifest, _) = example();
    let recipe = |part: &str| {
        let digest = Digest::of(b"imported");
        let text = "name = 'small'\nsummary = 'Imported'\npackages = []\nmemory_mib = 64\n";
        let part = part.replace("SHA256", digest.as_str());
        Recipe::parse(&format!("{text}{part}")).unwrap()
    };
    let root = "suite = 'bookworm'\n[kernel]\npackage = 'linux-image'\ncmdline = 'quiet'\n\
        [root]\nfile = 'root.squashfs'\nsha256 = 'SHA256'\n";
    let bills = |manifest: &Manifest, recipe: &Recipe| {
        [cyclonedx(manifest, recipe), spdx(manifest, recipe)]
            .map(|bill| serde_json::from_slice::<Value>(&bill).unwrap())
    };
    let incomplete = serde_json::json!([{ "aggregate": "incomplete", "assemblies": ["image"] }]);
    let listed = |bill: &Value| bill.to_string().contains("\"name\":\"linux\"");
    let [cyclonedx, spdx] = bills(&manifest, &recipe(root));
    assert_eq!(cyclonedx["compositions"], incomplete);
    assert_eq!(
        spdx["packages"][0]["comment"],
        "incomplete: the root was imported, and what is in it is not listed"
    );
    assert!(listed(&cyclonedx) && listed(&spdx));

    let disk = recipe("[disk]\nfile = 'disk'\nsha256 = 'SHA256'\nformat = 'qcow2'\n");
    manifest.disk = Some(DiskRecord {
        format: DiskFormat::Qcow2,
        firmware: FirmwareKind::Bios,
        drive: Drive::Disk,
    });
    (manifest.kernel_release, manifest.packages) = (String::new(), Vec::new());
    manifest.files.retain(|file| file.name != "kernel");
    let [cyclonedx, spdx] = bills(&manifest, &disk);
    assert_eq!(cyclonedx["compositions"], incomplete);
    assert_eq!(
        spdx["packages"][0]["comment"],
        "incomplete: the disk was imported, and what is in it is not listed"
    );
    assert!(!listed(&cyclonedx) && !listed(&spdx));
    assert!(!cyclonedx.to_string().contains("\"kernel\""));
    assert!(!spdx.to_string().contains("SPDXRef-Kernel"));
}
