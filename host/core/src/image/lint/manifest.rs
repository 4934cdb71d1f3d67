//! The manifest of an image: whether its packages can be had, as far as that is known without the network.

use super::Finding;
use crate::dirs::Dirs;
use crate::image::apt::{Apt, Wanted};
use crate::image::packages::{PackageError, PackageSource};
use crate::image::recipe::Recipe;
use crate::image::shelf::LISTS;
use tokio_util::sync::CancellationToken;

/// Looks up the packages of an image in the lists that are here; none when there are no lists to look into.
pub fn lint_recipe(
    recipe: &Recipe,
    dirs: &Dirs,
    source: &PackageSource,
    cancel: &CancellationToken,
) -> Option<Vec<Finding>> {
    let apt = match (&recipe.suite, source) {
        (None, PackageSource::Apt) => Apt::of_host(),
        (Some(_), PackageSource::Apt | PackageSource::Mirror(_)) => {
            let wanted = Wanted::of(recipe);
            let lists = dirs.cache.join(LISTS).join(wanted.word()).join("state/lists");
            let mut lists = lists.read_dir().ok()?.flatten();
            lists.find(|file| file.file_name().to_string_lossy().contains("_Packages"))?;
            let mirror = match source {
                PackageSource::Mirror(mirror) => Some(mirror),
                _ => None,
            };
            Apt::of_suite(&wanted, mirror, &dirs.cache, false, cancel).ok()?
        }
        _ => return None,
    };
    let names = recipe.packages.iter().chain(&recipe.kernel.package);
    let findings = names.filter_map(|name| match apt.show(name, cancel) {
        Err(error @ PackageError::Unknown { .. }) => Some(Finding::new(
            "no-package",
            true,
            error.to_string(),
            "the image cannot be made",
            "mend its name; `guestline image build` fetches the lists of now",
        )),
        _ => None,
    });
    Some(findings.collect())
}
