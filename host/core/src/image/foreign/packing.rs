//! Compressed files, read through the program that unpacks them.

use crate::image::lz4::{LegacyDecoder, MAGIC};
use crate::sys::die_with_us;
use lz4_flex::frame::FrameDecoder;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::process::{Child, ChildStdout, Command, Stdio};

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// Not at all.
    Plain,
    Gzip,
    Bzip2,
    Xz,
    Zstd,
    Lz4,
    /// The legacy frame, which is what the kernel reads.
    Lz4Legacy,
}

impl Packing {
    /// By its first bytes (file formats' magic numbers, magic(5)).
    pub(super) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0x04, 0x22, 0x4d, 0x18, ..] => Self::Lz4,
            _ if start.starts_with(&MAGIC) => Self::Lz4Legacy,
            _ => Self::Plain,
        }
    }

    /// The program that people unpack it with.
    pub(super) fn tool(self) -> &'static str {
        self.program().unwrap_or("lz4")
    }

    /// The program that unpacks it here.
    fn program(self) -> Option<&'static str> {
        match self {
            Self::Plain | Self::Lz4 | Self::Lz4Legacy => None,
            Self::Gzip => Some("gzip"),
            Self::Bzip2 => Some("bzip2"),
            Self::Xz => Some("xz"),
            Self::Zstd => Some("zstd"),
        }
    }
}

/// The content of a file that may be compressed. Reading it fails when the file is damaged, also at its very end.
#[derive(Debug)]
pub(super) struct Packed {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Plain(File),
    Lz4(Box<FrameDecoder<File>>),
    Lz4Legacy(LegacyDecoder<File>),
    Unpacked { program: &'static str, child: Child, output: ChildStdout, is_over: bool },
}

impl Packed {
    /// From where the file stands.
    ///
    /// # Errors
    /// What starting the program gives.
    pub(super) fn open(mut file: File) -> io::Result<Self> {
        let from = file.stream_position()?;
        let mut start = Vec::new();
        (&mut file).take(8).read_to_end(&mut start)?;
        file.seek(SeekFrom::Start(from))?;
        let packing = Packing::of(&start);
        let Some(program) = packing.program() else {
            let source = match packing {
                Packing::Lz4 => Source::Lz4(Box::new(FrameDecoder::new(file))),
                Packing::Lz4Legacy => Source::Lz4Legacy(LegacyDecoder::new(file)),
                _ => Source::Plain(file),
            };
            return Ok(Self { source });
        };
        let mut command = Command::new(program);
        command.arg("-dc").stdin(file).stdout(Stdio::piped()).stderr(Stdio::null());
        die_with_us(&mut command);
        let mut child = command.spawn().map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("cannot run `{program}`, which unpacks it: {error}"),
            )
        })?;
        let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { source: Source::Unpacked { program, child, output, is_over: false } })
    }
}

impl Read for Packed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.source {
            Source::Plain(file) => file.read(into),
            Source::Lz4(decoder) => decoder.read(into),
            Source::Lz4Legacy(decoder) => decoder.read(into),
            Source::Unpacked { is_over: true, .. } => Ok(0),
            Source::Unpacked { program, child, output, is_over } => {
                let count = output.read(into)?;
                if count == 0 && !into.is_empty() {
                    *is_over = true;
                    if !child.wait()?.success() {
                        let what = format!("`{program} -dc`: the data is damaged or cut short");
                        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                    }
                }
                Ok(count)
            }
        }
    }
}

impl Drop for Packed {
    fn drop(&mut self) {
        if let Source::Unpacked { child, .. } = &mut self.source {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn packed(bytes: &[u8]) -> Packed {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        Packed::open(file).unwrap()
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut child = Command::new("gzip")
            .arg("-c")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait_with_output().unwrap().stdout
    }

    #[test]
    fn plain_and_packed_read_alike_and_a_cut_one_says_so() {
        let mut text = String::new();
        packed(b"plain text").read_to_string(&mut text).unwrap();
        assert_eq!(text, "plain text");
        let whole = gzip("packed text");
        text.clear();
        packed(&whole).read_to_string(&mut text).unwrap();
        assert_eq!(text, "packed text");
        let error = packed(&whole[..whole.len() - 4]).read_to_string(&mut text).unwrap_err();
        assert_eq!(error.to_string(), "`gzip -dc`: the data is damaged or cut short");
    }
}
