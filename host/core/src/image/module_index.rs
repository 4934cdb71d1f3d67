//! The files by which modprobe(8) finds modules, as depmod(8) writes them, in text and in the form that libkmod reads:
//! a trie in the file, big-endian, children before their parents (kmod `libkmod/libkmod-index.h`).
//!
//! ```text
//! header   magic, version, where the root is
//! node     [prefix NUL] [first last child…] [count (priority value NUL)…]; which of them there are is in the top bits of
//!          where it is
//! ```
//! They are made here so that they are the same wherever an image is made, and there where no depmod is.

use super::elf::section;
use std::collections::BTreeMap;
use std::fmt::Write;

const MAGIC: u32 = 0xb007_f457;
const VERSION: u32 = 0x0002_0001;
const HAS_PREFIX: u32 = 0x8000_0000;
const HAS_VALUES: u32 = 0x4000_0000;
const HAS_CHILDREN: u32 = 0x2000_0000;

/// What `.modinfo` says of a module: `key=value` strings, each with its end (Linux `include/linux/module.h`).
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct ModuleInfo(Vec<(String, String)>);

impl ModuleInfo {
    /// Of a module that is not packed.
    pub(super) fn of(content: &[u8]) -> Self {
        Self::parse(section(content, ".modinfo").unwrap_or_default())
    }

    fn parse(strings: &[u8]) -> Self {
        let texts = strings.split(|byte| *byte == 0).filter_map(|text| str::from_utf8(text).ok());
        let pairs = texts.filter_map(|text| text.split_once('='));
        Self(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(found, _)| found == key).map(|(_, value)| value.as_str())
    }

    /// The kernel that it is for: the beginning of `vermagic`.
    pub(super) fn release(&self) -> Option<&str> {
        self.all("vermagic").next()?.split(' ').next()
    }

    fn needs(&self) -> Vec<String> {
        let needs = self.all("depends").flat_map(|value| value.split(','));
        needs.filter(|name| !name.is_empty()).map(underscored).collect()
    }
}

/// The modules of a kernel.
#[derive(Debug, Default, Clone)]
pub(super) struct ModuleIndex {
    /// By name: path, and what it says of itself.
    modules: BTreeMap<String, (String, ModuleInfo)>,
    /// Name and place in `modules.order`.
    order: BTreeMap<String, u32>,
    builtin: Vec<String>,
    /// Alias and module.
    builtin_aliases: Vec<(String, String)>,
}

impl ModuleIndex {
    /// A module, at a path below `/lib/modules/RELEASE/`.
    pub(super) fn add(&mut self, name: &str, path: &str, info: ModuleInfo) {
        self.modules.insert(underscored(name), (path.to_owned(), info));
    }

    /// `modules.order`: in which order modules are tried that have the same alias.
    pub(super) fn set_order(&mut self, text: &str) {
        self.order = text.lines().filter_map(name_of).zip(0..).collect();
    }

    /// `modules.builtin`: what the kernel has in it.
    pub(super) fn set_builtin(&mut self, text: &str) {
        self.builtin = text.lines().filter_map(name_of).collect();
    }

    /// `modules.builtin.modinfo`: what that says of itself, `NAME.KEY=VALUE` strings.
    pub(super) fn set_builtin_info(&mut self, strings: &[u8]) {
        let ModuleInfo(pairs) = ModuleInfo::parse(strings);
        let aliases = pairs
            .into_iter()
            .filter_map(|(key, alias)| Some((alias, key.strip_suffix(".alias").map(underscored)?)));
        self.builtin_aliases = aliases.collect();
    }

    /// Is it there: as a module, or built in?
    pub(super) fn has(&self, name: &str) -> bool {
        self.modules.contains_key(name) || self.is_builtin(name)
    }

    pub(super) fn is_builtin(&self, name: &str) -> bool {
        self.builtin.iter().any(|found| found == name)
    }

    /// All modules.
    pub(super) fn names(&self) -> Vec<String> {
        self.modules.keys().cloned().collect()
    }

    /// The named modules and all that they need; what is built in or is not there is left out.
    pub(super) fn closure(&self, names: &[String]) -> Vec<String> {
        let mut order = Vec::new();
        for name in names {
            self.visit(&underscored(name), &mut order, &mut Vec::new());
        }
        order
    }

    /// With these alone.
    pub(super) fn only(&self, names: &[String]) -> Self {
        let kept = self.modules.iter().filter(|(name, _)| names.contains(name));
        let modules = kept.map(|(name, module)| (name.clone(), module.clone())).collect();
        Self { modules, ..self.clone() }
    }

