//! The loop: waits for whatever comes first, and acts on it.

use super::callers::Callers;
use super::credits::Credits;
use super::opening::Phase;
use super::port::{OptionFuture, Port, read};
use super::silence::{Next, Silence};
use super::{DataOrder, OpenOrder, Order};
use crate::link::ids::OWN;
use crate::link::inbox::Item;
use crate::link::state::SessionState;
use crate::link::{LinkError, Transport, TransportKind, data_buffer};
use crate::pulse::{Pulse, PulseWatch};
use guestline_protocol::{
    CancelEvent, ErrorKind, FrameHead, HEADROOM, MAX_CHANNELS, PingRequest, PortFraming,
    RemoteError, Reply, Request, Session, encode,
};
use std::io;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::debug;

/// Without anybody who knows what the guest does, it is given up after so long.
const GIVE_UP: Duration = Duration::from_secs(60);

/// What waits for a guest that does not read may hold so many bytes.
const MAX_BACKLOG: usize = 32 * 1024 * 1024;

/// One read of a port.
const CONTROL_READ: usize = 64 * 1024;
const BULK_READ: usize = 256 * 1024;

/// See the module. What it does in each case is in the files beside this one.
pub(super) struct Task {
    began: Instant,
    pub(super) kind: TransportKind,
    pub(super) control: Port,
    pub(super) bulk: Option<Port>,
    pub(super) state: SessionState,
    pub(super) phase: Phase,
    pub(super) callers: Callers,
    pub(super) credits: Credits,
    pub(super) next_own: u32,
    /// The channel of the last ping.
    ping: u32,
    pub(super) silence: Silence,
    silent: watch::Sender<Option<Instant>>,
    pulse: PulseWatch,
    /// Whom the last hello reached.
    pub(super) incarnation: Option<u64>,
    /// What was dropped before the session was open.
    pub(super) noise: u64,
}

impl Task {
    pub(super) fn new(
        transport: Transport,
        pulse: PulseWatch,
        silent: watch::Sender<Option<Instant>>,
    ) -> Self {
        let now = Instant::now();
        Self {
            began: now,
            kind: transport.kind,
            control: Port::new(transport.control, transport.framing),
            bulk: transport.bulk.map(|lane| Port::new(lane, Box::new(PortFraming::default()))),
            state: SessionState::new(Session::NONE),
            phase: Phase::Lost(LinkError::Closed),
            callers: Callers::default(),
            credits: Credits::default(),
            next_own: OWN,
            ping: OWN,
            silence: Silence::new(now),
            silent,
            pulse,
            incarnation: None,
            noise: 0,
        }
    }

