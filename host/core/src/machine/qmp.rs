//! The QMP connection (QEMU `docs/interop/qmp-spec`), with qapi's types over a tolerant reader.
//!
//! QEMU may know events and values that the crate's schema does not. Each line is therefore read
//! as JSON first; an event that the schema does not know is passed over, and the connection goes
//! on. Lines are bounded. Whoever gives a command writes it; one task reads, and hands out replies by their ids.

use crate::local_socket;
use qapi::qmp::{Event, MigrationStatus, QmpCommand, ShutdownCause, qmp_capabilities};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

/// A QMP line is read up to this length; QEMU sends none as long.
const MAX_LINE_LEN: u64 = 16 * 1024 * 1024;

/// What a machine's life turns on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum QmpEvent {
    GuestPanicked,
    GuestShutdown,
    /// The guest reset, and QEMU stops it.
    GuestReset,
    /// The guest reset, and goes on.
    GuestReboots,
    /// The guest stands, since the host does not do what it wants of a disk, for this reason.
    DiskFailed(String),
    Other,
}

/// A command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU refused it.
    #[error("QEMU refuses `{command}`: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// As QEMU says.
        reason: String,
    },
    /// Its answer is not what the schema says.
    #[error("QEMU answers `{command}` with what is no answer to it")]
    Strange {
        /// The command.
        command: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The connection has ended: QEMU has, or is about to.
    #[error("QEMU is gone")]
    Gone,
}

/// A machine's QMP connection. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Qmp {
    /// None once it is somebody else's.
    writer: Arc<tokio::sync::Mutex<Option<OwnedWriteHalf>>>,
    callers: Arc<Mutex<Callers>>,
    migration: watch::Receiver<Option<MigrationStatus>>,
    reader: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// Who waits for a reply, by the id of his command.
#[derive(Debug, Default)]
struct Callers {
    next: u64,
    waiting: HashMap<u64, oneshot::Sender<Value>>,
    gone: bool,
}

impl Qmp {
    /// Negotiates capabilities, and hands out events until the connection ends.
    pub(super) fn connect(stream: UnixStream) -> (Self, mpsc::Receiver<QmpEvent>) {
        Self::begin(stream, true)
    }

    /// As [`Qmp::connect`], over a connection on which that was done.
    pub(super) fn resume(stream: UnixStream) -> (Self, mpsc::Receiver<QmpEvent>) {
        Self::begin(stream, false)
    }

    fn begin(stream: UnixStream, negotiates: bool) -> (Self, mpsc::Receiver<QmpEvent>) {
        let (sender, receiver) = mpsc::channel(16);
        let (reader, writer) = stream.into_split();
        let (migrated, migration) = watch::channel(None);
        let callers = Arc::new(Mutex::new(Callers::default()));
        let writer = Arc::new(tokio::sync::Mutex::new(Some(writer)));
        // Taken before anybody else can have it: nothing may be said before it (qmp-spec 2.3).
        let first = writer.clone().try_lock_owned().ok().filter(|_| negotiates);
        let waiting = callers.clone();
        let reading = tokio::spawn(async move {
            if let Some(mut writer) = first
                && let Some(writer) = writer.as_mut()
            {
                // The greeting need not be awaited.
                let name = <qmp_capabilities as qapi::Command>::NAME;
                let line = format!("{}\n", json!({ "execute": name }));
                let _ = writer.write_all(line.as_bytes()).await;
            }
            let mut reading = Reading { callers: &waiting, events: sender, migrated };
            if let Err(error) = reading.read(reader).await {
                debug!(%error, "QMP connection ended");
            }
            close(&waiting);
        });
        let reader = Arc::new(Mutex::new(Some(reading)));
        (Self { writer, callers, migration, reader }, receiver)
    }

