//! The command line of `guestline image embed`, `unembed` and `lint`.

use clap::Args;
use std::path::PathBuf;

pub(crate) const EMBED_HELP: &str = "\
IN is a root folder, a tar, an initramfs, an OCI or docker image, or a disk image (raw, qcow2); what it is, its content
tells. A container image gets a layer more. A disk is changed inside a machine of the image `tools`, so root is not
needed; partitions, LVM and btrfs are found.

  guestline image embed disk.qcow2 -o with-agent.qcow2
  guestline image embed rootfs/ -o rootfs-with-agent/
  guestline image embed --nocloud -o seed.img

Exit status: 0, 2 wrong usage, 125 it cannot be done, 129, 130, 143 interrupted.";

pub(crate) const LINT_HELP: &str = "\
FILE is a root folder, a tar, an initramfs, an OCI or docker image, a disk image (raw, qcow2), the manifest of an image
(NAME.toml) or an image of the catalogue (NAME, where no file is called that). A squashfs and an ISO image are not looked into.

Exit status: 0 nothing keeps checks from running, 1 something does, 2 it cannot be read, 125 no machine to look at it
with, 129, 130, 143 interrupted.";

/// Where what was changed goes.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// Where the changed copy goes; nothing may be there
    #[arg(short, long, value_name = "OUT", conflicts_with = "in_place")]
    pub(crate) output: Option<PathBuf>,
    /// Change IN itself
    #[arg(long)]
    pub(crate) in_place: bool,
    /// Only say what would be changed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The file system of a disk that holds the system, where several do: the number of a partition, VG/LV, `disk`
    #[arg(long, value_name = "NAME")]
    pub(crate) root: Option<String>,
    /// Which image of a container archive, where it holds several: its tag or digest
    #[arg(long, value_name = "NAME")]
    pub(crate) pick: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ImageEmbedArgs {
    /// What the agent is put into
    #[arg(value_name = "IN", required_unless_present = "nocloud")]
    pub(crate) input: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// Write a small disk that has cloud-init put the agent in, for cloud images that are used as they are
    #[arg(long, conflicts_with_all = ["input", "in_place", "dry_run", "root", "pick"], requires = "output")]
    pub(crate) nocloud: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImageUnembedArgs {
    /// What the agent is taken out of
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ImageLintArgs {
    /// What is looked at: a file, a folder or the name of an image
    pub(crate) file: PathBuf,
    /// The file system of a disk that holds the system, where several do
    #[arg(long, value_name = "NAME")]
    pub(crate) root: Option<String>,
    /// Which image of a container archive, where it holds several: its tag or digest
    #[arg(long, value_name = "NAME")]
    pub(crate) pick: Option<String>,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
