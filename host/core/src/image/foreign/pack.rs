//! Files that are compressed as those were that they are made of.

use super::packing::Packing;
use crate::image::lz4::LegacyEncoder;
use crate::sys::die_with_us;
use lz4_flex::frame::FrameEncoder;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::process::{Command, Stdio};

impl Packing {
    /// The program that packs it, and what makes it write the same bytes each time; xz as the kernel takes it, too.
    fn packer(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Plain | Self::Lz4 | Self::Lz4Legacy => None,
            Self::Gzip => Some(&["gzip", "-nc"]),
            Self::Bzip2 => Some(&["bzip2", "-c"]),
            Self::Xz => Some(&["xz", "-c", "--check=crc32"]),
            Self::Zstd => Some(&["zstd", "-qc"]),
        }
    }

    /// Writes to the end of a file what `write` gives, packed.
    ///
    /// # Errors
    /// What writing or the program gives.
    pub(super) fn write(
        self,
        to: &File,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some([program, options @ ..]) = self.packer() else {
            let mut buffered = BufWriter::new(to);
            return match self {
                Self::Lz4 => {
                    let mut encoder = FrameEncoder::new(buffered);
                    write(&mut encoder)?;
                    encoder.finish().map_err(io::Error::other)?.flush()
                }
                Self::Lz4Legacy => {
                    let mut encoder = LegacyEncoder::new(buffered)?;
                    write(&mut encoder)?;
                    encoder.finish()?.flush()
                }
                _ => {
                    write(&mut buffered)?;
                    buffered.flush()
                }
            };
        };
        let mut command = Command::new(program);
        command.args(options).stdin(Stdio::piped()).stdout(to.try_clone()?);
        command.stderr(Stdio::null());
        die_with_us(&mut command);
        let missing = |error: io::Error| {
            let what = format!("cannot run `{program}`, which packs it: {error}");
            io::Error::new(error.kind(), what)
        };
        let mut child = command.spawn().map_err(missing)?;
        let written = match child.stdin.take() {
            Some(stdin) => {
                let mut stdin = BufWriter::new(stdin);
                write(&mut stdin).and_then(|()| stdin.flush())
            }
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        let status = child.wait()?;
        written?;
        match status.success() {
            true => Ok(()),
            false => Err(io::Error::other(format!("`{program}`: {status}"))),
        }
    }
}