    /// Runs until the link ends, and tells why.
    pub(super) async fn run(
        &mut self,
        orders: &mut mpsc::UnboundedReceiver<Order>,
        data: &mut mpsc::Receiver<DataOrder>,
    ) -> LinkError {
        let mut result = Ok(());
        loop {
            let deadline = match result.and_then(|()| self.on_time()) {
                Ok(deadline) => deadline,
                // The other end may come back.
                Err(error) if error.is_session_lost() => {
                    debug!(%error, "session lost");
                    self.lose(error);
                    result = Ok(());
                    continue;
                }
                Err(error) => return error,
            };
            let may_send = self.may_send_data();
            let Port { lane, framing, out } = &mut self.control;
            let control_waits = !out.is_empty();
            let read_control = read(&mut lane.reader, framing, CONTROL_READ);
            let write_control = out.write(&mut *lane.writer);
            let (read_bulk, write_bulk, bulk_waits) = match &mut self.bulk {
                Some(Port { lane, framing, out }) => {
                    let waits = !out.is_empty();
                    let read = read(&mut lane.reader, framing, BULK_READ);
                    let write = out.write(&mut *lane.writer);
                    (OptionFuture(Some(read)), OptionFuture(Some(write)), waits)
                }
                None => (OptionFuture(None), OptionFuture(None), false),
            };
            // Which of them came; acted upon when the borrows are over.
            enum Came {
                Written(io::Result<Duration>),
                BulkWritten(io::Result<Duration>),
                Order(Option<Order>),
                Read(io::Result<usize>),
                BulkRead(io::Result<usize>),
                Data(DataOrder),
                Time,
            }
            let came = tokio::select! {
                biased;
                written = write_control, if control_waits => Came::Written(written),
                order = orders.recv() => Came::Order(order),
                read = read_control => Came::Read(read),
                written = write_bulk.wait(), if bulk_waits => Came::BulkWritten(written),
                read = read_bulk.wait() => Came::BulkRead(read),
                Some(order) = data.recv(), if may_send => Came::Data(order),
                () = sleep_until(deadline) => Came::Time,
            };
            result = match came {
                Came::Written(Ok(stood)) => {
                    self.silence.excuse(stood, Instant::now());
                    Ok(())
                }
                Came::BulkWritten(Ok(_)) | Came::Time => Ok(()),
                Came::Order(Some(order)) => {
                    self.obey(order);
                    Ok(())
                }
                Came::Read(Ok(1..)) => self.take_frames(false),
                Came::BulkRead(Ok(1..)) => self.take_frames(true),
                Came::Data(order) => {
                    self.send_data(order);
                    Ok(())
                }
                Came::Written(Err(_)) | Came::BulkWritten(Err(_)) | Came::Order(None) => {
                    return LinkError::Closed;
                }
                Came::Read(Ok(0) | Err(_)) | Came::BulkRead(Ok(0) | Err(_)) => {
                    return LinkError::Closed;
                }
            };
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        // 1 at least: the framing's clock may take 0 for "at once".
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Open(order) => self.open_channel(order),
            Order::Tell { channel, buffer } => {
                if self.state.is_open(channel) {
                    self.send(channel, buffer);
                }
            }
            Order::UsedData { channel, len } => {
                if let Some(credit) = self.state.use_data(channel, len) {
                    self.credits.add(channel, &credit);
                }
            }
            Order::Grant { channel, bytes } => {
                if let Some(credit) = self.state.grant(channel, bytes) {
                    self.credits.add(channel, &credit);
                }
            }
            Order::UsedReply { channel, len } => self.state.use_reply(channel, len),
            Order::Drop { channel, ended } => {
                self.callers.leave(channel);
                if self.state.cancel(channel) && !ended {
                    self.send(channel, encode(&Request::Cancel(CancelEvent {})));
                }
                if !self.state.is_open(channel) {
                    self.callers.close(channel);
                }
            }
            Order::Reopen { done, is_restored } => {
                self.lose(LinkError::Restarted);
                self.begin(done, is_restored);
            }
            #[cfg(test)]
            Order::Weigh { done } => {
                let (backlog, channels) = (self.control.backlog(), self.state.open_count());
                let _ = done.send(super::Weight { backlog, channels });
            }
        }
    }

    fn open_channel(&mut self, mut order: OpenOrder) {
        if let Phase::Lost(error) = &self.phase {
            order.inbox.send(Item::Lost(error.clone()));
            return;
        }
        let own = usize::from(self.state.is_open(self.ping));
        if self.state.open_count() - own >= MAX_CHANNELS {
            let message = format!("{MAX_CHANNELS} requests are under way already");
            let reply = Reply::Error(RemoteError::new(ErrorKind::Busy, message));
            order.inbox.send(Item::Reply { reply, len: 0 });
            return;
        }
        if self.state.is_idle() {
            self.silence.end(Instant::now());
        }
        let (channel, window) = (order.id.number(), order.window);
        match order.relayed {
            true => self.state.open_relayed(channel, window),
            false => self.state.open(channel, window),
        }
        let buffer = std::mem::take(&mut order.buffer);
        self.callers.add(order);
        self.send(channel, buffer);
    }

