//! What an image is made of: `images/NAME/image.toml`.

use crate::digest::Digest;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The recipes that the program carries.
const CATALOGUE: &[(&str, &str)] = &[("tiny", include_str!("../../../../images/tiny/image.toml"))];

/// A recipe, parsed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The image's name.
    pub name: String,
    /// One line for lists.
    pub summary: String,
    /// Debian packages; the kernel's may be a metapackage.
    pub packages: Vec<String>,
    /// Default memory of a machine, MiB.
    pub memory_mib: u64,
    /// A line for its shell that is run in a machine that waits in a pool.
    pub warm_up: Option<String>,
    /// The kernel.
    pub kernel: KernelRecipe,
    /// The shell and its tools.
    pub busybox: BusyboxRecipe,
    /// Small files: path and content.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Digest of the recipe's text.
    #[serde(skip)]
    digest: Option<Digest>,
}

/// The kernel and its modules.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelRecipe {
    /// Command line, without what is added for the agent.
    pub cmdline: String,
    /// Modules that the agent loads, with what they need.
    #[serde(default)]
    pub load: Vec<String>,
    /// More modules in the image, with what they need.
    #[serde(default)]
    pub modules: Vec<String>,
}

/// The shell and its tools.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusyboxRecipe {
    /// Path in its package.
    pub program: String,
}

/// There is no such recipe, or it is wrong.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// No image of this name.
    #[error("no image is called `{name}`; there is: {}", known.join(", "))]
    Unknown {
        /// The name.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// The text.
    #[error("the recipe of image `{name}` is wrong")]
    Parse {
        /// The image.
        name: String,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
}

impl Recipe {
    /// The names in the catalogue.
    pub fn names() -> impl Iterator<Item = &'static str> {
        CATALOGUE.iter().map(|(name, _)| *name)
    }

    /// The recipe of this name.
    ///
    /// # Errors
    /// [`RecipeError`].
    pub fn named(name: &str) -> Result<Self, RecipeError> {
        let Some((name, text)) = CATALOGUE.iter().find(|(known, _)| *known == name) else {
            let known = Self::names().map(str::to_owned).collect();
            return Err(RecipeError::Unknown { name: name.to_owned(), known });
        };
        Self::parse(name, text)
    }

    fn parse(name: &str, text: &str) -> Result<Self, RecipeError> {
        let parsed = toml::from_str::<Self>(text);
        let mut recipe = parsed.map_err(|source| RecipeError::Parse {
            name: name.to_owned(),
            source: source.into(),
        })?;
        recipe.digest = Some(Digest::of(text.as_bytes()));
        Ok(recipe)
    }

    /// Digest of the recipe's text.
    pub fn digest(&self) -> Digest {
        self.digest.clone().unwrap_or_else(|| Digest::of(b""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_of_the_catalogue_is_right() {
        for name in Recipe::names() {
            assert_eq!(Recipe::named(name).unwrap().name, name);
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = Recipe::named("windows").unwrap_err().to_string();
        assert_eq!(error, "no image is called `windows`; there is: tiny");
    }

    #[test]
    fn a_misspelt_key_is_an_error() {
        let text = CATALOGUE[0].1.replace("memory_mib", "memory");
        assert!(matches!(Recipe::parse("tiny", &text), Err(RecipeError::Parse { .. })));
    }
}
