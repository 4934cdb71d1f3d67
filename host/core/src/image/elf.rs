//! Headers of ELF files (ELF-64 Object File Format): kernels, modules and agents are told by them.

/// An entry of the program header table.
pub(super) struct Segment {
    /// `p_type`.
    pub(super) kind: u32,
    /// Where it begins in the file.
    pub(super) offset: u64,
    /// Its bytes in the file.
    pub(super) len: u64,
}

/// The program headers of an x86-64 file; none when it is something else, or cut before their end.
pub(super) fn segments(bytes: &[u8]) -> Option<Vec<Segment>> {
    const X86_64: u16 = 62;
    if !bytes.starts_with(b"\x7fELF\x02\x01") || u16_at(bytes, 18)? != X86_64 {
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