    pub(super) fn send(&mut self, channel: u32, buffer: Vec<u8>) {
        let head = FrameHead::message(self.state.session(), channel);
        let now = self.now_ms();
        self.control.send(head, buffer, now);
    }

    fn may_send_data(&self) -> bool {
        match (&self.phase, &self.bulk) {
            (Phase::Open { bulk: true }, Some(bulk)) => !bulk.is_busy(),
            (Phase::Open { .. } | Phase::Opening(_), _) => !self.control.is_busy(),
            (Phase::Lost(_), _) => true,
        }
    }

    fn send_data(&mut self, order: DataOrder) {
        // Data for a channel that is over is dropped.
        if !self.state.is_open(order.channel) {
            return;
        }
        let head = FrameHead::data(self.state.session(), order.channel, order.stream);
        let now = self.now_ms();
        let port = match (&self.phase, &mut self.bulk) {
            (Phase::Open { bulk: true }, Some(bulk)) => bulk,
            _ => &mut self.control,
        };
        let piece = port.framing.data_len();
        if order.buffer.len() <= piece + HEADROOM {
            port.send(head, order.buffer, now);
            return;
        }
        for data in order.buffer[HEADROOM..].chunks(piece) {
            let mut buffer = data_buffer(data.len());
            buffer.extend_from_slice(data);
            port.send(head, buffer, now);
        }
    }

    /// What is due by the clock, or because the port has time; returns when to look again.
    fn on_time(&mut self) -> Result<Option<Instant>, LinkError> {
        let now = Instant::now();
        let hello = self.greet(now);
        let silence = self.look_at_silence(now)?;
        self.send_credits();
        let bytes = self.control.backlog();
        if bytes > MAX_BACKLOG {
            return Err(LinkError::Unread { bytes });
        }
        let now_ms = self.now_ms();
        let is_drained = self.control.out.is_empty();
        let due = self.control.framing.due(now_ms, is_drained);
        self.control.out.push(due);
        let framing = self.control.framing.deadline_ms();
        let framing =
            framing.map(|at| now + Duration::from_millis(at.saturating_sub(now_ms).max(1)));
        Ok([hello, silence, framing].into_iter().flatten().min())
    }

    fn look_at_silence(&mut self, now: Instant) -> Result<Option<Instant>, LinkError> {
        let mut next = None;
        if matches!(self.phase, Phase::Open { .. }) && !self.state.is_idle() {
            match self.silence.look(now) {
                Next::Ask => self.ask_for_life(),
                Next::LookInto(waited) => self.look_into(waited)?,
                Next::Wait => {}
            }
            next = Some(self.silence.next());
        }
        let since = self.silence.since();
        self.silent.send_if_modified(|told| std::mem::replace(told, since) != since);
        Ok(next)
    }

    fn ask_for_life(&mut self) {
        (self.pulse)();
        // The answer to the last one would do as well.
        if !self.state.is_open(self.ping) {
            self.ping = self.own_channel();
            self.state.open(self.ping, 0);
            self.send(self.ping, encode(&Request::Ping(PingRequest { token: 0 })));
        }
    }

    /// The guest owes a sign of life: is it busy, or dead?
    fn look_into(&mut self, waited: Duration) -> Result<(), LinkError> {
        let guest = (self.pulse)();
        debug!(?waited, ?guest, "no sign of life");
        match guest {
            Pulse::Idle => Err(LinkError::Silent { waited, guest }),
            Pulse::Unknown if waited >= GIVE_UP => Err(LinkError::Silent { waited, guest }),
            _ => Ok(()),
        }
    }

    /// Bytes that were no frames.
    pub(super) fn dropped(&self) -> u64 {
        let bulk = self.bulk.as_ref().map_or(0, |bulk| bulk.framing.dropped());
        self.control.framing.dropped() + bulk
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
