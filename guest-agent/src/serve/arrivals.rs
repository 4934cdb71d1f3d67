//! What the host sends: frames of both lanes, and what they are for.

use super::Server;
use crate::bulk::Bulk;
use crate::jobs::Input;
use crate::linux;
use crate::reading::{READ_LEN, Read, Reading};
use crate::session::{self, Action};
use crate::source::{self, Ending, Opened};
use guestline_protocol::{FrameHead, RemoteError, Reply, Session};
use std::sync::Arc;

/// So many reads of a lane before the other one is looked at: a request waits for no more.
const READS: usize = 16;

/// How a frame came, and where its body is.
pub(super) enum Came<'a> {
    Control(core::ops::Range<usize>),
    Bulk(&'a mut Reading, core::ops::Range<usize>),
    /// A job read it from the bulk port.
    Job(Input),
}

impl Came<'_> {
    fn body<'a>(&'a self, opened: &'a Opened) -> &'a [u8] {
        match self {
            Came::Control(span) => opened.link.control.reading.framing.body(span),
            Came::Bulk(reading, span) => reading.framing.body(span),
            Came::Job(input) => input.bytes(),
        }
    }
}

/// The lane that is named, or the control lane.
fn reading_of<'a>(opened: &'a mut Opened, bulk: &'a mut Option<&mut Reading>) -> &'a mut Reading {
    match bulk {
        Some(reading) => reading,
        None => &mut opened.link.control.reading,
    }
}

impl Server {
    /// Reads the bulk port, unless a job does. False when its end is closed.
    pub(super) fn read_bulk(&mut self) -> bool {
        let Some(bulk) = self.opened.link.bulk.clone() else { return true };
        let Some(mut reading) = bulk.try_read() else { return true };
        // What a job read for others came before.
        self.take_words();
        // And what it left unread in its buffer does not show in a poll.
        self.take_frames(&mut Some(&mut reading));
        self.read_lane(Some(&mut reading))
    }

    /// Reads what the host sent, on the control lane if no other is named. False when its end is closed.
    pub(super) fn read_lane(&mut self, mut bulk: Option<&mut Reading>) -> bool {
        for _ in 0..READS {
            let reading = reading_of(&mut self.opened, &mut bulk);
            let dropped = reading.framing.dropped();
            let read = reading.read(READ_LEN);
            match read {
                Read::Some | Read::Last => self.pause = super::FIRST_LOOK,
                Read::Nothing => break,
                Read::Closed => return false,
            }
            let any = self.take_frames(&mut bulk);
            let control = &mut self.opened.link.control;
            if self.opened.tty.is_some() && !any && control.framing().dropped() > dropped {
                // Somebody else, such as a getty, may have set the line as he likes it.
                let _ = source::make_raw(control.fd(), None);
            }
            if read == Read::Last {
                break;
            }
        }
        true
    }

    /// Acts on the frames that have been read; true when there were any.
    fn take_frames(&mut self, bulk: &mut Option<&mut Reading>) -> bool {
        let mut any = false;
        while let Some((head, span)) = reading_of(&mut self.opened, bulk).framing.next_span() {
            any = true;
            let body = reading_of(&mut self.opened, bulk).framing.body(&span);
            if let Some(action) = self.session.on_frame(head, body, linux::clock_us()) {
                let came = match bulk {
                    Some(reading) => Came::Bulk(reading, span),
                    None => Came::Control(span),
                };
                self.act(action, head, came);
            }
        }
        any
    }

    /// A job read a frame of the bulk port that is not its own.
    pub(super) fn take_handed(&mut self, head: FrameHead, input: Input) {
        if let Some(action) = self.session.on_frame(head, input.bytes(), linux::clock_us()) {
            self.act(action, head, Came::Job(input));
        }
        if let Some(bulk) = &self.opened.link.bulk {
            bulk.dealt_with();
        }
    }

    fn act(&mut self, action: Action, head: FrameHead, came: Came<'_>) {
        // An answer goes out under the session it answers, also where that was refused.
        let session = head.session;
        match action {
            Action::Send { channel, reply } => match came {
                Came::Control(_) => self.opened.link.message(session, channel, &reply),
                Came::Bulk(..) | Came::Job(_) => {
                    self.opened.link.bulk_message(session, channel, &reply);
                }
            },
            Action::Hello { channel, bulk } => self.hello(session, channel, bulk),
            Action::Join { channel } => {
                if self.session.is_attached() {
                    self.opened.link.join(session);
                }
                self.opened.link.bulk_message(session, channel, &session::joined());
            }
            Action::Carry { channel, request } => {
                if let Err(error) = self.carry(session, channel, request) {
                    self.opened.link.message(session, channel, &Reply::Error(error));
                }
            }
            Action::Data { channel, stream: _ } => {
                if let Err(error) = self.input(channel, came) {
                    self.cancel(channel);
                    self.opened.link.message(session, channel, &Reply::Error(error));
                }
            }
        }
    }

    fn hello(&mut self, session: Session, channel: u32, bulk: bool) {
        let is_new = self.session.open(session);
        if is_new {
            self.end_session();
            self.opened.link.forget();
        }
        // A hello that is said again has waited for it already.
        if bulk
            && is_new
            && self.opened.link.bulk.is_none()
            && self.opened.ending == Ending::LookAgain
            && self.opened.tty.is_none()
        {
            self.opened.link.bulk = source::bulk_port().map(|file| Arc::new(Bulk::port(file)));
        }
        if self.session.is_attached() {
            self.opened.link.join(session);
        }
        let has_bulk = bulk && self.opened.link.bulk.is_some();
        let hello = session::hello(self.init, has_bulk, self.incarnation, linux::clock_us());
        self.opened.link.message(session, channel, &hello);
    }

    /// Data of the host, for whoever has the channel.
    fn input(&mut self, channel: u32, came: Came<'_>) -> Result<(), RemoteError> {
        if self.jobs.has(channel) {
            let input = match came {
                Came::Job(input) => input,
                Came::Bulk(reading, span) => {
                    Input { buffer: reading.framing.detach(self.jobs.pool().take()), span }
                }
                Came::Control(span) => {
                    let framing = self.opened.link.control.framing();
                    Input { buffer: framing.detach(self.jobs.pool().take()), span }
                }
            };
            return self.jobs.input(channel, input);
        }
        let body = came.body(&self.opened);
        if self.processes.has(channel) {
            return self.processes.input(channel, body);
        }
        self.sockets.input(channel, body)
    }
}
