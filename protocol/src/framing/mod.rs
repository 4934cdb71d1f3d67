//! Cutting a byte stream into frames, one way for each kind of transport.
//!
//! | | [`PortFraming`] | [`TtyFraming`] |
//! |---|---|---|
//! | for | lossless ports (virtio-serial, sockets) | ttys, where other bytes may mix in |
//! | begins with | a header with magic and CRC-32 | a zero byte |
//! | the body is | as it is | COBS with a CRC-32 behind it |
//! | after noise | looks for the next header that checks | looks for the next zero byte |
//!
//! Both are push/next decoders without I/O that drop what is no frame, and count it.

mod port;
mod tty;

pub use port::PortFraming;
pub use tty::TtyFraming;

use crate::MAX_FRAME_LEN;

/// Nonce of a session, drawn by the controller; 0 when there is no session yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Session(pub u64);

impl Session {
    /// No session: the reserve link's messages before any hello.
    pub const NONE: Self = Self(0);
}

/// What a decoder hands out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The session its sender was in.
    pub session: Session,
    /// An encoded message, at most [`MAX_FRAME_LEN`] bytes.
    pub body: Vec<u8>,
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

/// One direction's encoder and the other direction's decoder.
pub trait Framing: Send {
    /// Appends a frame to `out`.
    ///
    /// # Errors
    /// [`FrameTooLong`]; nothing is appended then.
    fn encode(&self, session: Session, body: &[u8], out: &mut Vec<u8>) -> Result<(), FrameTooLong>;

    /// Takes bytes as they arrive, split anywhere. Call [`Framing::next_frame`] until it has none
    /// before pushing more: that bounds the memory to a frame and a push.
    fn push(&mut self, bytes: &[u8]);

    /// The next whole frame.
    fn next_frame(&mut self) -> Option<Frame>;

    /// From now on, frames of other sessions are dropped as noise.
    fn accept_only(&mut self, session: Session);

    /// Bytes dropped so far because they belonged to no acceptable frame.
    fn dropped(&self) -> u64;
}

/// The four bytes at `at`, as a little-endian number.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The eight bytes at `at`, as a little-endian number.
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
