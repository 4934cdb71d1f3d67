//! The command line of `guestline image`.

use clap::{Args, Subcommand};

pub(crate) const IMAGE_HELP: &str = "\
An image is named by the catalogue (`guestline image list`), by a file NAME.toml in ~/.config/guestline/images, or by
the path of a .toml file; NAME+PACKAGE,PACKAGE is an image with more packages. A check makes the image that it wants, when it is not there.

  guestline image build debian-12
  guestline check --image debian-12 'modprobe nf_tables'

Exit status: 0, 1 something is damaged (verify), 2 wrong usage, 125 the image cannot be made, 129, 130, 143
interrupted.";

#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    pub(crate) command: ImageCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// List the images of the catalogue and whether they are made
    List {
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
    /// Read all files of images, and compare them with what was made
    Verify {
        /// Names of the images [default: all that are made]
        names: Vec<String>,
    },
    /// Remove images from the cache
    Rm {
        /// Names of the images
        #[arg(required = true)]
        names: Vec<String>,
    },
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
