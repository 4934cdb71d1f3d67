//! What machine a request stands for, and what its template depends on.

use super::hardware;
use super::template::{self, TemplateId, TemplateKey};
use super::{Hardware, Layer, LeaseError, LinkChoice, MachineRequest, NicWanted, Provisioner};
use crate::digest::Digest;
use crate::image::{
    Bootable, ImageDisk, Kconfig, Kernels, Lack, OwnModules, inspect_kernel, release_of_kernel,
};
use crate::machine::{
    Disk, DiskFormat, Drive, ExtraPort, Firmware, FirmwareChoice, FirmwareKind, MachineSpec, Uefi,
};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What the agent loads, on the kernel command line.
const MODULES: &str = "guestline.modules=";

/// Where the agent finds the rest of the modules.
const MODULES_DISK: &str = "guestline.modules_disk=squashfs:modules";

impl Provisioner {
    /// The id of the template of a machine, be there one or not.
    ///
    /// # Errors
    /// [`LeaseError`] of the kernel that was asked for.
    pub async fn id_of(&self, request: &MachineRequest) -> Result<TemplateId, LeaseError> {
        let spec = self.spec(request).await?;
        Ok(self.key(request, &spec).id())
    }

    /// The machine that is wanted.
    pub(super) async fn spec(&self, request: &MachineRequest) -> Result<MachineSpec, LeaseError> {
        let mut ports = request.ports.clone();
        if request.link == LinkChoice::VirtConsole {
            ports.push(ExtraPort::VirtConsole);
        }
        if request.image.disk.is_some() && request.cmdline.is_some() {
            return Err(LeaseError::OwnCmdline { image: request.image.manifest.name.clone() });
        }
        Ok(MachineSpec {
            memory_mib: request.memory_mib,
            cpus: request.cpus,
            kernel: self.kernel(request).await?,
            initrd: self.initrd(request).await?,
            cmdline: self.cmdline(request)?,
            firmware: self.firmware(request)?,
            bios: self.bios(request)?,
            root: request.image.root.as_deref().map(shared_disk).transpose()?,
            modules: modules_disk(request).map(shared_disk).transpose()?,
            disks: disks(request)?,
            nics: request.nics.iter().map(NicWanted::nic).collect(),
            nic_model: request.hardware.nic_device().map(str::to_owned),
            machine: request.hardware.machine.clone(),
            cpu: request.hardware.cpu.clone(),
            accel: self.accel,
            reboots: self.reboots || request.reboots,
            ports,
            ssh_port: request.ssh_port,
            more_args: request.qemu_args.clone(),
            gdb: request.gdb.is_some(),
        })
    }

    /// The kernel's command line: the image's, with what it has to know of this host.
    fn cmdline(&self, request: &MachineRequest) -> Result<String, LeaseError> {
        // What not every machine has.
        let mut drivers = hardware::drivers(request)?;
        let has_modules = modules_disk(request).is_some();
        let of_modules = has_modules.then_some(["virtio_blk", "squashfs"]);
        for driver in of_modules.into_iter().flatten() {
            if !drivers.contains(&driver) {
                drivers.push(driver);
            }
        }
        let mut line = with_drivers(&request.image.manifest.cmdline, &drivers);
        if let Some(OwnModules { names, .. }) = &request.modules {
            let has_disk = has_modules || request.image.root.is_some();
            line = only_of(&with_drivers(&line, carriers(has_disk)), names);
            if request.hardware != Hardware::default() {
                // They may lie on the disk with modules.
                line = with_drivers(&line, &drivers);
            }
        }
        if has_modules {
            line = format!("{line} {MODULES_DISK}");
        }
        let line = request.link.cmdline(&line);
        let line = match self.tsc_khz {
            Some(khz) => format!("tsc_early_khz={khz} {line}"),
            None => line,
        };
        Ok(match &request.cmdline {
            Some(more) => format!("{line} {more}"),
            None => line,
        })
    }

