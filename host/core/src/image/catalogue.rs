//! The manifests of images: those that the program carries, the user's own, and those that came with images of other hosts.
//!
//! ```text
//! CONFIG/images/NAME.toml   the user's; one of the same name goes before all others
//! STATE/images/NAME.toml    came with an image, and goes before the program's
//! STATE/images/NAME/        what was imported: image.toml, and its root or disk
//! a path to a .toml file    any manifest, wherever it lies
//! dir:PATH                  a folder that is a root
//! ```

use super::folder_digest;
use super::import;
use super::recipe::{EXTENDS, MORE, NAME, Recipe, RecipeError, in_folder};
use crate::dirs::Dirs;
use crate::kept::folders as kept_folders;
use crate::text::is_plain_name;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use strsim::levenshtein as distance;
use toml::Table;

/// The manifests that the program carries.
const CARRIED: &[(&str, &str)] = &[
    ("tiny", include_str!("../../../../images/tiny/image.toml")),
    ("debian-12", include_str!("../../../../images/debian-12/image.toml")),
    ("debian-13", include_str!("../../../../images/debian-13/image.toml")),
    ("debian-sid", include_str!("../../../../images/debian-sid/image.toml")),
    ("debian-12-systemd", include_str!("../../../../images/debian-12-systemd/image.toml")),
    ("tools", include_str!("../../../../images/tools/image.toml")),
];

/// Stands before the path of a folder that is a root.
pub(super) const FOLDER: &str = "dir:";

/// Whose kernel boots a root that brings none.
pub const DEFAULT_KERNEL: &str = "debian-12";

/// A chain of manifests is no longer.
const MAX_DEPTH: usize = 8;

/// A larger file is no manifest, in bytes.
const MAX_LEN: u64 = 1 << 20;

/// All manifests that can be named.
#[derive(Debug, Clone)]
pub struct Catalogue {
    folder: PathBuf,
    received: PathBuf,
}

/// The manifest of an import, in its folder.
pub(super) const IMPORTED: &str = "image.toml";

/// The JSON schema of a manifest.
pub const MANIFEST_SCHEMA: &str = include_str!("../../../../images/image.schema.json");

/// A manifest as it was found.
struct Found {
    /// Where it lies, when somebody wrote it.
    path: Option<PathBuf>,
    text: String,
}

impl Catalogue {
    /// With the user's folder.
    pub fn new(dirs: &Dirs) -> Self {
        Self { folder: dirs.config.join("images"), received: dirs.state.join("images") }
    }

