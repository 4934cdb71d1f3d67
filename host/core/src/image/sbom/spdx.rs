//! A bill of materials as SPDX 2.3 in JSON (ISO/IEC 5962).

use super::{AGENT, KERNEL, has_kernel, incomplete, purl, to_text};
use crate::digest::Digest;
use crate::image::manifest::Manifest;
use crate::image::recipe::Recipe;
use serde_json::{Value, json};

/// When nothing was made: a bill that tells its hour would be another one each time (reproducible-builds.org).
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// The bill of materials of an image.
pub fn spdx(manifest: &Manifest, recipe: &Recipe) -> Vec<u8> {
    let image = manifest.digest();
    let mut root = package("Image", &manifest.name, image.short(), Some(&image));
    root["summary"] = json!(recipe.summary);
    root["primaryPackagePurpose"] = json!("OPERATING-SYSTEM");
    if !manifest.owner.is_empty() {
        root["attributionTexts"] = json!([format!("owner: {}", manifest.owner)]);
    }
    if !manifest.licence.is_empty() {
        root["licenseComments"] = json!(manifest.licence);
    }
    if let Some(why) = incomplete(recipe) {
        root["comment"] = json!(why);
    }
    let mut packages = vec![root];
    for (number, record) in (1..).zip(&manifest.packages) {
        let id = format!("Package-{number}");
        let mut package = package(&id, &record.name, &record.version, Some(&record.sha256));
        package["externalRefs"] = json!([{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": purl(record, recipe),
        }]);
        packages.push(package);
    }
    packages.push(package("Agent", AGENT, manifest.agent.short(), Some(&manifest.agent)));
    if has_kernel(manifest) {
        let kernel = manifest.file(crate::image::build::KERNEL).map(|file| &file.sha256);
        packages.push(package("Kernel", KERNEL, &manifest.kernel_release, kernel));
    }
    for (number, file) in (1..).zip(&manifest.files) {
        let mut package =
            package(&format!("File-{number}"), &file.name, file.sha256.short(), Some(&file.sha256));
        package["primaryPackagePurpose"] = json!("FILE");
        packages.push(package);
    }
    let contained = packages.iter().skip(1).map(|package| {
        json!({
            "spdxElementId": "SPDXRef-Image",
            "relationshipType": "CONTAINS",
            "relatedSpdxElement": package["SPDXID"],
        })
    });
    let described = json!({
        "spdxElementId": "SPDXRef-DOCUMENT",
        "relationshipType": "DESCRIBES",
        "relatedSpdxElement": "SPDXRef-Image",
    });
    let relationships: Vec<Value> = std::iter::once(described).chain(contained).collect();
    to_text(&json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": manifest.name,
        "documentNamespace": format!("https://guestline.invalid/spdx/{}/{image}", manifest.name),
        "creationInfo": { "created": EPOCH, "creators": ["Tool: guestline"] },
        "packages": packages,
        "relationships": relationships,
    }))
}

fn package(id: &str, name: &str, version: &str, digest: Option<&Digest>) -> Value {
    let mut package = json!({
        "SPDXID": format!("SPDXRef-{id}"),
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
    });
    if let Some(digest) = digest {
        package["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": digest }]);
    }
    package
}
