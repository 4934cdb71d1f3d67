//! What becomes of the frames that arrive.

use super::opening::{Phase, opening_reply};
use super::task::Task;
use crate::link::ids::OWN;
use crate::link::inbox::Item;
use crate::link::state::Effect;
use crate::link::{LinkError, TransportKind};
use guestline_protocol::{Frame, FrameHead, FrameKind, Framing, Reply, decode};
use std::ops::Range;
use tokio::time::Instant;
use tracing::trace;

/// What is no frame may come so much on a port that loses nothing, once a session is open: half a frame of an agent
/// that was started anew, say.
const MAX_NOISE: u64 = 16 * 1024 * 1024;

impl Task {
    /// Acts on the frames that have arrived.
    pub(super) fn take_frames(&mut self, on_bulk: bool) -> Result<(), LinkError> {
        let heard = self.framing(on_bulk).heard();
        while let Some((head, span)) = self.framing(on_bulk).next_span() {
            // Of a session that is lost nobody wants to know.
            if head.session == self.state.session() && !matches!(self.phase, Phase::Lost(_)) {
                self.silence.end(Instant::now());
                self.on_frame(on_bulk, head, &span)?;
            }
        }
        if self.framing(on_bulk).heard() != heard {
            self.silence.end(Instant::now());
        }
        trace!(on_bulk, "read");
        self.check_noise()
    }

    fn framing(&mut self, on_bulk: bool) -> &mut dyn Framing {
        match &mut self.bulk {
            Some(bulk) if on_bulk => &mut *bulk.framing,
            _ => &mut *self.control.framing,
        }
    }

    fn on_frame(
        &mut self,
        on_bulk: bool,
        head: FrameHead,
        span: &Range<usize>,
    ) -> Result<(), LinkError> {
        let port = match &self.bulk {
            Some(bulk) if on_bulk => bulk,
            _ => &self.control,
        };
        let frame = Frame { head, body: port.framing.body(span) };
        if let Some(reply) = opening_reply(&self.phase, &frame)? {
            self.on_opening(reply);
            return Ok(());
        }
        if head.channel & OWN != 0 && !self.state.is_open(head.channel) {
            // Another answer to a hello that was said again: by an agent that was started anew, if its word differs.
            let other = |hello| matches!(hello, Reply::Hello(hello) if Some(hello.incarnation) != self.incarnation);
            if head.kind == FrameKind::Message && decode(frame.body).is_ok_and(other) {
                return Err(LinkError::Restarted);
            }
            return self.state.stray();
        }
        for effect in self.state.on_frame(&frame)? {
            match effect {
                Effect::Reply { channel, reply, len, last } => {
                    let taker = self.callers.taker(channel);
                    if !taker.is_some_and(|taker| taker.inbox.send(Item::Reply { reply, len })) {
                        // A ping of our own, or a caller that went away: nobody will say that it is used.
                        self.state.use_reply(channel, len);
                    }
                    if last {
                        self.callers.close(channel);
                    }
                }
                Effect::Data { channel, stream } => {
                    if let Some(taker) = self.callers.taker(channel) {
                        taker.inbox.send_data(stream, frame.body);
                    }
                }
                Effect::Granted { channel, bytes } => {
                    if let Some(taker) = self.callers.taker(channel) {
                        taker.granted.send_modify(|all| *all = all.saturating_add(bytes.into()));
                    }
                }
            }
        }
        Ok(())
    }

    fn check_noise(&self) -> Result<(), LinkError> {
        let noise = self.dropped().saturating_sub(self.noise);
        let may_be = self.kind == TransportKind::Tty || !matches!(self.phase, Phase::Open { .. });
        match may_be || noise <= MAX_NOISE {
            true => Ok(()),
            false => Err(LinkError::broken(format!("{noise} bytes that are no frames"))),
        }
    }
}