    /// Name and content of the files.
    pub(super) fn files(&self) -> Vec<(&'static str, Vec<u8>)> {
        let (mut dep, mut aliases) = (String::new(), String::new());
        let (mut soft, mut nodes) = (String::new(), String::new());
        let (mut dep_trie, mut alias_trie) = (Trie::default(), Trie::default());
        let mut names: Vec<&String> = self.modules.keys().collect();
        names.sort_by_key(|name| self.priority(name));
        for (name, (path, info)) in
            names.into_iter().filter_map(|name| self.modules.get_key_value(name))
        {
            let needs = self.needs(name).into_iter().filter_map(|need| self.modules.get(&need));
            let needs: String = needs.flat_map(|(path, _)| [" ", path]).collect();
            let line = format!("{path}:{needs}");
            let _ = writeln!(dep, "{line}");
            dep_trie.add(name, self.priority(name), &line);
            for alias in info.all("alias") {
                let _ = writeln!(aliases, "alias {alias} {name}");
                alias_trie.add(&normal(alias), self.priority(name), name);
            }
            for needs in info.all("softdep") {
                let _ = writeln!(soft, "softdep {name} {needs}");
            }
            if let Some(node) = device_node(info) {
                let _ = writeln!(nodes, "{name} {node}");
            }
        }
        let mut builtin = Trie::default();
        self.builtin.iter().for_each(|name| builtin.add(name, 0, ""));
        let mut builtin_aliases = Trie::default();
        for (alias, name) in &self.builtin_aliases {
            builtin_aliases.add(&normal(alias), 0, name);
        }
        vec![
            ("modules.dep", dep.into_bytes()),
            ("modules.dep.bin", dep_trie.to_bytes()),
            ("modules.alias", aliases.into_bytes()),
            ("modules.alias.bin", alias_trie.to_bytes()),
            ("modules.softdep", soft.into_bytes()),
            ("modules.devname", nodes.into_bytes()),
            // Which module has a symbol is asked by nobody but a handful of drivers, and known to those that need it.
            ("modules.symbols", Vec::new()),
            ("modules.symbols.bin", Trie::default().to_bytes()),
            ("modules.builtin.bin", builtin.to_bytes()),
            ("modules.builtin.alias.bin", builtin_aliases.to_bytes()),
        ]
    }

    fn priority(&self, name: &str) -> u32 {
        self.order.get(name).copied().unwrap_or(u32::MAX)
    }

    /// All that a module needs, what is to be loaded first last.
    fn needs(&self, name: &str) -> Vec<String> {
        let mut order = Vec::new();
        self.visit(name, &mut order, &mut Vec::new());
        order.pop();
        order.reverse();
        order
    }

    fn visit(&self, name: &str, order: &mut Vec<String>, open: &mut Vec<String>) {
        let Some((_, info)) = self.modules.get(name) else { return };
        if order.iter().chain(open.iter()).any(|known| known == name) {
            return;
        }
        open.push(name.to_owned());
        for need in info.needs() {
            self.visit(&need, order, open);
        }
        open.pop();
        order.push(name.to_owned());
    }
}

/// The kernel takes `-` and `_` for the same.
pub(super) fn underscored(name: &str) -> String {
    name.replace('-', "_")
}

/// The module's name in a path, if it is a module's.
pub(super) fn name_of(path: &str) -> Option<String> {
    let (stem, packed) = path.rsplit('/').next()?.split_once(".ko")?;
    (packed.is_empty() || packed.starts_with('.')).then(|| underscored(stem))
}