    /// Stops to read, and gives the connection to who goes on with it. To be called when nothing is under way; what is
    /// told in this moment is lost.
    ///
    /// # Errors
    /// What duplicating a descriptor gives, and when that was done before.
    pub(super) async fn give_away(&self) -> io::Result<OwnedFd> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(reader) = reader else { return Err(io::ErrorKind::NotFound.into()) };
        reader.abort();
        let _ = reader.await;
        close(&self.callers);
        let writer = self.writer.lock().await.take().ok_or(io::ErrorKind::NotFound)?;
        let connection = writer.as_ref().as_fd().try_clone_to_owned()?;
        // Dropped, it would be shut down.
        writer.forget();
        Ok(connection)
    }

    /// Gives a command and waits for its answer. Commands are carried out in the order in which they were given.
    ///
    /// # Errors
    /// [`QmpError`].
    pub(super) async fn execute<C: QmpCommand>(&self, command: &C) -> Result<C::Ok, QmpError> {
        self.give(command, None).await
    }

    /// As [`Qmp::execute`], with a descriptor beside the command (`SCM_RIGHTS`, unix(7)).
    ///
    /// # Errors
    /// [`QmpError`].
    pub(super) async fn execute_with<C: QmpCommand>(
        &self,
        command: &C,
        fd: BorrowedFd<'_>,
    ) -> Result<C::Ok, QmpError> {
        self.give(command, Some(fd)).await
    }

    /// As [`Qmp::execute`], of whose answer the caller reads what he needs: what a later QEMU says beside it, or by words
    /// that the schema does not have, is no error.
    ///
    /// # Errors
    /// [`QmpError`].
    pub(super) async fn execute_plain(
        &self,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, QmpError> {
        self.exchange(command, arguments, None).await
    }

    async fn give<C: QmpCommand>(
        &self,
        command: &C,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<C::Ok, QmpError> {
        let strange = |source| QmpError::Strange { command: C::NAME, source };
        let arguments = serde_json::to_value(command).map_err(strange)?;
        let answer = self.exchange(C::NAME, arguments, fd).await?;
        serde_json::from_value(answer).map_err(strange)
    }

    async fn exchange(
        &self,
        command: &'static str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        let (reply, replied) = oneshot::channel();
        let mut turn = self.writer.lock().await;
        let writer = turn.as_mut().ok_or(QmpError::Gone)?;
        let id = lock(&self.callers).add(reply).ok_or(QmpError::Gone)?;
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments, "id": id }));
        let written = local_socket::send(writer.as_ref(), line.as_bytes(), fd.as_slice()).await;
        drop(turn);
        written.map_err(|_| QmpError::Gone)?;
        let mut answer = replied.await.map_err(|_| QmpError::Gone)?;
        match answer.get("error") {
            Some(error) => {
                let reason = error["desc"].as_str().unwrap_or("without a reason");
                Err(QmpError::Refused { command, reason: crate::text::printable(reason) })
            }
            None => Ok(answer["return"].take()),
        }
    }

    /// To wait for the end of a migration that is not begun yet.
    pub(super) fn watch_migration(&self) -> MigrationWatch {
        let mut watch = self.migration.clone();
        // A machine that was restored may be saved: an earlier end is none of this one's.
        watch.mark_unchanged();
        MigrationWatch(watch)
    }
}

/// Waits for the end of a migration (QMP `MIGRATION`, which is told with the capability `events`).
pub(super) struct MigrationWatch(watch::Receiver<Option<MigrationStatus>>);

impl MigrationWatch {
    /// True when it was completed.
    ///
    /// # Errors
    /// [`QmpError::Gone`].
    pub(super) async fn ended(mut self) -> Result<bool, QmpError> {
        use MigrationStatus::{cancelled, completed, failed};
        loop {
            self.0.changed().await.map_err(|_| QmpError::Gone)?;
            match *self.0.borrow_and_update() {
                Some(completed) => return Ok(true),
                Some(failed | cancelled) => return Ok(false),
                _ => {}
            }
        }
    }
}

impl Callers {
    /// A number for a command; none when nobody will answer it.
    fn add(&mut self, reply: oneshot::Sender<Value>) -> Option<u64> {
        if self.gone {
            return None;
        }
        self.next += 1;
        self.waiting.insert(self.next, reply);
        Some(self.next)
    }
}

/// Nobody will be answered any more.
fn close(callers: &Mutex<Callers>) {
    let mut callers = lock(callers);
    callers.gone = true;
    callers.waiting.clear();
}

fn lock(callers: &Mutex<Callers>) -> MutexGuard<'_, Callers> {
    callers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads what QEMU says.
