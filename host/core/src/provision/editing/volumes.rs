//! What a disk holds, by the words of lsblk(8) and blkid(8) in the machine that has it.

use crate::text;
use std::collections::HashMap;
use std::fmt;

/// Tells what is on the first disk; volumes of LVM are made known first. Nothing here writes to it.
pub(super) const SCAN: &str = "\
set -e
LVM='activation { udev_sync=0 udev_rules=0 } devices { obtain_device_list_from_udev=0 external_device_info_source=none }'
devices() { lsblk -nrpo NAME /dev/vda | sort -u; }
scan() { blkid -p -o export $(devices) || true; }
found=$(scan)
case $found in
*LVM2_member*) vgchange --config \"$LVM\" -q -ay >&2 || true; found=$(scan) ;;
esac
lsblk -bnrpo NAME,TYPE,SIZE /dev/vda
echo
echo \"$found\"
";

/// Takes down what [`SCAN`] made known.
pub(super) const LEAVE: &str = "\
if ls /dev/mapper | grep -qv '^control$'; then
    vgchange --config 'activation { udev_sync=0 udev_rules=0 }' -q -an >&2
fi
sync
";

/// A disk has no more parts that are looked at.
const MAX_VOLUMES: usize = 256;

/// A part of a disk, or the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Volume {
    /// In the machine.
    pub(super) device: String,
    /// As `--root` takes it: the number of a partition, `VG/LV`, `disk`.
    pub(super) name: String,
    /// Bytes.
    pub(super) size: u64,
    /// Of blkid(8).
    tags: HashMap<String, String>,
}

impl Volume {
    fn tag(&self, name: &str) -> &str {
        self.tags.get(name).map_or("", String::as_str)
    }

    /// The file system in it, or what else.
    pub(super) fn kind(&self) -> &str {
        self.tag("TYPE")
    }

    /// Can a system be in it, that can be written to?
    pub(super) fn may_hold_a_system(&self) -> bool {
        matches!(self.kind(), "ext2" | "ext3" | "ext4" | "xfs" | "btrfs")
    }

    /// How it is mounted so that nothing at all is written.
    pub(super) fn read_only(&self) -> &'static str {
        match self.kind() {
            "ext3" | "ext4" => "ro,noload",
            "xfs" => "ro,norecovery,nouuid",
            "btrfs" => "ro,rescue=nologreplay",
            _ => "ro",
        }
    }

    /// How it is mounted to be changed.
    pub(super) fn writable(&self) -> &'static str {
        match self.kind() {
            "xfs" => "rw,nouuid",
            _ => "rw",
        }
    }

    /// Is it what `--root` names: by its own name, or as a partition is called in some machine?
    pub(super) fn is_called(&self, name: &str) -> bool {
        let name = name.strip_prefix("/dev/").unwrap_or(name);
        self.name == name || self.is_partition(name)
    }

    /// Is it `sda2` of the machine that the disk was made for?
    fn is_partition(&self, device: &str) -> bool {
        let number = &device[device.trim_end_matches(|c: char| c.is_ascii_digit()).len()..];
        !device.contains('/') && !number.is_empty() && number == self.name
    }

    /// Is it what a line of fstab(5) names?
    pub(super) fn is(&self, source: &str) -> bool {
        let unquoted = |value: &str| value.trim_matches('"').to_owned();
        if let Some((key, value)) = source.split_once('=') {
            let key = match key {
                "PARTUUID" => "PART_ENTRY_UUID",
                "PARTLABEL" => "PART_ENTRY_NAME",
                key => key,
            };
            return self
                .tags
                .get(key)
                .is_some_and(|has| has.eq_ignore_ascii_case(&unquoted(value)));
        }
        let Some(device) = source.strip_prefix("/dev/") else { return false };
        if let Some(uuid) = device.strip_prefix("disk/by-uuid/") {
            return self.tag("UUID").eq_ignore_ascii_case(uuid);
        }
        if self.name.contains('/') {
            return source == self.device || device == self.name;
        }
        self.is_partition(device)
    }
}