/// An alias as it is looked for: `-` is `_`, but for what stands in brackets.
fn normal(alias: &str) -> String {
    let mut depth = 0_u32;
    let each = alias.chars().map(|letter| {
        match letter {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if letter == '-' && depth == 0 { '_' } else { letter }
    });
    each.collect()
}

/// What udev makes before the module is loaded, which that is for: `net/tun c10:200`.
fn device_node(info: &ModuleInfo) -> Option<String> {
    let name = info.all("alias").find_map(|alias| alias.strip_prefix("devname:"))?;
    info.all("alias").find_map(|alias| {
        let (kind, numbers) = match alias.split_once("-major-")? {
            ("char", numbers) => ('c', numbers),
            ("block", numbers) => ('b', numbers),
            _ => return None,
        };
        let (major, minor) = numbers.split_once('-')?;
        let both = [major, minor].map(str::parse::<u32>);
        both.iter().all(Result::is_ok).then(|| format!("{name} {kind}{major}:{minor}"))
    })
}

/// Keys with values in their order of priority.
#[derive(Debug, Default)]
struct Trie(BTreeMap<Vec<u8>, Vec<(u32, String)>>);

impl Trie {
    fn add(&mut self, key: &str, priority: u32, value: &str) {
        // The format has no more, nor ends in keys.
        if key.bytes().all(|byte| (1..0x80).contains(&byte)) && !value.contains('\0') {
            self.0.entry(key.as_bytes().to_vec()).or_default().push((priority, value.to_owned()));
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend([MAGIC, VERSION, 0].map(u32::to_be_bytes).concat());
        let keys = self.0.iter().map(|(key, values)| (key.as_slice(), values.as_slice()));
        let keys: Vec<Key<'_>> = keys.collect();
        let root = write_node(&keys, &mut out);
        if let Some(place) = out.get_mut(8..12) {
            place.copy_from_slice(&root.to_be_bytes());
        }
        out
    }
}

/// What is left of a key, and its values.
type Key<'a> = (&'a [u8], &'a [(u32, String)]);

/// Writes a node for sorted keys and all below it; returns where it is, with the bits that say what it has.
fn write_node(keys: &[Key<'_>], out: &mut Vec<u8>) -> u32 {
    let Some(((first, _), (last, _))) = keys.first().zip(keys.last()) else {
        return place(out);
    };
    let shared = first.iter().zip(last.iter()).take_while(|(a, b)| a == b).count();
    let prefix = first.get(..shared).unwrap_or_default();
    let (own, below): (Vec<_>, Vec<_>) = keys
        .iter()
        .map(|(key, values)| (key.get(shared..).unwrap_or_default(), *values))
        .partition(|(rest, _)| rest.is_empty());
    let initial = |(rest, _): &Key<'_>| rest.first().copied();
    let mut children: Vec<(u8, u32)> = Vec::new();
    for group in below.chunk_by(|a, b| initial(a) == initial(b)) {
        let Some(letter) = group.first().and_then(initial) else { continue };
        let rests: Vec<_> = group
            .iter()
            .map(|(rest, values)| (rest.get(1..).unwrap_or_default(), *values))
            .collect();
        children.push((letter, write_node(&rests, out)));
    }
    let mut at = place(out);
    if !prefix.is_empty() {
        at |= HAS_PREFIX;
        out.extend(prefix);
        out.push(0);
    }
    if let Some(((from, _), (to, _))) = children.first().zip(children.last()) {
        at |= HAS_CHILDREN;
        out.extend([*from, *to]);
        for letter in *from..=*to {
            let child =
                children.iter().find(|(found, _)| *found == letter).map_or(0, |(_, at)| *at);
            out.extend(child.to_be_bytes());
        }
    }
    let mut values: Vec<&(u32, String)> = own.into_iter().flat_map(|(_, values)| values).collect();
    values.sort_by_key(|(priority, _)| *priority);
    if !values.is_empty() {
        at |= HAS_VALUES;
        out.extend(u32::try_from(values.len()).unwrap_or_default().to_be_bytes());
        for (priority, value) in values {
            out.extend(priority.to_be_bytes());
            out.extend(value.as_bytes());
            out.push(0);
        }
    }
    at
}

/// Where the next node begins. No index comes near the bits that are used otherwise.
fn place(out: &[u8]) -> u32 {
    u32::try_from(out.len()).unwrap_or_default() & !(HAS_PREFIX | HAS_VALUES | HAS_CHILDREN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(pairs: &[(&str, &str)]) -> ModuleInfo {
        let strings: String = pairs.iter().map(|(key, value)| format!("{key}={value}\0")).collect();
        ModuleInfo::parse(strings.as_bytes())
    }

    fn index() -> ModuleIndex {
        let mut index = ModuleIndex::default();
        index.add("virtio", "kernel/virtio.ko", info(&[("depends", "virtio_ring")]));
        index.add("virtio_ring", "kernel/virtio_ring.ko", info(&[]));
        index.add(
            "virtio-net",
            "kernel/net/virtio-net.ko",
            info(&[
                ("depends", "virtio,failover"),
                ("alias", "virtio:d00000001v*"),
                ("softdep", "pre: virtio_pci"),
                ("vermagic", "6.1.0 SMP"),
            ]),
        );
        let tun = [("alias", "devname:net/tun"), ("alias", "char-major-10-200")];
        index.add("tun", "kernel/net/tun.ko", info(&tun));
        index.set_order("kernel/virtio_ring.ko\nkernel/virtio.ko\nkernel/net/virtio-net.ko\n");
        index.set_builtin("kernel/fs/ext4/ext4.ko\n");
        index.set_builtin_info(b"ext4.license=GPL\0ext4.alias=fs-ext3\0");
        index
    }

    fn text(name: &str) -> String {
        let files = index().files();
        let (_, content) = files.iter().find(|(found, _)| *found == name).unwrap();
        String::from_utf8(content.clone()).unwrap()
    }

    /// What libkmod does: the values of a key.
    fn look_up(trie: &[u8], key: &str) -> Vec<String> {
        let number = |at: usize| u32::from_be_bytes(trie[at..at + 4].try_into().unwrap());
        assert_eq!((number(0), number(4)), (MAGIC, VERSION));
        let (mut node, mut rest) = (number(8), key.as_bytes());
        loop {
            let mut at = (node & 0x0fff_ffff) as usize;
            if node & HAS_PREFIX != 0 {
                let len = trie[at..].iter().position(|byte| *byte == 0).unwrap();
                let Some(left) = rest.strip_prefix(&trie[at..at + len]) else { return Vec::new() };
                (rest, at) = (left, at + len + 1);
            }
            if node & HAS_CHILDREN != 0 {
                let (first, last) = (trie[at], trie[at + 1]);
                at += 2;
                if let Some((letter, left)) = rest.split_first() {
                    if !(first..=last).contains(letter) {
                        return Vec::new();
                    }
                    node = number(at + 4 * usize::from(letter - first));
                    if node == 0 {
                        return Vec::new();
                    }
                    rest = left;
                    continue;
                }
                at += 4 * (usize::from(last - first) + 1);
            }
            if node & HAS_VALUES == 0 || !rest.is_empty() {
                return Vec::new();
            }
            let count = number(at);
            at += 4;
            return (0..count)
                .map(|_| {
                    let from = at + 4;
                    let len = trie[from..].iter().position(|byte| *byte == 0).unwrap();
                    at = from + len + 1;
                    String::from_utf8(trie[from..from + len].to_vec()).unwrap()
                })
                .collect();
        }
    }

    #[test]
    fn the_texts_are_those_of_depmod() {
        insta::assert_snapshot!(
            ["modules.dep", "modules.alias", "modules.softdep", "modules.devname"]
                .map(|name| format!("{name}\n{}", text(name)))
                .concat()
        );
        assert_eq!(index().modules["virtio_net"].1.release(), Some("6.1.0"));
        let early = index().closure(&["virtio-net".to_owned(), "ext4".to_owned()]);
        assert_eq!(early, ["virtio_ring", "virtio", "virtio_net"]);
        assert!(!index().only(&early).has("tun") && index().has("tun") && index().has("ext4"));
    }

    #[test]
    fn what_is_in_a_trie_is_found_and_nothing_else() {
        let mut trie = Trie::default();
        let keys = ["", "a", "abc", "abd", "abcdef", "b", "virtio:d00000001v*", "zz"];
        for (number, key) in keys.iter().enumerate() {
            trie.add(key, 1, &format!("value {number}"));
            trie.add(key, 0, "first");
        }
        let bytes = trie.to_bytes();
        for (number, key) in keys.iter().enumerate() {
            assert_eq!(look_up(&bytes, key), ["first".to_owned(), format!("value {number}")]);
        }
        for key in ["ab", "abcd", "c", "z", "zzz"] {
            assert!(look_up(&bytes, key).is_empty(), "{key}");
        }
        assert!(look_up(&Trie::default().to_bytes(), "a").is_empty());
        let files = index().files();
        let found = |name: &str, key| {
            look_up(&files.iter().find(|(found, _)| *found == name).unwrap().1, key)
        };
        assert_eq!(found("modules.alias.bin", "virtio:d00000001v*"), ["virtio_net"]);
        assert_eq!(found("modules.builtin.alias.bin", "fs_ext3"), ["ext4"]);
        assert_eq!(found("modules.builtin.bin", "ext4"), [""]);
    }

    #[test]
    fn dashes_in_brackets_stay() {
        assert_eq!(normal("fs-a[0-9]-b"), "fs_a[0-9]_b");
    }
}
