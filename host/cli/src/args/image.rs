//! The command line of `guestline image`.

use super::{
    EMBED_HELP, ImageEmbedArgs, ImageLintArgs, ImageUnembedArgs, LINT_HELP, parse_memory,
    parse_time,
};
use clap::{Args, Subcommand, ValueEnum};
use guestline::image::DEFAULT_KERNEL;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) const IMAGE_HELP: &str = "\
An image is named by the catalogue (`guestline image list`), by a file NAME.toml in ~/.config/guestline/images, or by
the path of a .toml file; NAME+PACKAGE,PACKAGE is an image with more packages. A check makes the image that it wants, when it is not there.

  guestline image build debian-12
  guestline check --image debian-12 'modprobe nf_tables'

An image that another host made comes in a file (export, import), or from a folder that any web server can hold (publish,
pull), which is signed; a host without Debian's tools uses images this way.

Exit status: 0, 1 something is damaged or not signed as it should be, 2 wrong usage or configuration, 125 the image cannot
be made or had, 129, 130, 143 interrupted.";

#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    pub(crate) command: ImageCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// List the images of the catalogue and whether they are made, or those that are published somewhere
    List {
        #[command(flatten)]
        source: SourceArgs,
        /// A JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Say what an image is made of, and what it is
    Show {
        /// Name of the image
        name: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
        /// The options of its kernel, as capabilities: all, or those whose name has PATTERN in it
        #[arg(long, value_name = "PATTERN", num_args = 0..=1, default_missing_value = "")]
        kconfig: Option<String>,
    },
    /// Make an image anew, from the packages of its lock if they can be had
    Build(ImageBuildArgs),
    /// Take in what `export` wrote, or make an image of a root folder, a tar, an initramfs, an OCI or docker image, a disk
    #[command(after_help = IMPORT_HELP)]
    Import(ImageImportArgs),
    /// Read all files of images, and compare them with what was made
    Verify {
        /// Names of the images [default: all that are made]
        names: Vec<String>,
    },
    /// Remove images from the cache
    Rm {
        /// Names of the images: all that is made under a name goes, also with more packages; of NAME+PACKAGE and of a path
        /// just what is made of that
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Put the agent into a root folder or a disk image that others made
    #[command(after_help = EMBED_HELP)]
    Embed(ImageEmbedArgs),
    /// Take out what embed has put in
    Unembed(ImageUnembedArgs),
    /// Say what a root folder, a disk image or a manifest lacks for checks to run, and what that costs
    #[command(after_help = LINT_HELP)]
    Lint(ImageLintArgs),
    /// Write an image that is made into one file, for another host
    Export {
        /// Name of the image
        name: String,
        /// The file; - is standard output [default: NAME.tar.lz4]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Write images into a folder that any web server can hold, signed
    ///
    /// What is there stays, but for images of the same name. A key to sign with is made first where there is none;
    /// its public half is printed.
    Publish(ImagePublishArgs),
    /// Fetch published images, checked by a key that you trust
    ///
    /// Without a name those that there are get listed. A fetch that was interrupted goes on where it ended. Where another
    /// agent is in an image, this program's takes its place, and the image is booted once before it is there.
    Pull(ImagePullArgs),
    /// Write the bill of materials of an image that is made
    Sbom {
        /// Name of the image
        name: String,
        /// CycloneDX 1.6 or SPDX 2.3, both in JSON
        #[arg(long, value_enum, default_value_t = SbomFormat::Cyclonedx)]
        format: SbomFormat,
        /// The file; - is standard output
        #[arg(short, long, value_name = "FILE", default_value = "-")]
        output: PathBuf,
    },
    /// Print the JSON schema of image manifests
    Schema,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SbomFormat {
    Cyclonedx,
    Spdx,
}

/// Where published images are, and who is trusted.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// Where images are published: https://…, http://…, file://… or a folder [default for pull: the one that is configured]
    #[arg(long, value_name = "URL")]
    pub(crate) from: Option<String>,
    /// The public key that they are signed with, or a file that has it; may be repeated [default: those configured]
    #[arg(long = "key", value_name = "KEY")]
    pub(crate) keys: Vec<String>,
    /// Take a list of images that is older than one that was there before
    #[arg(long)]
    pub(crate) allow_older: bool,
}

pub(crate) const IMPORT_HELP: &str = "\
What it is is told by its content. A root gets the kernel of another image, and the agent is its init; a disk or an ISO is
booted as it is, and has to have the agent in it (`guestline image embed`), or a seed with it (--seed). Kept in
~/.local/state/guestline/images.

  guestline image import alpine.tar.gz
  docker save debian:12 | gzip > debian.tar.gz; guestline image import --name deb debian.tar.gz
  guestline check --image deb 'cat /etc/os-release'
  guestline check --image dir:build/rootfs 'myprogram --version'    # a folder, for quick work
  guestline image embed --nocloud -o seed; guestline image import cloud.qcow2 --seed seed

Exit status: 0, 1 what `export` wrote is damaged, 2 wrong usage, or it is no image at all, 125 it cannot be imported, 129,
130, 143 interrupted.";

#[derive(Debug, Clone, Args)]
pub(crate) struct ImageImportArgs {
    /// File or folder, or virt-builder:TEMPLATE; - is standard input, for what `image export` writes
    pub(crate) from: PathBuf,
    /// The image's name: a-z, 0-9, `.`, `_` and `-` [default: the file's]
    #[arg(long, visible_alias = "as", value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Which image, where the archive holds several: its tag or digest
    #[arg(long, value_name = "NAME")]
    pub(crate) pick: Option<String>,
    /// Whose kernel boots a root
    #[arg(long, value_name = "IMAGE", default_value = DEFAULT_KERNEL)]
    pub(crate) kernel_of: String,
    /// The root's own init, such as /sbin/init, instead of the agent
    #[arg(long, value_name = "PATH")]
    pub(crate) init: Option<String>,
    /// Memory of its machines, as 512, 512M, 2G [default: the kernel's image's; 512M for a disk]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub(crate) memory: Option<u64>,
    /// What starts a disk [default: what it looks made for]
    #[arg(long, value_enum, value_name = "KIND")]
    pub(crate) firmware: Option<FirmwareArg>,
    /// A small disk for the cloud-init of a disk, which is attached to it wherever it boots; `image embed --nocloud` writes
    /// one that puts the agent in
    #[arg(long, value_name = "FILE")]
    pub(crate) seed: Option<PathBuf>,
    /// Put in a static busybox, and those of its commands that are missing
    #[arg(long)]
    pub(crate) busybox: bool,
    /// Do not boot it to see that it does
    #[arg(long)]
    pub(crate) no_check: bool,
    /// Time for that boot, until the agent answers, as 90, 90s, 2m [default: 120 s, half as much again under TCG, more on a
    /// loaded host]
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "no_check")]
    pub(crate) boot_timeout: Option<Duration>,
    /// Put it in the place of one that was taken in under the same name
    #[arg(long)]
    pub(crate) replace: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FirmwareArg {
    Bios,
    Uefi,
}

#[derive(Debug, Args)]
pub(crate) struct ImagePublishArgs {
    /// The folder; made where it is not there
    pub(crate) folder: PathBuf,
    /// Names of the images [default: all that are made]
    pub(crate) names: Vec<String>,
    /// Sign with the secret key of this file, of minisign or of an earlier publish [default: one of your own]
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Take an image out of the folder; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) remove: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ImagePullArgs {
    /// Names of the images
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Call it this
    #[arg(long = "as", value_name = "NAME")]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ImageBuildArgs {
    /// Name of the image
    pub(crate) name: String,
    /// Fail when it cannot be made from its lock
    #[arg(long, conflicts_with = "update_lock")]
    pub(crate) locked: bool,
    /// Make it from the packages of now, and write them into its lock
    #[arg(long)]
    pub(crate) update_lock: bool,
}
