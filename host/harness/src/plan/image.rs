//! What is known of an image before it runs: of its recipe, and of its manifest once it is made.

use super::GuestFacts;
use crate::suite::{Capability, CapabilityName};
use guestline::image::{Image, Recipe};

/// Releases of Debian by the names of their suites.
const DEBIAN: [(&str, &str); 5] =
    [("buster", "10"), ("bullseye", "11"), ("bookworm", "12"), ("trixie", "13"), ("forky", "14")];

/// What only a running guest says.
const ASKED: [&str; 3] = ["guest.cpu", "guest.dmi", "guest.pci"];

/// The facts of an image.
pub fn image_facts(recipe: &Recipe, image: Option<&Image>) -> GuestFacts {
    let mut known = GuestFacts::default();
    let mut provide = |name: &str, capability: Capability| {
        known.facts.extend(name.parse().ok().map(|name: CapabilityName| (name, capability)));
    };
    let mut open: Vec<&str> = ASKED.to_vec();
    provide("image.name", Capability::fact(&recipe.name));
    provide("guest.arch", Capability::fact(std::env::consts::ARCH));
    for name in &recipe.provides {
        let doc = format!("The image {} says so.", recipe.name);
        provide(name, Capability::flag().with_doc(doc).with_owner(&recipe.owner));
    }
    match system(recipe) {
        Some((os, version)) => {
            provide("image.os", Capability::fact(&os));
            match version {
                Some(version) => provide("image.version", Capability::fact(&version)),
                None => open.push("image.version"),
            }
        }
        None => open.extend(["image.os", "image.version"]),
    }
    match image.map(|image| &image.manifest).filter(|manifest| !manifest.kernel_release.is_empty())
    {
        Some(manifest) => provide("guest.kernel", Capability::fact(&manifest.kernel_release)),
        None => open.push("guest.kernel"),
    }
    match image.and_then(Image::kconfig) {
        Some(kconfig) => {
            for (option, value) in kconfig.capabilities() {
                provide(&format!("guest.{option}"), Capability::fact(value));
            }
        }
        None => open.push("guest.kconfig"),
    }
    match image {
        Some(image) => {
            provide("guest.memory", Capability::fact(&format!("{}M", image.manifest.memory_mib)));
        }
        None => open.push("guest.memory"),
    }
    known.open = open.into_iter().filter_map(|name| name.parse().ok()).collect();
    known
}

/// The system in it and its version, as os-release(5) has them.
fn system(recipe: &Recipe) -> Option<(String, Option<String>)> {
    if let Some(suite) = &recipe.suite {
        let version = DEBIAN.iter().find(|(name, _)| name == suite);
        return Some(("debian".to_owned(), version.map(|(_, version)| (*version).to_owned())));
    }
    let file = recipe.files.get("etc/os-release")?;
    let text = file.text()?;
    let value = |key: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value.map(|value| value.trim_matches('"').to_owned())
    };
    Some((value("ID")?, value("VERSION_ID")))
}
