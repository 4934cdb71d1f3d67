//! What becomes of each request: done at once where it is quick, else by a process, a socket or a job.

use super::Server;
use crate::control;
use crate::jobs::Desk;
use crate::work;
use guestline_files::ops;
use guestline_protocol::{
    DoneResponse, ErrorKind, PushStartedEvent, RemoteError, Reply, Request, Session,
};

impl Server {
    /// Carries a request out, or sees to it that it is.
    pub(super) fn carry(
        &mut self,
        session: Session,
        channel: u32,
        request: Request,
    ) -> Result<(), RemoteError> {
        if !request.is_on_channel() {
            self.check_channel(channel)?;
        }
        let mut job = |credit, work: Box<dyn FnOnce(&Desk) -> Reply + Send>| {
            let bulk = self.opened.link.bulk_of(session);
            self.jobs.start(session, channel, credit, false, bulk, work).map(drop)
        };
        match request {
            Request::Cancel(_) => {
                self.cancel(channel);
                Ok(())
            }
            Request::Credit(credit) => {
                self.jobs.credit(channel, credit.bytes);
                self.processes.credit(channel, credit.bytes);
                self.sockets.credit(channel, credit.bytes);
                Ok(())
            }
            Request::End(end) => {
                self.processes.end_input(channel, end.total);
                self.sockets.end_input(channel, end.total);
                Ok(())
            }
            Request::Signal(signal) => {
                self.processes.signal(channel, &signal);
                Ok(())
            }
            Request::Resize(size) => {
                self.processes.resize(channel, size);
                Ok(())
            }
            Request::Exec(request) => {
                let started = self.processes.spawn(channel, &request)?;
                let waits = started.credit > 0;
                let reply = Reply::ExecStarted(started);
                match waits {
                    true => self.opened.link.message(session, channel, &reply),
                    // Most commands are short: their exit comes with it.
                    false => self.opened.link.message_with_next(session, channel, &reply),
                }
                Ok(())
            }
            Request::Push(request) => {
                let work = Box::new(move |desk: &Desk| work::push(desk, &request));
                let bulk = self.opened.link.bulk_of(session);
                let credit = self.jobs.start(session, channel, 0, true, bulk, work)?;
                let started = PushStartedEvent { credit };
                self.opened.link.message(session, channel, &Reply::PushStarted(started));
                Ok(())
            }
            Request::Pull(request) => {
                job(request.credit, Box::new(move |desk| work::pull(desk, &request)))
            }
            Request::Stat(request) => job(
                0,
                Box::new(move |_| {
                    let stat =
                        work::path(&request.path).and_then(|path| ops::stat(&path, request.follow));
                    stat.map_or_else(Reply::Error, Reply::Stat)
                }),
            ),
            Request::List(request) => job(0, Box::new(move |desk| work::list(desk, &request))),
            Request::MakeFolder(request) => {
                job(
                    0,
                    Box::new(move |_| {
                        work::done(work::path(&request.path).and_then(|path| {
                            ops::make_folder(&path, request.mode, request.parents)
                        }))
                    }),
                )
            }
            Request::Remove(request) => {
                job(
                    0,
                    Box::new(move |_| {
                        work::done(work::path(&request.path).and_then(|path| {
                            ops::remove(&path, request.recursive, request.missing_ok)
                        }))
                    }),
                )
            }
            Request::Follow(request) => {
                job(request.credit, Box::new(move |desk| work::follow(desk, &request)))
            }
            Request::Facts(_) => job(0, Box::new(|_| Reply::Facts(control::facts::gather()))),
            Request::Sample(request) => job(0, Box::new(move |desk| work::sample(desk, &request))),
            // Quick, and wanted at once: a restored machine waits for it.
            Request::SetClock(request) => {
                let reply = Reply::SetClock(control::clock::set(&request)?);
                self.opened.link.message(session, channel, &reply);
                Ok(())
            }
            Request::AddEntropy(request) => {
                control::entropy::add(&request)?;
                self.opened.link.message(session, channel, &Reply::Done(DoneResponse {}));
                Ok(())
            }
            Request::Identity(request) => {
                job(0, Box::new(move |_| work::done(control::identity::apply(&request))))
            }
            Request::Power(request) => {
                let init = self.init;
                job(0, Box::new(move |desk| work::power(desk, &request, init)))
            }
            Request::Freeze(request) => {
                let path = request.path.to_vec();
                job(0, Box::new(move |_| work::done(control::freeze::freeze(&request.path))))?;
                if !self.frozen.contains(&path) {
                    self.frozen.push(path);
                }
                Ok(())
            }
            Request::Thaw(request) => {
                self.frozen.retain(|frozen| frozen[..] != request.path[..]);
                job(0, Box::new(move |_| work::done(control::freeze::thaw(&request.path))))
            }
            Request::Connect(request) => {
                if let Some(connected) = self.sockets.connect(channel, &request)? {
                    self.opened.link.message(session, channel, &Reply::Connected(connected));
                }
                Ok(())
            }
            Request::Listen(request) => {
                let listening = self.sockets.listen(channel, &request)?;
                self.opened.link.message(session, channel, &Reply::Listening(listening));
                Ok(())
            }
            Request::Accept(request) => {
                let connected = self.sockets.accept(channel, &request)?;
                self.opened.link.message(session, channel, &Reply::Connected(connected));
                Ok(())
            }
            Request::Hello(_) | Request::Attach(_) | Request::Ping(_) => Ok(()),
        }
    }

    fn is_open(&self, channel: u32) -> bool {
        self.jobs.has(channel) || self.processes.has(channel) || self.sockets.has(channel)
    }

    fn check_channel(&self, channel: u32) -> Result<(), RemoteError> {
        if !self.is_open(channel) {
            return Ok(());
        }
        let message = format!("channel {channel} is open already");
        Err(RemoteError::new(ErrorKind::Protocol, message))
    }

    pub(super) fn cancel(&mut self, channel: u32) {
        self.jobs.cancel(channel);
        self.processes.cancel(channel);
        if self.sockets.cancel(channel) {
            let session = self.session.current();
            self.opened.link.message(session, channel, &work::cancelled());
        }
    }
}
