//! Cutting a byte stream into frames, one way for each kind of transport.
//!
//! | | [`PortFraming`] | [`TtyFraming`] |
//! |---|---|---|
//! | for | lossless streams (virtio-serial, sockets, pipes) | ttys, where other bytes may mix in |
//! | begins with | a header with magic and CRC-32 | a zero byte |
//! | the body is | as it is | COBS with a CRC-32 behind it |
//! | after noise | looks for the next header that checks | looks for the next zero byte |
//! | what noise ate | cannot happen | is sent again until it is acknowledged |
//!
//! Both are decoders without I/O and without a clock that drop what is no frame, and count it.

mod port;
mod tty;

pub use port::{HEADER_LEN, PortFraming};
pub use tty::{End, TtyFraming};

use crate::{MAX_FRAME_LEN, Stream};
use core::ops::Range;
use serde::{Deserialize, Serialize};

/// Nonce of a session, drawn by the controller; 0 when there is no session yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Session(pub u64);

impl Session {
    /// No session: the reserve link's messages before any hello.
    pub const NONE: Self = Self(0);
}

/// What the body of a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// An encoded message ([`crate::decode`]); byte 0 on the wire.
    Message,
    /// Bytes of a stream as they are; byte 1 for [`Stream::Stdout`], 2 for [`Stream::Stderr`].
    Data(Stream),
}

impl FrameKind {
    fn to_byte(self) -> u8 {
        match self {
            Self::Message => 0,
            Self::Data(Stream::Stdout) => 1,
            Self::Data(Stream::Stderr) => 2,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Message),
            1 => Some(Self::Data(Stream::Stdout)),
            2 => Some(Self::Data(Stream::Stderr)),
            _ => None,
        }
    }
}

/// To whom a frame belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameHead {
    /// The session its sender was in.
    pub session: Session,
    /// The channel, which is the id of the request that opened it; 0 for what the guest says unasked.
    pub channel: u32,
    /// What the body is.
    pub kind: FrameKind,
}

impl FrameHead {
    /// Of a message.
    pub fn message(session: Session, channel: u32) -> Self {
        Self { session, channel, kind: FrameKind::Message }
    }

    /// Of bytes of a stream.
    pub fn data(session: Session, channel: u32, stream: Stream) -> Self {
        Self { session, channel, kind: FrameKind::Data(stream) }
    }
}

/// What a decoder hands out; the body is borrowed from its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// To whom it belongs.
    pub head: FrameHead,
    /// At most [`MAX_FRAME_LEN`] bytes.
    pub body: &'a [u8],
}

/// A body over [`MAX_FRAME_LEN`] cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameTooLong {
    /// Length of the body, in bytes.
    pub len: usize,
}

impl core::fmt::Display for FrameTooLong {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "a message of {} bytes is over the limit of {MAX_FRAME_LEN} bytes", self.len)
    }
}

impl core::error::Error for FrameTooLong {}

/// So many bytes in front of a body that is given to [`Framing::seal`] are the framing's.
pub const HEADROOM: usize = HEADER_LEN;

/// Both directions of one transport. Times are milliseconds of any clock that only goes forward.
pub trait Framing: Send {
    /// Turns a buffer, whose first [`HEADROOM`] bytes are spare and whose rest is the body, into bytes to be written;
    /// none when the framing itself holds them back for now ([`Framing::due`]).
    ///
    /// # Errors
    /// [`FrameTooLong`]; nothing is sent then.
    fn seal(
        &mut self,
        head: FrameHead,
        buffer: Vec<u8>,
        now_ms: u64,
    ) -> Result<Vec<u8>, FrameTooLong>;

    /// So many bytes are missing of the frame that has begun to arrive, as far as that is known: whoever reads them, and no
    /// more, spares a copy of what comes behind.
    fn missing(&self) -> Option<usize> {
        None
    }

    /// Room for at least `len` bytes that arrive; [`Framing::filled`] says how many did.
    fn space(&mut self, len: usize) -> &mut [u8];

    /// So many bytes of the room are filled. Call [`Framing::next_frame`] until it has none before asking for
    /// room again: that bounds the memory to a frame and a read.
    fn filled(&mut self, len: usize);

    /// The next whole frame, and where in the buffer its body is, until more arrives.
    fn next_span(&mut self) -> Option<(FrameHead, Range<usize>)>;

    /// A body that was found.
    fn body(&self, span: &Range<usize>) -> &[u8];

    /// Hands over the buffer in which the last body was found, and goes on with another.
    fn detach(&mut self, spare: Vec<u8>) -> Vec<u8>;

    /// The next whole frame.
    fn next_frame(&mut self) -> Option<Frame<'_>> {
        let (head, span) = self.next_span()?;
        Some(Frame { head, body: self.body(&span) })
    }

    /// From now on, frames of other sessions are dropped as noise.
    fn accept_only(&mut self, session: Session);

    /// Bytes dropped so far because they belonged to no acceptable frame.
    fn dropped(&self) -> u64;

    /// What the framing itself has to write now: acknowledgements, and frames again. Empty on a lossless transport.
    /// Nothing is sent again before all that was given to be written is (`is_drained`).
    fn due(&mut self, _now_ms: u64, _is_drained: bool) -> Vec<u8> {
        Vec::new()
    }

    /// When [`Framing::due`] is to be asked again although nothing arrives.
    fn deadline_ms(&self) -> Option<u64> {
        None
    }

    /// So many frames wait for an acknowledgement: the sender of bulk should wait too.
    fn is_congested(&self) -> bool {
        false
    }

    /// Bytes of bodies that it keeps until they are acknowledged.
    fn kept(&self) -> usize {
        0
    }

    /// Frames of the other end that checked so far, those too that are not handed out: acknowledgements, and what came
    /// again. 0 where there are none.
    fn heard(&self) -> u64 {
        0
    }

    /// What it keeps is of no use any more: the session is over.
    fn forget(&mut self) {}

    /// The most bytes of a stream that one frame should carry.
    fn data_len(&self) -> usize {
        crate::MAX_DATA_LEN
    }

    /// The other end began anew: what arrived of it is of no use.
    fn restart(&mut self);

    /// Takes bytes as they arrive, split anywhere; as [`Framing::space`] and [`Framing::filled`].
    fn push(&mut self, bytes: &[u8]) {
        if let Some(room) = self.space(bytes.len()).get_mut(..bytes.len()) {
            room.copy_from_slice(bytes);
            self.filled(bytes.len());
        }
    }
}

/// CRC-32 as in IEEE 802.3. What it is taken over is short, so a table of 1 KiB does.
const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);

/// The four bytes at `at`, as a little-endian number.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The eight bytes at `at`, as a little-endian number.
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
