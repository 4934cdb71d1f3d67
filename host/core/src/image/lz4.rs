//! The legacy frame of LZ4, which is what the kernel reads (LZ4 Frame Format, "Legacy frame"; Linux
//! `lib/decompress_unlz4.c`): a magic number, then blocks that hold 8 MiB each, behind their length (little-endian).

use lz4_flex::block;
use std::io::{self, Read, Write};

/// Begins a frame.
pub(super) const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// What a block holds; the last of a frame may hold less.
const BLOCK: usize = 8 << 20;

/// Reads frames to their end; a magic number may stand between blocks, where another begins.
#[derive(Debug)]
pub(super) struct LegacyDecoder<R> {
    from: R,
    block: Vec<u8>,
    at: usize,
}

impl<R: Read> LegacyDecoder<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, block: Vec::new(), at: 0 }
    }

    /// The next block; empty at the end, or where zeros follow.
    fn next(&mut self) -> io::Result<Vec<u8>> {
        let damaged = |why| io::Error::new(io::ErrorKind::InvalidData, format!("lz4: {why}"));
        loop {
            let mut len = Vec::new();
            (&mut self.from).take(4).read_to_end(&mut len)?;
            if len.is_empty() {
                return Ok(Vec::new());
            }
            let len = <[u8; 4]>::try_from(len).map_err(|_| damaged("it is cut short"))?;
            match len {
                MAGIC => continue,
                [0, 0, 0, 0] => return Ok(Vec::new()),
                _ => {}
            }
            let len = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
            if len > block::get_maximum_output_size(BLOCK) {
                return Err(damaged("it is damaged"));
            }
            let mut packed = vec![0; len];
            self.from.read_exact(&mut packed).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => damaged("it is cut short"),
                _ => error,
            })?;
            return block::decompress(&packed, BLOCK).map_err(|_| damaged("it is damaged"));
        }
    }
}

impl<R: Read> Read for LegacyDecoder<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.block.len() && !into.is_empty() {
            (self.block, self.at) = (self.next()?, 0);
        }
        let count = (&self.block[self.at..]).read(into)?;
        self.at += count;
        Ok(count)
    }
}

/// Writes one frame.
#[derive(Debug)]
pub(super) struct LegacyEncoder<W> {
    to: W,
    block: Vec<u8>,
}

impl<W: Write> LegacyEncoder<W> {
    /// Begins it.
    pub(super) fn new(mut to: W) -> io::Result<Self> {
        to.write_all(&MAGIC)?;
        Ok(Self { to, block: Vec::with_capacity(BLOCK) })
    }

    /// Ends it.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.put()?;
        Ok(self.to)
    }

    fn put(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let packed = block::compress(&self.block);
        let len = u32::try_from(packed.len()).map_err(io::Error::other)?;
        self.to.write_all(&len.to_le_bytes())?;
        self.to.write_all(&packed)?;
        self.block.clear();
        Ok(())
    }
}

impl<W: Write> Write for LegacyEncoder<W> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let count = from.len().min(BLOCK - self.block.len());
        self.block.extend(&from[..count]);
        if self.block.len() == BLOCK {
            self.put()?;
        }
        Ok(count)
    }

    /// What is no whole block waits for more, or for the end.
    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(content: &[u8]) -> Vec<u8> {
        let mut encoder = LegacyEncoder::new(Vec::new()).unwrap();
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        LegacyDecoder::new(packed).read_to_end(&mut content).map(|_| content)
    }

    #[test]
    fn what_is_written_is_read() {
        let mut number = 1_u32;
        let mut next = || {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            number.to_le_bytes()[3]
        };
        for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 7] {
            // What cannot be packed grows.
            let content: Vec<u8> = (0..len).map(|_| next()).collect();
            assert!(unpacked(&packed(&content)).unwrap() == content, "{len}");
        }
    }

    #[test]
    fn frames_follow_each_other_and_what_is_cut_is_told() {
        let (first, second) = (packed(b"first, "), packed(b"second"));
        let both = [&first[..], &second, &[0; 8]].concat();
        assert_eq!(unpacked(&both).unwrap(), b"first, second");
        for cut in 5..first.len() {
            let error = unpacked(&first[..cut]).unwrap_err();
            assert_eq!(error.to_string(), "lz4: it is cut short");
        }
        let wrong = [&MAGIC[..], &[4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]].concat();
        assert_eq!(unpacked(&wrong).unwrap_err().to_string(), "lz4: it is damaged");
        let long = [&MAGIC[..], &[0xff; 8]].concat();
        assert_eq!(unpacked(&long).unwrap_err().to_string(), "lz4: it is damaged");
    }
}
