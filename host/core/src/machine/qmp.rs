//! The QMP connection (QEMU `docs/interop/qmp-spec`), with qapi's types over a tolerant reader.
//!
//! QEMU may know events and values that the crate's schema does not. Each line is therefore read
//! as JSON first; an event that the schema does not know is passed over, and the connection goes
//! on. Lines are bounded.

use qapi::qmp::{Event, ShutdownCause, qmp_capabilities};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// A QMP line is read up to this length; QEMU sends none as long.
const MAX_LINE_LEN: u64 = 16 * 1024 * 1024;

/// What a machine's life turns on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QmpEvent {
    GuestPanicked,
    GuestShutdown,
    /// The guest reset, and QEMU stops it.
    GuestReset,
    /// The guest reset, and goes on.
    GuestReboots,
    Other,
}

/// Negotiates capabilities and hands out events until the connection ends.
pub(super) fn connect(stream: UnixStream) -> mpsc::Receiver<QmpEvent> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        if let Err(error) = converse(stream, sender).await {
            debug!(%error, "QMP connection ended");
        }
    });
    receiver
}

async fn converse(stream: UnixStream, sender: mpsc::Sender<QmpEvent>) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    // `{"execute": NAME, "arguments": {…}}`; the greeting need not be awaited (qmp-spec 2.1).
    let name = <qmp_capabilities as qapi::Command>::NAME;
    writer.write_all(format!("{}\n", json!({ "execute": name })).as_bytes()).await?;
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let len = (&mut reader).take(MAX_LINE_LEN).read_until(b'\n', &mut line).await?;
        if len == 0 {
            return Ok(());
        }
        let Some(event) = understand(&line) else {
            continue;
        };
        if sender.send(event).await.is_err() {
            return Ok(());
        }
    }
}

/// The event in a line, if there is one. Nothing in a line is an error: this is QEMU's log book.
fn understand(line: &[u8]) -> Option<QmpEvent> {
    let value: Value = match serde_json::from_slice(line) {
        Ok(value) => value,
        Err(error) => {
            warn!(%error, "a QMP line is no JSON");
            return None;
        }
    };
    if let Some(error) = value.get("error") {
        warn!(%error, "QEMU refused a command");
    }
    let name = value.get("event")?.as_str()?.to_owned();
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
        assert_eq!(understand(b"no json"), None);
        assert_eq!(understand(br#"{"event":7}"#), None);
    }

    #[tokio::test]
    async fn the_connection_outlives_what_it_does_not_know() {
        let (ours, mut qemu) = UnixStream::pair().unwrap();
        let mut events = connect(ours);
        let mut lines = br#"{"QMP":{"version":{},"capabilities":["oob","later"]}}"#.to_vec();
        lines.push(b'\n');
        for next in [
            line("FROM_THE_FUTURE", "{}"),
            b"noise".to_vec(),
            line("GUEST_PANICKED", r#"{"action":"pause"}"#),
        ] {
            lines.extend(next);
            lines.push(b'\n');
        }
        qemu.write_all(&lines).await.unwrap();
        assert_eq!(events.recv().await, Some(QmpEvent::Other));
        assert_eq!(events.recv().await, Some(QmpEvent::GuestPanicked));
        drop(qemu);
        assert_eq!(events.recv().await, None);
    }
}