impl fmt::Display for Volume {
    /// "partition 2 (ext4, 1.9 GiB)".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind() {
            "crypto_LUKS" => "LUKS, encrypted",
            "LVM2_member" => "LVM",
            "linux_raid_member" => "a part of a RAID",
            "swsuspend" => "a hibernated system's memory",
            "" => match self.tag("PTTYPE") {
                "" => "nothing that is known",
                _ => "partition table",
            },
            kind => kind,
        };
        let what = match () {
            () if self.name.contains('/') => "volume ",
            () if self.name.starts_with(|c: char| c.is_ascii_digit()) => "partition ",
            () => "",
        };
        let (name, kind) = (text::one_line(&self.name, 60), text::one_line(kind, 40));
        write!(f, "{what}{name} ({kind}, {})", text::size(self.size))
    }
}

/// What [`SCAN`] said; nothing where that cannot be.
pub(super) fn parse(said: &str) -> Vec<Volume> {
    let (blocks, tags) = said.split_once("\n\n").unwrap_or((said, ""));
    let mut known = HashMap::new();
    for paragraph in tags.split("\n\n") {
        // Values are escaped as for a shell.
        let pairs = paragraph.lines().filter_map(|line| line.split_once('='));
        let tags: HashMap<String, String> =
            pairs.map(|(key, value)| (key.to_owned(), value.replace('\\', ""))).collect();
        if let Some(device) = tags.get("DEVNAME") {
            known.insert(device.clone(), tags);
        }
    }
    let mut volumes: Vec<Volume> = Vec::new();
    for line in blocks.lines().take(MAX_VOLUMES) {
        let mut words = line.split(' ');
        let (Some(device), Some(kind), Some(size)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let name = match kind {
            "disk" => "disk".to_owned(),
            "part" => device.trim_start_matches("/dev/vda").to_owned(),
            "lvm" => lv_name(device),
            _ => device.trim_start_matches("/dev/").to_owned(),
        };
        // A volume over several partitions is below each of them.
        if !volumes.iter().any(|known| known.device == device) {
            let tags = known.remove(device).unwrap_or_default();
            let (device, size) = (device.to_owned(), size.parse().unwrap_or(0));
            volumes.push(Volume { device, name, size, tags });
        }
    }
    volumes
}

/// `VG/LV` of `/dev/mapper/VG-LV`, in which `-` of names is doubled (lvm(8)).
fn lv_name(device: &str) -> String {
    let joined = device.trim_start_matches("/dev/mapper/").replace("--", "\0");
    joined.replacen('-', "/", 1).replace('\0', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tools_say() {
        let said = "\
/dev/vda disk 2147483648
/dev/vda1 part 104857600
/dev/vda2 part 1932735283
/dev/mapper/my--vg-root lvm 1073741824
/dev/vda3 part 104857600
/dev/mapper/my--vg-root lvm 1073741824

DEVNAME=/dev/vda
PTUUID=1234
PTTYPE=gpt

DEVNAME=/dev/vda1
UUID=AB-CD
TYPE=vfat
LABEL=EFI\\ SYSTEM
PART_ENTRY_UUID=11-22

DEVNAME=/dev/vda2
TYPE=LVM2_member

DEVNAME=/dev/mapper/my--vg-root
UUID=aa-bb
TYPE=ext4
";
        let volumes = parse(said);
        let all: Vec<String> = volumes.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(all.join("\n"));
        let (efi, root) = (&volumes[1], &volumes[3]);
        for source in
            ["UUID=ab-cd", "PARTUUID=11-22", "LABEL=\"EFI SYSTEM\"", "/dev/sda1", "/dev/nvme0n1p1"]
        {
            assert!(efi.is(source) && !root.is(source), "{source}");
        }
        for source in ["/dev/mapper/my--vg-root", "/dev/my-vg/root", "UUID=aa-bb"] {
            assert!(root.is(source) && !efi.is(source), "{source}");
        }
        for name in ["1", "sda1", "/dev/vda1", "nvme0n1p1", "/dev/nvme0n1p1", "mmcblk0p1"] {
            assert!(efi.is_called(name) && !root.is_called(name), "{name}");
        }
        for name in ["my-vg/root", "/dev/my-vg/root"] {
            assert!(root.is_called(name) && !efi.is_called(name), "{name}");
        }
        assert!(volumes[0].is_called("disk") && !efi.is_called("disk") && !efi.is_called("vg/lv1"));
        assert!(!efi.is_called("nvme0n1p11") && !efi.is_called(""));
        assert!(!efi.is("/dev/sda11") && !efi.is("tmpfs") && !efi.is("UUID="));
        assert!(root.may_hold_a_system() && !efi.may_hold_a_system());
        assert_eq!(parse(""), []);
        assert_eq!(parse("\n\nDEVNAME=x\n"), []);
    }
}