    /// All names, in their order.
    pub fn names(&self) -> Vec<String> {
        let carried = CARRIED.iter().map(|(name, _)| (*name).to_owned());
        let folders = [&self.folder, &self.received].into_iter();
        let files = folders.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
        let own = files
            .filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".toml")?.to_owned()));
        let imports = kept_folders(&self.received).into_iter();
        let imports = imports.filter(|folder| folder.join(IMPORTED).is_file());
        let imports = imports.filter_map(|folder| Some(folder.file_name()?.to_str()?.to_owned()));
        let own: BTreeSet<String> = own.chain(imports).filter(|name| is_plain_name(name)).collect();
        let mut names: Vec<String> = carried.collect();
        names
            .extend(own.into_iter().filter(|name| !CARRIED.iter().any(|(known, _)| known == name)));
        names
    }

    /// Where an import of a name is, be there one or not.
    pub(super) fn imported(&self, name: &str) -> PathBuf {
        self.received.join(name)
    }

    /// Whether the program carries a manifest of this name.
    pub(super) fn carries(&self, name: &str) -> bool {
        CARRIED.iter().any(|(known, _)| *known == name)
    }

    /// The recipe of a name, or of a path to a manifest; with more packages as `NAME+PACKAGE,PACKAGE`.
    ///
    /// # Errors
    /// [`RecipeError`].
    pub fn get(&self, reference: &str) -> Result<Recipe, RecipeError> {
        let more = reference.split_once(MORE).filter(|(name, _)| !name.contains('/'));
        let Some((name, more)) = more else { return self.named(reference) };
        let more: Vec<&str> = more.split(',').collect();
        self.named(name)?
            .with_packages(&more)
            .map_err(|why| RecipeError::Packages { name: name.to_owned(), why })
    }

    /// The user's own manifest of this name, where there is one.
    pub(super) fn own(&self, name: &str) -> Option<PathBuf> {
        Some(self.folder.join(format!("{name}.toml"))).filter(|path| path.exists())
    }

    /// Where the manifest of this name is that came with an image.
    pub(super) fn received(&self, name: &str) -> PathBuf {
        self.received.join(format!("{name}.toml"))
    }

    /// Keeps the manifest that came with an image.
    ///
    /// # Errors
    /// What writing gives.
    pub(super) fn keep(&self, name: &str, text: &str) -> io::Result<()> {
        fs::create_dir_all(&self.received)?;
        crate::dirs::write_whole(&self.received, &format!("{name}.toml"), text.as_bytes())
    }

    /// Forgets the manifest that came with an image; false when none did.
    ///
    /// # Errors
    /// What removing it gives.
    pub fn forget(&self, name: &str) -> io::Result<bool> {
        if !is_plain_name(name) {
            return Ok(false);
        }
        match fs::remove_file(self.received(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            removed => removed.map(|()| true),
        }
    }

    fn named(&self, name: &str) -> Result<Recipe, RecipeError> {
        if let Some(folder) = name.strip_prefix(FOLDER) {
            return self.of_folder(Path::new(folder));
        }
        let (mut tables, mut wanted) = (Vec::new(), name.to_owned());
        let mut beside = None;
        let first = loop {
            let found = self.find(&wanted, beside.as_deref())?;
            let parsed = toml::from_str::<Table>(&found.text);
            let mut table = parsed.map_err(|source| RecipeError::Parse {
                name: wanted.clone(),
                path: found.path.clone(),
                source: source.into(),
            })?;
            let wrong = |why: String| RecipeError::Wrong {
                name: wanted.clone(),
                path: found.path.clone(),
                why,
            };
            let extends = match table.get(EXTENDS) {
                None => None,
                Some(toml::Value::String(name)) => Some(name.clone()),
                Some(_) => return Err(wrong(format!("{EXTENDS} is the name of an image"))),
            };
            if let Some(path) = &found.path {
                self.give_name(&mut table, path).map_err(wrong)?;
                let folder = path.parent().unwrap_or(Path::new("."));
                in_folder(&mut table, folder).map_err(wrong)?;
            }
            tables.push((table, found.path.clone()));
            match extends {
                None => break found.path,
                Some(_) if tables.len() >= MAX_DEPTH => {
                    return Err(wrong(format!(
                        "what it extends goes on and on: itself, or more than {MAX_DEPTH} manifests"
                    )));
                }
                Some(name) => {
                    beside = found.path.as_deref().and_then(Path::parent).map(Path::to_owned);
                    wanted = name;
                }
            }
        };
        let path = tables.first().map_or(first, |(_, path)| path.clone());
        let tables = tables.into_iter().rev().map(|(table, _)| table);
        match Recipe::of(tables) {
            Ok(mut recipe) => {
                recipe.path = path;
                Ok(recipe)
            }
            Err(why) => Err(RecipeError::Wrong { name: name.to_owned(), path, why }),
        }
    }

    /// A manifest that says no name has that of its file. In the user's folder both are the same: an image is looked for by its
    /// file, and kept and removed by its name.
    ///
    /// # Errors
    /// In words.
    fn give_name(&self, table: &mut Table, path: &Path) -> Result<(), String> {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        match table.get(NAME) {
            None if is_plain_name(&stem) => {
                table.insert(NAME.to_owned(), (*stem).into());
                Ok(())
            }
            None => Err(format!(
                "it has no name, and `{stem}` is none of an image (a-z, 0-9, `.`, `_` and `-`): say `{NAME} = \"…\"`"
            )),
            Some(toml::Value::String(name))
                if *name != *stem && path.parent() == Some(&*self.folder) =>
            {
                Err(format!(
                    "it says `{NAME} = \"{name}\"`, and its file is called `{stem}`: leave `{NAME}` out, or call the file `{name}.toml`"
                ))
            }
            Some(_) => Ok(()),
        }
    }

    /// A folder of this host as a root, with the default kernel for such.
    fn of_folder(&self, folder: &Path) -> Result<Recipe, RecipeError> {
        let wrong = |source| RecipeError::Read { path: folder.to_owned(), source };
        let folder = fs::canonicalize(folder).map_err(wrong)?;
        if !folder.is_dir() {
            let why = "it is no folder; `guestline image import` makes an image of it";
            return Err(wrong(io::Error::new(io::ErrorKind::NotADirectory, why)));
        }
        let sha256 = folder_digest::of_state(&folder).map_err(wrong)?;
        let kernel = self.named(DEFAULT_KERNEL)?;
        let table = import::of_folder(&folder, &sha256, kernel);
        Recipe::of([table]).map_err(|why| RecipeError::Wrong {
            name: format!("{FOLDER}{}", folder.display()),
            path: None,
            why,
        })
    }

    /// `beside`: where the manifest lies that extends it.
    fn find(&self, name: &str, beside: Option<&Path>) -> Result<Found, RecipeError> {
        if is_path(name) {
            return read(&beside.map_or_else(|| PathBuf::from(name), |folder| folder.join(name)));
        }
        let neighbour = beside.map(|folder| folder.join(format!("{name}.toml")));
        let received = [self.received(name), self.imported(name).join(IMPORTED)];
        for path in neighbour.into_iter().chain(self.own(name)).chain(received) {
            if is_plain_name(name) && path.is_file() {
                return read(&path);
            }
        }
        match CARRIED.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => Ok(Found { path: None, text: (*text).to_owned() }),
            None => {
                let mut known = self.names();
                known.sort_by_key(|known| distance(known, name));
                Err(RecipeError::Unknown { name: name.to_owned(), known })
            }
        }
    }
}

