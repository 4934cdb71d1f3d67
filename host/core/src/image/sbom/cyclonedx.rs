//! A bill of materials as CycloneDX 1.6 in JSON (ECMA-424).

use super::{AGENT, KERNEL, has_kernel, incomplete, purl, to_text};
use crate::digest::Digest;
use crate::image::manifest::Manifest;
use crate::image::recipe::Recipe;
use serde_json::{Value, json};

/// The bill of materials of an image.
pub fn cyclonedx(manifest: &Manifest, recipe: &Recipe) -> Vec<u8> {
    let hashes = |digest: &Digest| json!([{ "alg": "SHA-256", "content": digest }]);
    let image = manifest.digest();
    let mut component = json!({
        "type": "operating-system",
        "bom-ref": "image",
        "name": manifest.name,
        "version": image.short(),
        "description": recipe.summary,
        "hashes": hashes(&image),
        "properties": [
            { "name": "guestline:format", "value": manifest.format.to_string() },
            { "name": "guestline:recipe", "value": manifest.recipe },
            { "name": "guestline:cmdline", "value": manifest.cmdline },
        ],
    });
    if !manifest.owner.is_empty() {
        component["supplier"] = json!({ "name": manifest.owner });
    }
    if !manifest.licence.is_empty() {
        component["licenses"] = json!([{ "license": { "name": manifest.licence } }]);
    }
    let mut components: Vec<Value> = Vec::new();
    for package in &manifest.packages {
        let purl = purl(package, recipe);
        components.push(json!({
            "type": "library",
            "bom-ref": purl,
            "name": package.name,
            "version": package.version,
            "purl": purl,
            "hashes": hashes(&package.sha256),
        }));
    }
    components.push(json!({
        "type": "application",
        "bom-ref": "agent",
        "name": AGENT,
        // Its build; the manifest knows no other version of it.
        "version": manifest.agent.short(),
        "hashes": hashes(&manifest.agent),
    }));
    if has_kernel(manifest) {
        let mut kernel = json!({
            "type": "operating-system",
            "bom-ref": "kernel",
            "name": KERNEL,
            "version": manifest.kernel_release,
        });
        if let Some(file) = manifest.file(crate::image::build::KERNEL) {
            kernel["hashes"] = hashes(&file.sha256);
        }
        components.push(kernel);
    }
    for file in &manifest.files {
        components.push(json!({
            "type": "file",
            "bom-ref": format!("file:{}", file.name),
            "name": file.name,
            "hashes": hashes(&file.sha256),
        }));
    }
    let refs: Vec<&Value> = components.iter().map(|component| &component["bom-ref"]).collect();
    let mut bill = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": { "component": component },
        "components": components,
        "dependencies": [{ "ref": "image", "dependsOn": refs }],
    });
    if incomplete(recipe).is_some() {
        bill["compositions"] = json!([{ "aggregate": "incomplete", "assemblies": ["image"] }]);
    }
    to_text(&bill)
}