    /// What its template depends on.
    pub(super) fn key(&self, request: &MachineRequest, spec: &MachineSpec) -> TemplateKey {
        TemplateKey {
            format: template::FORMAT,
            image: request.image.manifest.digest(),
            agent: request.image.manifest.agent.clone(),
            kernel: request.kernel.as_ref().map(|(_, digest)| digest.clone()),
            modules: request.modules.as_ref().map(|modules| {
                let disk = modules.disk.as_ref().map(|(digest, _)| digest.clone());
                (modules.early.0.clone(), disk)
            }),
            cmdline: spec.cmdline.clone(),
            machine: spec.seen_by_guest(self.qemu(request).version),
            host_cpu: self.tsc_khz.is_none().then(template::host_cpu),
            qemu: self.qemu(request).digest.clone(),
            layers: request.layers.iter().map(Layer::key).collect(),
        }
    }

    /// The initial RAM file system: the image's, with what the kernel's modules add to it. The kernel unpacks archives one
    /// after the other, from places that four divides (Linux `init/initramfs.c`).
    async fn initrd(&self, request: &MachineRequest) -> Result<Option<PathBuf>, LeaseError> {
        let image = &request.image;
        let (Some(OwnModules { early: (digest, early), .. }), Some(first)) =
            (&request.modules, &image.initrd)
        else {
            return Ok(image.initrd.clone());
        };
        let both = Digest::of(format!("{}\n{digest}", image.manifest.digest()).as_bytes());
        let mut initrds = self.initrds.lock().await;
        if let Some(initrd) = initrds.get(&both) {
            return Ok(Some(initrd.clone()));
        }
        let path = self.root.path().join(format!("initrd-{}", both.short()));
        let (first, second, to, wanted) =
            (first.clone(), early.clone(), path.clone(), digest.clone());
        let joining = tokio::task::spawn_blocking(move || {
            let more = std::fs::read(&second)?;
            if Digest::of(&more) != wanted {
                let why = format!("{} has another content", second.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            let mut bytes = std::fs::read(&first)?;
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes.extend(more);
            std::fs::write(to, bytes)
        });
        let joined = joining.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        joined.map_err(|source| LeaseError::Write { path: path.clone(), source })?;
        initrds.insert(both, path.clone());
        Ok(Some(path))
    }

    /// The kernel to boot: the image's, or the one that was asked for, unpacked or as a private copy, so that what was
    /// checked is what is booted. What is known of its configuration is compared with what it is for.
    async fn kernel(&self, request: &MachineRequest) -> Result<Option<PathBuf>, LeaseError> {
        let Some((path, digest)) = &request.kernel else {
            return Ok(request.image.kernel.clone());
        };
        if request.image.disk.is_some() {
            return Err(LeaseError::OwnKernel { image: request.image.manifest.name.clone() });
        }
        let options = request.kconfig.as_ref().map(|(_, digest)| digest.clone());
        let id = (digest.clone(), options);
        let mut kernels = self.kernels.lock().await;
        if !kernels.contains_key(&id) {
            // A copy may be booted already: none is written over.
            let copy =
                self.root.path().join(format!("kernel-{}-{}", digest.short(), kernels.len()));
            let (from, to, wanted) = (path.clone(), copy.clone(), digest.clone());
            let (unpacker, config) = (self.unpacker.clone(), request.kconfig.clone());
            let preparing =
                tokio::task::spawn_blocking(move || prepare(from, to, wanted, config, &unpacker));
            let prepared = match preparing.await {
                Ok(prepared) => prepared?,
                Err(error) => {
                    return Err(LeaseError::Write { path: copy, source: io::Error::other(error) });
                }
            };
            kernels.insert(id.clone(), prepared);
        }
        let Some(Prepared { kernel, release, config }) = kernels.get(&id) else {
            return Err(LeaseError::KernelChanged { path: path.clone() });
        };
        let lacks = config.as_ref().map(|config| lacks(config, release.as_deref(), request));
        match lacks {
            Some(lacks) if !lacks.is_empty() => {
                Err(LeaseError::KernelLacks { kernel: path.clone(), lacks })
            }
            _ => Ok(Some(kernel.path.clone())),
        }
    }

    /// What starts an image's disk.
    fn firmware(&self, request: &MachineRequest) -> Result<Option<Firmware>, LeaseError> {
        let Some(ImageDisk { record, .. }) = &request.image.disk else {
            // UEFI takes no kernel that is unpacked for a quicker boot.
            return match request.firmware {
                Some(FirmwareChoice::Kind(FirmwareKind::Uefi)) => {
                    Err(LeaseError::NoUefi { image: request.image.manifest.name.clone() })
                }
                _ => Ok(None),
            };
        };
        let kind = match &request.firmware {
            None => record.firmware,
            Some(FirmwareChoice::Kind(kind)) => *kind,
            Some(FirmwareChoice::File(..)) => FirmwareKind::Bios,
        };
        let uefi = match kind {
            FirmwareKind::Bios => None,
            FirmwareKind::Uefi => Some(Uefi::new(self.root.path())?),
        };
        Ok(Some(Firmware { drive: record.drive, uefi }))
    }

    /// The firmware of the user's, as a private copy: what was looked at is what starts machines.
    fn bios(&self, request: &MachineRequest) -> Result<Option<(PathBuf, Digest)>, LeaseError> {
        let Some(FirmwareChoice::File(from, digest)) = &request.firmware else { return Ok(None) };
        let unusable = |source| LeaseError::Firmware { path: from.clone(), source };
        let copy = self.root.path().join(format!("firmware-{}", digest.short()));
        let bytes = std::fs::read(from).map_err(unusable)?;
        if Digest::of(&bytes) != *digest {
            let why = "it changed while it was waited for";
            return Err(unusable(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        if !copy.exists() {
            // Under its name it is whole.
            let written = tempfile::NamedTempFile::new_in(self.root.path()).and_then(|mut file| {
                file.write_all(&bytes)?;
                Ok(file.persist(&copy)?)
            });
            written.map_err(|source| LeaseError::Write { path: copy.clone(), source })?;
        }
        Ok(Some((copy, digest.clone())))
    }
}

/// The disk that is booted as it is, if the image is one, those that were given, and those that were asked for. Its seed is
/// the last, so that the others are called /dev/vdb and so on with and without one.
fn disks(request: &MachineRequest) -> Result<Vec<Disk>, LeaseError> {
    let image = request.image.disk.as_ref();
    let first = image.map(|ImageDisk { file, record, .. }| {
        let wrong = |source| LeaseError::Image { path: file.clone(), source };
        Disk::of_file(file, record.format, record.drive == Drive::Cdrom).map_err(wrong)
    });
    let seed = image.and_then(|disk| disk.seed.as_deref()).map(|seed| {
        let wrong = |source| LeaseError::Image { path: seed.to_owned(), source };
        Disk::of_file(seed, DiskFormat::Raw, true).map_err(wrong)
    });
    let bus = request.hardware.disk_bus.unwrap_or_default();
    let asked = request.disks.iter().map(|disk| Ok(disk.disk().on(bus)));
    let given = request.given.iter().cloned().map(Ok);
    first.into_iter().chain(given).chain(asked).chain(seed).collect()
}

/// A kernel of the user's, and the file with its options where one is known.
pub(super) type PreparedId = (Digest, Option<Digest>);

/// A kernel of the user's, as it is booted.
#[derive(Debug)]
pub(super) struct Prepared {
    kernel: Bootable,
    /// `uname -r`, and its configuration, where it says them.
    release: Option<String>,
    config: Option<Kconfig>,
}

fn prepare(
    from: PathBuf,
    to: PathBuf,
    wanted: Digest,
    config: Option<(PathBuf, Digest)>,
    unpacker: &Kernels,
) -> Result<Prepared, LeaseError> {
    let bytes = inspect_kernel(&from)?;
    if Digest::of(&bytes) != wanted {
        return Err(LeaseError::KernelChanged { path: from });
    }
    let release = release_of_kernel(&bytes);
    let config = config.map(|(path, digest)| options(&path, &digest)).transpose()?.flatten();
    let unpacked = unpacker.unpacked(&wanted, || Ok(bytes.clone()));
    let config = config.or_else(|| match &unpacked {
        Some(unpacked) => Kconfig::embedded(&std::fs::read(&unpacked.path).ok()?),
        None => Kconfig::embedded(&bytes),
    });
    let kernel = match unpacked {
        Some(unpacked) => unpacked,
        None => {
            let written = std::fs::write(&to, bytes);
            written.map_err(|source| LeaseError::Write { path: to.clone(), source })?;
            Bootable::plain(to)
        }
    };
    Ok(Prepared { kernel, release, config })
}

/// The options in a file that was chosen for its content; none where it sets none.
fn options(path: &Path, wanted: &Digest) -> Result<Option<Kconfig>, LeaseError> {
    match Kconfig::text(path) {
        Ok(None) => Ok(None),
        Ok(Some(text)) if Digest::of(&text) == *wanted => Ok(Kconfig::of(&text)),
        _ => Err(LeaseError::KconfigChanged { path: path.to_owned() }),
    }
}

/// What a kernel lacks for an image. Modules are at hand when they were named, or when the image's are of this very kernel.
fn lacks(config: &Kconfig, release: Option<&str>, request: &MachineRequest) -> Vec<Lack> {
    let image = &request.image;
    let has = |module: &str| match &request.modules {
        Some(modules) => modules.names.iter().any(|name| name == module),
        None => release == Some(&*image.manifest.kernel_release),
    };
    config.lacks(image.root.is_some(), &has)
}

/// The disk with the modules of the kernel that is booted.
fn modules_disk(request: &MachineRequest) -> Option<&Path> {
    match &request.modules {
        Some(modules) => modules.disk.as_ref().map(|(_, path)| &**path),
        None => request.image.modules.as_deref(),
    }
}

/// What carries the link, and a root or another disk that the agent mounts, whatever the image's own kernel has built in.
fn carriers(has_disk: bool) -> &'static [&'static str] {
    match has_disk {
        true => &["virtio_pci", "virtio_console", "virtio_blk", "squashfs", "overlay"],
        false => &["virtio_pci", "virtio_console"],
    }
}

/// The kernel command line on which the agent loads those of its modules alone that there are.
fn only_of(cmdline: &str, names: &[String]) -> String {
    let words = cmdline.split(' ').map(|word| match word.strip_prefix(MODULES) {
        Some(list) => {
            let there = list.split(',').filter(|name| names.iter().any(|found| found == name));
            format!("{MODULES}{}", there.collect::<Vec<_>>().join(","))
        }
        None => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

fn shared_disk(path: &Path) -> Result<Disk, LeaseError> {
    Disk::shared(path).map_err(|source| LeaseError::Image { path: path.to_owned(), source })
}

/// The kernel command line on which the agent loads these, too.
fn with_drivers(cmdline: &str, drivers: &[&str]) -> String {
    let mut line = cmdline.to_owned();
    for driver in drivers {
        let list = line.split(' ').find(|word| word.starts_with(MODULES)).map(str::to_owned);
        line = match list {
            Some(list) if list[MODULES.len()..].split(',').any(|name| name == *driver) => line,
            Some(list) => line.replacen(&list, &format!("{list},{driver}"), 1),
            None => format!("{line} {MODULES}{driver}"),
        };
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_are_loaded_after_the_images_own() {
        let line = "quiet guestline.modules=virtio_pci,virtio_console panic=-1";
        assert_eq!(with_drivers(line, &[]), line);
        assert_eq!(
            with_drivers(line, &["virtio_net", "virtio_blk"]),
            "quiet guestline.modules=virtio_pci,virtio_console,virtio_net,virtio_blk panic=-1"
        );
        assert_eq!(with_drivers(line, &["virtio_pci"]), line);
        let there = ["virtio_console", "other"].map(str::to_owned);
        assert_eq!(only_of(line, &there), "quiet guestline.modules=virtio_console panic=-1");
        assert_eq!(with_drivers("quiet", &["virtio_blk"]), "quiet guestline.modules=virtio_blk");
    }

    #[test]
    fn the_options_that_count_are_those_that_were_chosen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let chosen = Digest::of(b"CONFIG_A=y\n");
        for (content, said) in [
            ("CONFIG_A=y\n", Ok(Some("y"))),
            ("CONFIG_A=m\n", Err("the kernel's configuration, changed while it was waited for")),
        ] {
            std::fs::write(&path, content).unwrap();
            match (options(&path, &chosen), said) {
                (Ok(found), Ok(value)) => {
                    assert_eq!(found.as_ref().and_then(|found| found.get("A")), value);
                }
                (Err(error), Err(said)) => assert!(error.to_string().ends_with(said), "{error}"),
                (found, _) => panic!("{content}: {found:?}"),
            }
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(options(&path, &chosen), Err(LeaseError::KconfigChanged { .. })));
    }
}