fn is_path(name: &str) -> bool {
    name.ends_with(".toml")
}

fn read(path: &Path) -> Result<Found, RecipeError> {
    let wrong = |source| RecipeError::Read { path: path.to_owned(), source };
    let found = fs::metadata(path).map_err(wrong)?;
    if !found.is_file() || found.len() > MAX_LEN {
        return Err(wrong(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is no manifest of an image",
        )));
    }
    let text = fs::read_to_string(path).map_err(wrong)?;
    Ok(Found { path: Some(path.to_owned()), text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn with(files: &[(&str, &str)]) -> (tempfile::TempDir, Catalogue) {
        let home = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::new(&Dirs::below(home.path()));
        fs::create_dir_all(&catalogue.folder).unwrap();
        for (name, text) in files {
            fs::write(catalogue.folder.join(name), text).unwrap();
        }
        (home, catalogue)
    }

    #[test]
    fn every_manifest_that_is_carried_is_right() {
        let (_home, catalogue) = with(&[]);
        assert_eq!(catalogue.names().len(), CARRIED.len());
        for name in catalogue.names() {
            let recipe = catalogue.get(&name).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(recipe.name, name);
            assert!(!recipe.owner.is_empty() && !recipe.licence.is_empty());
        }
    }

    #[test]
    fn a_users_own_extends_one_of_the_programs_in_two_lines() {
        let own = "extends = \"debian-12\"\npackages = [\"nftables\"]\n";
        let (home, catalogue) = with(&[("nft.toml", own)]);
        let recipe = catalogue.get("nft").unwrap();
        assert_eq!((&*recipe.name, &*recipe.summary), ("nft", "debian-12 with nftables"));
        assert_eq!((&*recipe.reference(), &*recipe.owner), ("nft", ""));
        assert!(recipe.packages.contains(&"nftables".to_owned()));
        assert!(recipe.packages.contains(&"bash".to_owned()));
        let names = catalogue.names();
        assert_eq!(names.iter().filter(|name| *name == "debian-12").count(), 1);
        assert_eq!(names.last().unwrap(), "nft");
        assert_eq!(catalogue.get("debian-12").unwrap().name, "debian-12");
        // By its path, and one that extends its neighbour.
        let path = home.path().join("more.toml");
        fs::write(&path, own.replace("debian-12", "near")).unwrap();
        fs::write(home.path().join("near.toml"), own).unwrap();
        let more = catalogue.get(path.to_str().unwrap()).unwrap();
        assert_eq!((&*more.name, &*more.summary), ("more", "near with nftables"));
        // Elsewhere than in the user's folder a file may be called as it likes.
        fs::write(&path, format!("name = \"other\"\n{own}")).unwrap();
        assert_eq!(catalogue.get(path.to_str().unwrap()).unwrap().name, "other");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let (home, catalogue) = with(&[
            ("round.toml", "name = \"round\"\nextends = \"round\"\n"),
            ("odd.toml", "name = \"odd\"\nextends = \"tiny\"\nmemory = 5\n"),
            ("broken.toml", "name = \n"),
            ("lost.toml", "name = \"lost\"\nextends = \"nowhere\"\n"),
            ("mine.toml", "name = \"debian-12\"\nextends = \"debian-12\"\n"),
        ]);
        fs::write(home.path().join("A b.toml"), "extends = \"tiny\"\n").unwrap();
        let unnamed = home.path().join("A b.toml");
        let said = |name: &str| {
            let text = crate::text::chain(&catalogue.get(name).unwrap_err());
            text.replace(&*home.path().to_string_lossy(), "HOME")
        };
        let all = [
            "tiny+nftables",
            "debian-12+",
            "debian-12+a b",
            "debian-11+x",
            "debian-11",
            "tinny",
            "round",
            "odd",
            "broken",
            "lost",
            "/nonexistent.toml",
            "../x",
            "mine",
            unnamed.to_str().unwrap(),
        ];
        insta::assert_snapshot!(all.map(said).join("\n"));
    }

    fn schema() -> (Value, jsonschema::Validator) {
        let schema: Value = serde_json::from_str(MANIFEST_SCHEMA).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        (schema, validator)
    }

    fn parsed(text: &str) -> Value {
        serde_json::to_value(toml::from_str::<Table>(text).unwrap()).unwrap()
    }

    #[test]
    fn the_schema_takes_every_manifest_that_is_carried() {
        let validator = schema().1;
        let (_home, catalogue) = with(&[]);
        for (name, text) in CARRIED {
            validator.validate(&parsed(text)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(text.starts_with("#:schema ../image.schema.json\n"), "{name}");
            let whole = catalogue.get(name).unwrap();
            let whole = parsed(whole.whole_text().unwrap());
            validator.validate(&whole).unwrap_or_else(|error| panic!("{name}, whole: {error}"));
        }
    }

    /// The keys that a table of a recipe has: serde tells them when it meets one that is none.
    fn known_keys(text: &str) -> BTreeSet<String> {
        let error = toml::from_str::<Recipe>(text).unwrap_err().message().to_owned();
        let (_, listed) = error.split_once(", expected ").unwrap_or_else(|| panic!("{error}"));
        listed.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn the_schema_and_the_recipe_know_the_same_keys() {
        let schema = schema().0;
        let of_schema = |place: &str| {
            let keys = schema.pointer(place).and_then(Value::as_object).unwrap();
            keys.keys().cloned().collect::<BTreeSet<_>>()
        };
        let mut recipe = known_keys("no_such_key = 1");
        recipe.insert(EXTENDS.to_owned());
        assert_eq!(of_schema("/properties"), recipe);
        for table in ["kernel", "busybox", "root", "disk", "disk.seed"] {
            // All that its own table has to have, so that it is the key that is told.
            let disk = "[disk]\nsha256 = \"DIGEST\"\nformat = \"raw\"\n";
            let others = if table == "disk.seed" { disk } else { "" };
            let others = others.replace("DIGEST", &"0".repeat(64));
            let keys = known_keys(&format!("{others}[{table}]\nno_such_key = 1\n"));
            let place = table.replace('.', "/properties/");
            assert_eq!(of_schema(&format!("/properties/{place}/properties")), keys);
        }
        let keys = known_keys("[files.\"etc/motd\"]\nno_such_key = 1\n");
        assert_eq!(of_schema("/$defs/file/properties"), keys);
    }

    #[test]
    fn the_schema_refuses_what_the_recipe_does() {
        let validator = schema().1;
        let base = CARRIED.iter().find(|(name, _)| *name == "debian-12").unwrap().1;
        let both = |text: &str| {
            let ours = Recipe::of([toml::from_str::<Table>(text).unwrap()]).is_ok();
            (ours, validator.is_valid(&parsed(text)))
        };
        assert_eq!(both(base), (true, true));
        let file = |file: &str| format!("\"etc/hosts\" = {file} # ");
        let sha256 = "0".repeat(64);
        let right = [
            file("{ content = \"x\" }"),
            file("{ content = \"x\", mode = \"0755\" }"),
            file(&format!("{{ file = \"x\", sha256 = \"{sha256}\", mode = \"4755\" }}")),
            file(&format!("{{ sha256 = \"{sha256}\" }}")),
        ];
        for file in right {
            assert_eq!(both(&base.replace("\"etc/hosts\" = ", &file)), (true, true), "{file}");
        }
        let files = [
            file("{ mode = \"0755\" }"),
            file("{ content = \"x\", mode = \"755x\" }"),
            file("{ content = \"x\", mode = 755 }"),
            file("{ content = \"x\", owner = \"me\" }"),
            file("{ content = \"x\", file = \"x\" }"),
            file("{ sha256 = \"x\" }"),
        ];
        for file in files {
            assert_eq!(both(&base.replace("\"etc/hosts\" = ", &file)), (false, false), "{file}");
        }
        let wrong = [
            ("name = \"debian-12\"", "name = \"Debian/..\""),
            ("name = \"debian-12\"", "name = 12"),
            ("memory_mib = 512", "memory = 512"),
            ("memory_mib = 512", "memory_mib = 1"),
            ("memory_mib = 512", "memory_mib = \"512\""),
            ("summary = ", "sumary = "),
            ("\"bash\"", "\"$(rm)\""),
            ("suite = \"bookworm\"", ""),
            ("suite = \"bookworm\"", "suite = \"a b\""),
            ("package = \"linux-image-cloud-amd64\"", ""),
            ("cmdline = ", "command = "),
            ("ready = \"agent\"", "ready = \"soon\""),
            ("ready = \"agent\"", "ready = \"agent\"\nshell = \"sh\""),
            ("ready = \"agent\"", "ready = \"agent\"\ninit = \"init\""),
            ("ready = \"agent\"", "ready = \"agent\"\nbusybox = { program = \"x\" }"),
            ("\"etc/hosts\"", "\"/etc/hosts\""),
            ("\"etc/hosts\"", "\"etc/../../hosts\""),
            ("\"etc/hosts\" = \"", "\"etc/hosts\" = 1 # \""),
        ];
        for (from, to) in wrong {
            assert!(base.contains(from), "{from}");
            assert_eq!(both(&base.replacen(from, to, 1)), (false, false), "{to}");
        }
    }

    #[test]
    fn a_manifest_that_came_with_an_image_goes_before_the_programs_and_after_the_users() {
        let text = |memory: u32| {
            format!("name = \"tiny\"\nextends = \"debian-12\"\nmemory_mib = {memory}\n")
        };
        let (_home, catalogue) = with(&[]);
        catalogue.keep("tiny", &text(300)).unwrap();
        catalogue.keep("other", &text(300).replace("tiny", "other")).unwrap();
        assert_eq!(catalogue.get("tiny").unwrap().memory_mib, 300);
        assert_eq!(catalogue.names().last().unwrap(), "other");
        fs::write(catalogue.folder.join("tiny.toml"), text(400)).unwrap();
        assert_eq!(catalogue.get("tiny").unwrap().memory_mib, 400);
        assert!(catalogue.forget("tiny").unwrap() && !catalogue.forget("tiny").unwrap());
        fs::remove_file(catalogue.own("tiny").unwrap()).unwrap();
        assert_eq!(catalogue.get("tiny").unwrap().memory_mib, 256);
    }

    #[test]
    fn the_whole_text_of_a_recipe_is_the_same_recipe() {
        let (_home, catalogue) = with(&[]);
        for (name, _) in CARRIED {
            let recipe = catalogue.get(name).unwrap();
            let again = Recipe::parse(recipe.whole_text().unwrap()).unwrap();
            assert_eq!((again.digest(), &again), (recipe.digest(), &recipe));
            let other = recipe.renamed("other").unwrap();
            assert_eq!((other.renamed(name).unwrap(), &*other.name), (recipe, "other"));
        }
        assert!(catalogue.get("debian-12+nftables").unwrap().whole_text().is_none());
        assert!(Recipe::parse("name = \"x\"\nextends = \"tiny\"").is_err());
        assert!(catalogue.get("tiny").unwrap().renamed("../x").is_err());
    }

    #[test]
    fn distances() {
        assert_eq!(distance("tiny", "tiny"), 0);
        assert_eq!(distance("tinny", "tiny"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
