//! Bills of materials of images, made from their manifests: the same image gives the same bytes, so there is no time and no
//! random number in them.
//!
//! What is in one: the image, each package with version and digest, the agent, the kernel, and the files that are booted. The
//! architecture of packages is not, since those that are for all of them are not told apart by a manifest. Nor is what is in a
//! root or disk that was imported; the bill says so.

mod cyclonedx;
mod spdx;
#[cfg(test)]
mod tests;

pub use cyclonedx::cyclonedx;
pub use spdx::spdx;

use super::manifest::{Manifest, PackageRecord};
use super::recipe::Recipe;
use serde_json::Value;

/// The agent, as a component.
const AGENT: &str = "guestline-agent";

/// The kernel, as a component.
const KERNEL: &str = "linux";

/// Whether the image's own kernel is a component: what boots in a disk is not known.
fn has_kernel(manifest: &Manifest) -> bool {
    manifest.disk.is_none()
}

/// Why the bill is not complete, where it is not.
fn incomplete(recipe: &Recipe) -> Option<&'static str> {
    match recipe {
        Recipe { disk: Some(_), .. } => {
            Some("incomplete: the disk was imported, and what is in it is not listed")
        }
        Recipe { root: Some(_), .. } => {
            Some("incomplete: the root was imported, and what is in it is not listed")
        }
        _ => None,
    }
}

/// What a package is called everywhere (package-url specification, type `deb`).
fn purl(package: &PackageRecord, recipe: &Recipe) -> String {
    let (name, version) = (encoded(&package.name), encoded(&package.version));
    let distro = recipe.suite.as_ref().map(|suite| format!("?distro={}", encoded(suite)));
    format!("pkg:deb/debian/{name}@{version}{}", distro.unwrap_or_default())
}

/// As it stands in a purl: letters, digits and these stay as they are, all else is `%XX`.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_~:".contains(&byte);
    let encode = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

fn to_text(bill: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(bill).unwrap_or_default();
    text.push(b'\n');
    text
}