struct Reading<'a> {
    callers: &'a Mutex<Callers>,
    events: mpsc::Sender<QmpEvent>,
    migrated: watch::Sender<Option<MigrationStatus>>,
}

impl Reading<'_> {
    async fn read(&mut self, reader: OwnedReadHalf) -> io::Result<()> {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        loop {
            line.clear();
            let len = (&mut reader).take(MAX_LINE_LEN).read_until(b'\n', &mut line).await?;
            if len == 0 {
                return Ok(());
            }
            let value: Value = match serde_json::from_slice(&line) {
                Ok(value) => value,
                Err(error) => {
                    warn!(%error, "a QMP line is no JSON");
                    continue;
                }
            };
            if let Some(id) = value.get("id").and_then(Value::as_u64) {
                if let Some(caller) = lock(self.callers).waiting.remove(&id) {
                    let _ = caller.send(value);
                }
                continue;
            }
            if let Some(status) = migration_status(&value) {
                self.migrated.send_replace(Some(status));
            }
            let Some(event) = understand(value) else { continue };
            if self.events.send(event).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// What a `MIGRATION` event says; a status that the schema does not know is none that ends one.
fn migration_status(value: &Value) -> Option<MigrationStatus> {
    let is_it = value.get("event")? == "MIGRATION";
    serde_json::from_value(value["data"]["status"].clone()).ok().filter(|_| is_it)
}

/// What a `BLOCK_IO_ERROR` says after which the guest stands.
fn disk_failure(event: &str, data: &Value) -> Option<String> {
    let is_it = event == "BLOCK_IO_ERROR" && data["action"] == "stop";
    let operation = if data["operation"] == "read" { "read" } else { "written" };
    let reason = data["reason"].as_str().unwrap_or("no reason is given");
    let reason = crate::text::one_line(reason, 200);
    is_it.then(|| format!("a disk of the guest cannot be {operation}: {reason}"))
}

/// The event in what QEMU said, if there is one. Nothing in it is an error: this is QEMU's log book.
fn understand(value: Value) -> Option<QmpEvent> {
    if let Some(error) = value.get("error") {
        warn!(%error, "QEMU refused a command");
    }
    let name = value.get("event")?.as_str()?.to_owned();
    if let Some(why) = disk_failure(&name, &value["data"]) {
        return Some(QmpEvent::DiskFailed(why));
    }
    // What ends a machine is known by its name, whatever else a later QEMU puts beside it.
    let fallback = match name.as_str() {
        "GUEST_PANICKED" => QmpEvent::GuestPanicked,
        "SHUTDOWN" if value["data"]["guest"] == true => QmpEvent::GuestShutdown,
        "RESET" if value["data"]["guest"] == true => QmpEvent::GuestReboots,
        _ => QmpEvent::Other,
    };
    match serde_json::from_value::<Event>(value) {
        Ok(Event::GUEST_PANICKED { .. }) => Some(QmpEvent::GuestPanicked),
        Ok(Event::SHUTDOWN { data, .. }) => Some(match data.reason {
            ShutdownCause::guest_shutdown => QmpEvent::GuestShutdown,
            ShutdownCause::guest_reset | ShutdownCause::subsystem_reset => QmpEvent::GuestReset,
            ShutdownCause::guest_panic => QmpEvent::GuestPanicked,
            _ => QmpEvent::Other,
        }),
        Ok(Event::RESET { data, .. }) if data.guest => Some(QmpEvent::GuestReboots),
        Ok(_) => Some(QmpEvent::Other),
        Err(error) => {
            debug!(name, %error, "a QMP event that the schema does not know");
            Some(fallback)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, data: &str) -> Vec<u8> {
        let time = r#""timestamp":{"seconds":1,"microseconds":2}"#;
        format!(r#"{{"event":"{name}","data":{data},{time}}}"#).into_bytes()
    }

    fn understand(line: &[u8]) -> Option<QmpEvent> {
        super::understand(serde_json::from_slice(line).unwrap())
    }

    #[test]
    fn a_disk_that_fails_is_told_when_the_guest_stands() {
        let told = |action: &str| {
            let what = r#""device":"","operation":"write","nospace":true,"reason":"No space left on device""#;
            understand(&line("BLOCK_IO_ERROR", &format!(r#"{{"action":"{action}",{what}}}"#)))
        };
        let why = "a disk of the guest cannot be written: No space left on device".to_owned();
        assert_eq!(told("stop"), Some(QmpEvent::DiskFailed(why)));
        assert_eq!(told("report"), Some(QmpEvent::Other));
    }

    #[test]
    fn knows_the_events_that_end_a_machine() {
        let shutdown = |reason: &str| {
            understand(&line("SHUTDOWN", &format!(r#"{{"guest":true,"reason":"{reason}"}}"#)))
        };
        assert_eq!(shutdown("guest-shutdown"), Some(QmpEvent::GuestShutdown));
        assert_eq!(shutdown("guest-reset"), Some(QmpEvent::GuestReset));
        assert_eq!(shutdown("host-signal"), Some(QmpEvent::Other));
        let panicked = understand(&line("GUEST_PANICKED", r#"{"action":"pause"}"#));
        assert_eq!(panicked, Some(QmpEvent::GuestPanicked));
        let reset = |data: &str| understand(&line("RESET", data));
        let by_guest = reset(r#"{"guest":true,"reason":"guest-reset"}"#);
        assert_eq!(by_guest, Some(QmpEvent::GuestReboots));
        let by_host = reset(r#"{"guest":false,"reason":"host-qmp-system-reset"}"#);
        assert_eq!(by_host, Some(QmpEvent::Other));
    }

    #[test]
    fn what_the_schema_does_not_know_is_passed_over() {
        assert_eq!(understand(&line("FROM_THE_FUTURE", "{}")), Some(QmpEvent::Other));
        let reason = line("SHUTDOWN", r#"{"guest":true,"reason":"of-the-future"}"#);
        assert_eq!(understand(&reason), Some(QmpEvent::GuestShutdown));
        let panicked = line("GUEST_PANICKED", r#"{"action":"of-the-future"}"#);
        assert_eq!(understand(&panicked), Some(QmpEvent::GuestPanicked));
        assert_eq!(understand(br#"{"return":{}}"#), None);
        assert_eq!(understand(br#"{"event":7}"#), None);
    }

    async fn say(qemu: &mut UnixStream, lines: &[Vec<u8>]) {
        for line in lines {
            qemu.write_all(line).await.unwrap();
            qemu.write_all(b"\n").await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_connection_outlives_what_it_does_not_know() {
        let (ours, mut qemu) = UnixStream::pair().unwrap();
        let (_qmp, mut events) = Qmp::connect(ours);
        let greeting = br#"{"QMP":{"version":{},"capabilities":["oob","later"]}}"#.to_vec();
        let panicked = line("GUEST_PANICKED", r#"{"action":"pause"}"#);
        let future = line("FROM_THE_FUTURE", "{}");
        say(&mut qemu, &[greeting, future, b"noise".to_vec(), panicked]).await;
        assert_eq!(events.recv().await, Some(QmpEvent::Other));
        assert_eq!(events.recv().await, Some(QmpEvent::GuestPanicked));
        drop(qemu);
        assert_eq!(events.recv().await, None);
    }

    #[tokio::test]
    async fn replies_find_their_callers_and_nobody_waits_for_a_dead_qemu() {
        use qapi::qmp::{cont, stop};
        let (ours, qemu) = UnixStream::pair().unwrap();
        let (qmp, _events) = Qmp::connect(ours);
        let (qemu, mut answers) = qemu.into_split();
        let mut lines = BufReader::new(qemu).lines();
        let peer = async {
            let mut said = Vec::new();
            for _ in 0..3 {
                let line = lines.next_line().await.unwrap().unwrap();
                said.push(serde_json::from_str::<Value>(&line).unwrap());
            }
            assert_eq!(said[0]["execute"], "qmp_capabilities");
            // In another order, and with a stranger's id between them.
            let refused = json!({ "error": { "class": "GenericError", "desc": "not\u{1b}now" }, "id": said[2]["id"] });
            for line in [
                json!({"return": {}, "id": 99}),
                refused,
                json!({"return": {}, "id": said[1]["id"]}),
            ] {
                answers.write_all(format!("{line}\n").as_bytes()).await.unwrap();
            }
        };
        let (stopped, continued, ()) =
            tokio::join!(qmp.execute(&stop {}), qmp.execute(&cont {}), peer);
        assert!(stopped.is_ok());
        let text = continued.unwrap_err().to_string();
        assert!(text.starts_with("QEMU refuses `cont`: not") && !text.contains('\u{1b}'), "{text}");
        let dying = async {
            lines.next_line().await.unwrap();
            drop(lines);
            drop(answers);
        };
        let (cut, ()) = tokio::join!(qmp.execute(&stop {}), dying);
        assert!(matches!(cut, Err(QmpError::Gone)));
        assert!(matches!(qmp.execute(&stop {}).await, Err(QmpError::Gone)));
    }

    #[tokio::test]
    async fn a_descriptor_goes_with_its_command_and_a_migration_is_waited_for() {
        use crate::sys;
        use qapi::qmp::getfd;
        use std::os::fd::AsRawFd;
        use tokio::io::Interest;
        let (ours, mut qemu) = UnixStream::pair().unwrap();
        let (qmp, _events) = Qmp::connect(ours);
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, b"state").unwrap();
        let watch = qmp.watch_migration();
        let command = getfd { fdname: "state".to_owned() };
        let peer = async {
            let (mut said, mut came) = (String::new(), None);
            while !said.contains("getfd") {
                qemu.readable().await.unwrap();
                let mut bytes = [0; 512];
                let received = qemu
                    .try_io(Interest::READABLE, || sys::receive(qemu.as_fd(), &mut bytes))
                    .map(|(len, fds)| {
                        came = fds.into_iter().next().or(came.take());
                        String::from_utf8(bytes[..len].to_vec()).unwrap()
                    });
                said += &received.unwrap_or_default();
            }
            let line = said.lines().last().unwrap();
            let id = serde_json::from_str::<Value>(line).unwrap()["id"].clone();
            say(&mut qemu, &[json!({ "return": {}, "id": id }).to_string().into_bytes()]).await;
            say(&mut qemu, &[line_of("setup"), line_of("of-the-future"), line_of("completed")])
                .await;
            came.unwrap()
        };
        let (given, came) = tokio::join!(qmp.execute_with(&command, file.as_fd()), peer);
        given.unwrap();
        let text = std::fs::read_to_string(format!("/proc/self/fd/{}", came.as_raw_fd())).unwrap();
        assert_eq!(text, "state");
        assert!(watch.ended().await.unwrap());
    }

    #[tokio::test]
    async fn a_connection_goes_on_with_somebody_else() {
        use qapi::qmp::stop;
        use tokio::io::AsyncBufReadExt;
        let (ours, qemu) = UnixStream::pair().unwrap();
        let (reader, mut answers) = qemu.into_split();
        let mut lines = BufReader::new(reader).lines();
        let (first, mut events) = Qmp::connect(ours);
        assert!(lines.next_line().await.unwrap().unwrap().contains("qmp_capabilities"));
        let connection = first.give_away().await.unwrap();
        // Who gave it away hears and says nothing any more; nobody negotiates again.
        assert!(events.recv().await.is_none());
        assert!(matches!(first.execute(&stop {}).await, Err(QmpError::Gone)));
        assert!(first.give_away().await.is_err());
        drop(first);
        let connection = std::os::unix::net::UnixStream::from(connection);
        let (second, mut events) = Qmp::resume(UnixStream::from_std(connection).unwrap());
        let peer = async {
            let said = lines.next_line().await.unwrap().unwrap();
            let said: Value = serde_json::from_str(&said).unwrap();
            assert_eq!(said["execute"], "stop");
            let mut text = line("GUEST_PANICKED", r#"{"action":"pause"}"#);
            text.extend(format!("\n{}\n", json!({"return": {}, "id": said["id"]})).into_bytes());
            answers.write_all(&text).await.unwrap();
        };
        let (stopped, ()) = tokio::join!(second.execute(&stop {}), peer);
        assert!(stopped.is_ok());
        assert_eq!(events.recv().await, Some(QmpEvent::GuestPanicked));
    }

    fn line_of(status: &str) -> Vec<u8> {
        line("MIGRATION", &json!({ "status": status }).to_string())
    }
}
