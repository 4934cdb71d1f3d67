//! Headers of ELF files (ELF-64 Object File Format): kernels, modules and agents are told by them.

/// `e_machine` of what machines of x86-64 hosts run: a 64-bit kernel may run 32-bit programs, and the agent beside them.
const X86_64: u16 = 62;
const X86: u16 = 3;

/// An entry of the program header table.
pub(super) struct Segment {
    /// `p_type`.
    pub(super) kind: u32,
    /// Where it begins in the file.
    pub(super) offset: u64,
    /// Its bytes in the file.
    pub(super) len: u64,
}

/// For what machine an ELF file is, by its first bytes, unless it is one that runs here; none also when it is no ELF file.
pub(super) fn foreign_machine(head: &[u8]) -> Option<String> {
    let name = match machine(head)? {
        X86_64 | X86 => return None,
        8 => "MIPS",
        21 => "64-bit PowerPC",
        22 => "s390x",
        40 => "32-bit ARM",
        183 => "aarch64",
        243 => "RISC-V",
        258 => "LoongArch",
        number => {
            let bits = if head.get(4) == Some(&2) { 64 } else { 32 };
            return Some(format!("a {bits}-bit machine of ELF number {number}"));
        }
    };
    Some(name.to_owned())
}

/// `e_machine` of an ELF file, in the file's own order of bytes (`e_ident[EI_DATA]`).
fn machine(bytes: &[u8]) -> Option<u16> {
    let field = bytes.get(18..20).filter(|_| bytes.starts_with(b"\x7fELF"))?.try_into().ok()?;
    match bytes.get(5)? {
        1 => Some(u16::from_le_bytes(field)),
        2 => Some(u16::from_be_bytes(field)),
        _ => None,
    }
}

/// The program headers of an x86-64 file; none when it is something else, or cut before their end.
pub(super) fn segments(bytes: &[u8]) -> Option<Vec<Segment>> {
    if !bytes.starts_with(b"\x7fELF\x02\x01") || machine(bytes)? != X86_64 {
        return None;
    }
    let at = usize::try_from(u64_at(bytes, 32)?).ok()?;
    let (size, count) = (usize::from(u16_at(bytes, 54)?), usize::from(u16_at(bytes, 56)?));
    (0..count)
        .map(|index| {
            let at = at.checked_add(size.checked_mul(index)?)?;
            let kind = u32_at(bytes, at)?;
            Some(Segment { kind, offset: u64_at(bytes, at + 8)?, len: u64_at(bytes, at + 32)? })
        })
        .collect()
}

/// The content of the first section of this name, of a 64-bit little-endian file.
pub(super) fn section<'a>(bytes: &'a [u8], name: &str) -> Option<&'a [u8]> {
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let number = |value: u64| usize::try_from(value).ok();
    let table = number(u64_at(bytes, 40)?)?;
    let (size, count) = (usize::from(u16_at(bytes, 58)?), usize::from(u16_at(bytes, 60)?));
    let header = |index: usize| table.checked_add(size.checked_mul(index)?);
    let content = |at: usize| {
        let start = number(u64_at(bytes, at.checked_add(24)?)?)?;
        bytes.get(start..start.checked_add(number(u64_at(bytes, at.checked_add(32)?)?)?)?)
    };
    let names = content(header(u16_at(bytes, 62)?.into())?)?;
    (0..count).filter_map(header).find_map(|at| {
        let from = usize::try_from(u32_at(bytes, at)?).ok()?;
        let found = names.get(from..)?.split(|byte| *byte == 0).next()?;
        (found == name.as_bytes()).then(|| content(at))?
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// The four bytes at `at`, as a little-endian number.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first bytes of a file: its class, its order of bytes, its machine.
    fn named(class: u8, order: u8, machine: [u8; 2]) -> Option<String> {
        let mut head = b"\x7fELF".to_vec();
        head.extend([class, order]);
        head.resize(18, 0);
        head.extend(machine);
        foreign_machine(&head)
    }

    #[test]
    fn machines_are_named_in_either_order_of_bytes() {
        assert_eq!(named(2, 1, [62, 0]), None);
        assert_eq!(named(1, 1, [3, 0]), None);
        assert_eq!(named(2, 1, [183, 0]).as_deref(), Some("aarch64"));
        assert_eq!(named(2, 2, [0, 22]).as_deref(), Some("s390x"));
        assert_eq!(named(2, 2, [0, 21]).as_deref(), Some("64-bit PowerPC"));
        assert_eq!(named(2, 1, [2, 1]).as_deref(), Some("LoongArch"));
        let other = named(1, 2, [0, 4]);
        assert_eq!(other.as_deref(), Some("a 32-bit machine of ELF number 4"));
        assert_eq!(named(2, 3, [0, 22]), None);
        assert_eq!(foreign_machine(b"\x7fELF\x02\x01"), None);
        assert_eq!(foreign_machine(&[b'#'; 64]), None);
    }
}
