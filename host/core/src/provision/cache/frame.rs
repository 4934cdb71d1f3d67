//! The LZ4 frame around an archive (lz4_Frame_format.md): one, whole, and nothing behind it.

use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};
use std::io::{self, Read, Write};

/// Every block has its checksum: one that was edited is not unpacked.
pub(super) fn frame_writer<W: Write>(to: W) -> FrameEncoder<W> {
    let info = FrameInfo::new()
        .block_size(BlockSize::Max1MB)
        .block_mode(BlockMode::Independent)
        .block_checksums(true)
        .content_checksum(true);
    FrameEncoder::with_frame_info(info, to)
}

/// What is in the frame.
pub(super) struct FrameReader<R: Read> {
    decoder: FrameDecoder<Unended<R>>,
    /// The frame's mark and checksum have come.
    ended: bool,
}

impl<R: Read> FrameReader<R> {
    pub(super) fn new(from: R) -> Self {
        Self { decoder: FrameDecoder::new(Unended(from)), ended: false }
    }

    /// Reads what is left of the frame, at most `most` zeros, and looks whether anything follows it.
    pub(super) fn finish(mut self, most: u64) -> io::Result<()> {
        let mut rest = Vec::new();
        self.by_ref().take(most + 1).read_to_end(&mut rest)?;
        if !self.ended || rest.iter().any(|&byte| byte != 0) {
            return Err(follows());
        }
        let Unended(mut from) = self.decoder.into_inner();
        match from.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(follows()),
        }
    }
}

impl<R: Read> Read for FrameReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        let len = self.decoder.read(buffer)?;
        self.ended = len == 0;
        Ok(len)
    }
}

fn follows() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "something follows its end")
}

/// Has no end: the decoder takes one between two blocks for that of the frame.
struct Unended<R>(R);

impl<R: Read> Read for Unended<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 if !buffer.is_empty() => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "it ends too early"))
            }
            len => Ok(len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(content: &[u8]) -> Vec<u8> {
        let mut writer = frame_writer(Vec::new());
        writer.write_all(content).unwrap();
        writer.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let (mut reader, mut content) = (FrameReader::new(bytes), vec![0; 3]);
        reader.read_exact(&mut content)?;
        reader.finish(8).map(|()| content)
    }

    #[test]
    fn a_whole_frame_is_read_and_nothing_else() {
        let whole = frame(b"abc\0\0");
        assert_eq!(read(&whole).unwrap(), b"abc");
        for at in 0..whole.len() {
            assert!(read(&whole[..at]).is_err(), "{at}");
        }
        let another = FrameEncoder::new(Vec::new()).finish().unwrap();
        let longer = [frame(b"abcd"), frame(&[b"abc", &[0; 9][..]].concat())];
        let followed = [&b"x"[..], &whole, &another].map(|more| [&whole, more].concat());
        for wrong in longer.iter().chain(&followed) {
            assert!(read(wrong).unwrap_err().to_string().contains("follows"));
        }
    }
}
