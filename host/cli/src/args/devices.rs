//! Options for what a machine has beside what every machine of its image has.

use super::parse_mib;
use crate::error::CommandError;
use clap::Args;
use guestline::guest::Brought;
use guestline::image::folder_digest;
use guestline::machine::{MAX_DISKS, MAX_NICS};
use guestline::provision::{DiskWanted, NicWanted};
use guestline_harness::job::FilesWanted;
use std::path::PathBuf;

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DeviceArgs {
    /// A package that the image has as well, with all it needs (`debian-*`); may be given several times
    #[arg(long = "package", value_name = "NAME", value_delimiter = ',')]
    pub(crate) packages: Vec<String>,
    /// An empty disk that nobody else writes to, as 64M, 2G; may be given several times: /dev/vda, /dev/vdb …
    #[arg(long = "disk", value_name = "SIZE", value_parser = parse_disk)]
    pub(crate) disks: Vec<DiskWanted>,
    /// A network card, and what its interface gets: IPv4 and IPv6 addresses, as 10.1.0.5/24,fd00::5/64, and a MAC
    /// address [default: one that no other machine has]; may be given several times: eth0, eth1 …
    #[arg(
        long = "nic", value_name = "ADDRESSES", num_args = 0..=1, require_equals = true, default_missing_value = ""
    )]
    pub(crate) nics: Vec<NicWanted>,
}

/// Files of this host that a machine gets.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct WithArgs {
    /// Put a file or folder of this host into the machine, at PATH [default: /mnt/NAME]; may be given several times
    #[arg(long = "with", value_name = "DIR[:PATH]", value_parser = parse_brought)]
    pub(crate) with: Vec<Brought>,
}

fn parse_brought(text: &str) -> Result<Brought, String> {
    text.parse()
}

impl WithArgs {
    /// What jobs name, and where it is.
    pub(crate) fn wanted(&self) -> Result<Vec<(FilesWanted, PathBuf)>, CommandError> {
        let wanted = |Brought { from, to }: &Brought| {
            let digest = folder_digest(from).map_err(|error| {
                CommandError::new(format!("cannot read `{}`: {error}", from.display()))
            })?;
            Ok((FilesWanted { digest, to: to.clone() }, from.clone()))
        };
        self.with.iter().map(wanted).collect()
    }

    /// The words of a command line that say the same.
    pub(crate) fn words(&self) -> impl Iterator<Item = String> {
        self.with.iter().map(|Brought { from, to }| format!("--with={}:{to}", from.display()))
    }
}

impl DeviceArgs {
    /// What is wrong with them together.
    pub(crate) fn check(&self) -> Result<(), String> {
        let most = |count: usize, most: usize, what: &str| match count > most {
            true => Err(format!("a machine has at most {most} {what}, and {count} are wanted")),
            false => Ok(()),
        };
        most(self.disks.len(), MAX_DISKS, "disks")?;
        most(self.nics.len(), MAX_NICS, "network cards")
    }

    /// The image of a name, with these packages.
    pub(crate) fn image(&self, name: &str) -> String {
        // Whoever makes it may work in another folder.
        let path = std::path::absolute(name).ok().filter(|_| name.ends_with(".toml"));
        let name = &path.map_or_else(|| name.to_owned(), |path| path.display().to_string());
        match &self.packages[..] {
            [] => name.to_owned(),
            packages if name.contains('+') => format!("{name},{}", packages.join(",")),
            packages => format!("{name}+{}", packages.join(",")),
        }
    }

    /// The words of a command line that say the same, but for the image's packages.
    pub(crate) fn words(&self) -> Vec<String> {
        let disks = self.disks.iter().map(|disk| format!("--disk={}M", disk.size_mib()));
        disks.chain(self.nics.iter().map(|nic| format!("--nic={nic}"))).collect()
    }
}

fn parse_disk(text: &str) -> Result<DiskWanted, String> {
    DiskWanted::new(parse_mib(text)?).map_err(|error| error.to_string())
}
