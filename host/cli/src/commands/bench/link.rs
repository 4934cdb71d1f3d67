//! `guestline bench link`: the link beside the raw port, the QEMU guest agent, ssh and a serial console, all in one guest.
//!
//! Floors are taken by a program of their own (`bench/floor`) on a raw port, figure and floor in turn, run by run.

use super::peers::{self, Peers};
use super::stats::{Row, Setting, median, ms, peak_memory, percentile, rate};
use super::tiny;
use crate::args::{BenchArgs, GlobalArgs};
use crate::context::{Context, agent};
use crate::error::CommandError;
use guestline::guest::{ExecEvent, Guest, PullOptions, PushOptions};
use guestline::machine::{ExtraPort, Qemu};
use guestline::provision::{Lease, MachineRequest, Provisioner, WorkRoot};
use guestline_harness::text;
use guestline_protocol::{ByteBuf, Command, ExecRequest, ExitStatus, Stream};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

/// The program that takes the floors; empty when this one was built without it.
const FLOOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/floor"));

const RAW_PORT: &str = "org.guestline.raw";

/// Files and streams are so long.
const FILE_LEN: usize = 64 << 20;
const STREAM_LEN: usize = 1526 * 65536;

/// Figures that those of others are set against.
pub(super) const EXEC: &str = "exec of a tiny program";
pub(super) const PUSH: &str = "push of 64 MiB";
pub(super) const PULL: &str = "pull of 64 MiB";

/// How often small things are done in each run.
const PINGS: u32 = 200;
const EXECS: usize = 60;
const IN_FLIGHT: usize = 16;

/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(180);

pub(super) fn run(global: &GlobalArgs, args: &BenchArgs) -> Result<u8, CommandError> {
    if FLOOR.is_empty() {
        return Err(CommandError::new("this build carries no program for the floors")
            .hint("`make build` in the source tree builds one and puts it in"));
    }
    let context = Context::new()?;
    let agent = agent(global)?;
    let acceleration = context.acceleration(global.accel, false);
    let qemu = Qemu::find(&context.dirs)?;
    let image = super::tiny(&context, global)?;
    let peers = Peers::fetch(&context.store())?;
    let (version, kernel) = (qemu.version.to_string(), image.manifest.kernel_release.clone());
    let accel = acceleration.accel;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (rows, peers) = runtime.block_on(async {
        let root = WorkRoot::create(&context.dirs, false)?;
        let provisioner = Provisioner::new(qemu, accel, root, &context.dirs);
        let request = MachineRequest {
            memory_mib: 1024,
            cpus: args.cpus,
            ports: vec![
                ExtraPort::Virtio(RAW_PORT.to_owned()),
                ExtraPort::Virtio(peers::QGA_PORT.to_owned()),
                ExtraPort::Serial,
            ],
            ssh_port: Some(peers.ssh_port),
            ..MachineRequest::new(image, PATIENCE)
        };
        let lease = provisioner.lease(&request, &CancellationToken::new()).await;
        let mut lease = lease.map_err(|failed| CommandError::new(text::chain(&failed.error)))?;
        let rows = measure(&mut lease, args.runs, &peers).await;
        lease.end().await;
        rows
    })?;
    let setting = Setting { accelerator: accel.as_str(), qemu: version, kernel, runs: args.runs };
    let all = json!({ "agent_bytes": agent.bytes().len() });
    let status = setting.print(args.message_format, all, &rows)?;
    peers.map(|()| status)
}

/// A folder in memory, where there is one: this host's disk is not measured.
fn scratch() -> std::io::Result<tempfile::TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

/// The program of the floors, at its end of the raw port.
struct Floor {
    port: BufReader<UnixStream>,
}

impl Floor {
    async fn order(&mut self, order: &str) -> Result<(), CommandError> {
        self.port.get_mut().write_all(format!("{order}\n").as_bytes()).await?;
        Ok(())
    }

    async fn line(&mut self) -> Result<String, CommandError> {
        let mut line = String::new();
        self.port.read_line(&mut line).await?;
        Ok(line)
    }

    /// Milliseconds of each round trip.
    async fn echo(&mut self, times: u32) -> Result<Vec<f64>, CommandError> {
        self.order(&format!("echo 64 {times}")).await?;
        let (out, mut back) = ([7; 64], [0; 64]);
        let mut samples = Vec::new();
        for _ in 0..times {
            let began = Instant::now();
            self.port.get_mut().write_all(&out).await?;
            self.port.read_exact(&mut back).await?;
            samples.push(ms(began.elapsed()));
        }
        Ok(samples)
    }

    /// Milliseconds of each spawn, by the guest's clock.
    async fn spawn(&mut self, times: usize) -> Result<Vec<f64>, CommandError> {
        self.order(&format!("spawn {times} /tmp/tiny")).await?;
        let mut samples = Vec::new();
        for _ in 0..times {
            let nanos: f64 = self.line().await?.trim().parse()?;
            samples.push(nanos / 1e6);
        }
        Ok(samples)
    }

    /// By an order `into` or `into-sum`.
    async fn fill_file(&mut self, order: &str, bytes: &[u8]) -> Result<Duration, CommandError> {
        self.order(&format!("{order} /tmp/raw {}", bytes.len())).await?;
        let began = Instant::now();
        self.port.get_mut().write_all(bytes).await?;
        self.line().await?;
        Ok(began.elapsed())
    }

    /// Takes `len` bytes after an order, from its beginning.
    async fn take(&mut self, order: &str, len: usize) -> Result<Duration, CommandError> {
        let mut buffer = vec![0; 256 * 1024];
        let began = Instant::now();
        self.order(order).await?;
        let mut left = len;
        while left > 0 {
            let read = self.port.read(&mut buffer).await?;
            if read == 0 {
                return Err(CommandError::new("the raw port closed"));
            }
            left = left.saturating_sub(read);
        }
        Ok(began.elapsed())
    }
}

/// The link's own figures, and what came of measuring others.
type Measured = (Vec<Row>, Result<(), CommandError>);

async fn measure(lease: &mut Lease, runs: u32, peers: &Peers) -> Result<Measured, CommandError> {
    let guest = lease.guest.clone();
    guest.write(b"/tmp/tiny", &tiny::program(), 0o755).await?;
    guest.write(b"/tmp/floor", FLOOR, 0o755).await?;
    let mut rows = Vec::new();
    // While nothing is outstanding: the link looks after whom it waits for.
    idle(&guest, &mut rows).await?;
    let ports = std::mem::take(&mut lease.ports);
    let [port, qga, serial] = <[UnixStream; 3]>::try_from(ports)
        .map_err(|_| CommandError::new("the machine has not the ports that were asked for"))?;
    let line = format!(
        "for port in /sys/class/virtio-ports/*; do \
         [ \"$(cat $port/name)\" = {RAW_PORT} ] && exec /tmp/floor /dev/${{port##*/}}; done; exit 9"
    );
    let _floor = guest.exec(ExecRequest::new(Command::Shell(line.into_bytes().into()))).await?;
    let mut floor = Floor { port: BufReader::with_capacity(256 * 1024, port) };
    small(&guest, &mut floor, runs, &mut rows).await?;
    files(&guest, &mut floor, runs, &mut rows).await?;
    beside(&guest, runs, &mut rows).await?;
    stream(&guest, &mut floor, runs, &mut rows).await?;
    let peers = peers.measure(&guest, qga, serial, &mut rows).await;
    Ok((rows, peers))
}

/// The agent when it has nothing to do.
async fn idle(guest: &Guest, rows: &mut Vec<Row>) -> Result<(), CommandError> {
    // How often a thread of the agent goes to sleep (proc_pid_status(5)), counted in the guest: asking wakes it, too.
    let line = "count() { n=0; for task in /proc/1/task/*/status; do while read -r key value; do \
        [ $key = voluntary_ctxt_switches: ] && n=$((n + value)); done <$task; done; }; \
        { sleep 1; count; before=$n; sleep 5; count; echo $((n - before)) >/tmp/idle; } \
        </dev/null >/dev/null 2>&1 &";
    guest.output(&["/bin/sh", "-c", line], 0).await?;
    tokio::time::sleep(Duration::from_secs(7)).await;
    let idle = number(guest, "cat /tmp/idle").await?;
    rows.push(Row::new("agent's wake-ups in 5 idle seconds", "times", idle, None, "0"));
    let resident =
        number(guest, "sed -n 's/^Rss:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/1/smaps_rollup").await?;
    rows.push(Row::new("agent resident, idle", "KiB", resident, None, "under 2048"));
    Ok(())
}

/// The number that a shell line prints.
async fn number(guest: &Guest, line: &str) -> Result<f64, CommandError> {
    let (_, said) = guest.output(&["/bin/sh", "-c", line], 4096).await?;
    let said = String::from_utf8_lossy(&said);
    said.trim().parse().map_err(|_| {
        CommandError::new(format!("the guest tells no number: {}", text::one_line(&said, 80)))
    })
}

/// Pings and processes.
async fn small(
    guest: &Guest,
    floor: &mut Floor,
    runs: u32,
    rows: &mut Vec<Row>,
) -> Result<(), CommandError> {
    let (mut echo, mut pings, mut spawns, mut execs, mut many) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in 0..=runs {
        let (a, b) = (floor.echo(PINGS).await?, guest.ping_times(PINGS, Duration::ZERO).await?);
        let (c, d) = (floor.spawn(EXECS).await?, execs_in_turn(guest, EXECS).await?);
        let e = execs_at_once(guest).await?;
        // The first run brings everything into caches.
        if run > 0 {
            echo.extend(a);
            pings.extend(b.into_iter().map(ms));
            spawns.extend(c);
            execs.extend(d);
            many.push(e);
        }
    }
    let round_trip = median(&echo);
    rows.push(Row::new("ping", "ms", median(&pings), Some(round_trip), "floor: raw round trip"));
    rows.push(Row::new(
        "ping, p99",
        "ms",
        percentile(&pings, 0.99),
        Some(percentile(&echo, 0.99)),
        "",
    ));
    let spawn = median(&spawns);
    let wanted = "at most 1.3; floor: raw round trip and spawn with pipes";
    rows.push(Row::new(EXEC, "ms", median(&execs), Some(round_trip + spawn), wanted));
    let wanted = "at most 1.1; floor: that spawn";
    rows.push(Row::new("exec, 16 in flight, each", "ms", median(&many), Some(spawn), wanted));
    Ok(())
}

pub(super) fn tiny_request() -> ExecRequest {
    ExecRequest::new(Command::Argv(vec![ByteBuf::from(&b"/tmp/tiny"[..])]))
}

async fn exec_tiny(guest: &Guest) -> Result<(), CommandError> {
    let output = guest.run(tiny_request(), &[], 0).await?;
    match output.exited.status {
        ExitStatus::Exited(0) => Ok(()),
        other => Err(CommandError::new(format!("the tiny program ended with {other:?}"))),
    }
}

async fn execs_in_turn(guest: &Guest, times: usize) -> Result<Vec<f64>, CommandError> {
    let mut samples = Vec::new();
    for _ in 0..times {
        let began = Instant::now();
        exec_tiny(guest).await?;
        samples.push(ms(began.elapsed()));
    }
    Ok(samples)
}

/// Milliseconds for each, with so many in flight all the time.
async fn execs_at_once(guest: &Guest) -> Result<f64, CommandError> {
    const EACH: usize = 10;
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let guest = guest.clone();
        tasks.spawn(async move {
            for _ in 0..EACH {
                exec_tiny(&guest).await.map_err(|error| error.to_text())?;
            }
            Ok::<(), String>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(CommandError::new)?.map_err(CommandError::new)?;
    }
    Ok(ms(began.elapsed()) / (IN_FLIGHT * EACH) as f64)
}

/// Files both ways.
async fn files(
    guest: &Guest,
    floor: &mut Floor,
    runs: u32,
    rows: &mut Vec<Row>,
) -> Result<(), CommandError> {
    let folder = scratch()?;
    let (file, back) = (folder.path().join("file"), folder.path().join("back"));
    let content = noise(FILE_LEN);
    std::fs::write(&file, &content)?;
    let [mut raw_in, mut sum_in, mut push, mut raw_out, mut sum_out, mut pull] =
        [const { Vec::new() }; 6];
    for run in 0..=runs {
        let a = floor.fill_file("into", &content).await?;
        let b = floor.fill_file("into-sum", &content).await?;
        let c = timed(guest.push(&file, b"/tmp/pushed", PushOptions::default())).await?;
        let d = floor.take(&format!("outof /tmp/pushed {FILE_LEN}"), FILE_LEN).await?;
        // The checksum comes behind the file.
        let e = floor.take(&format!("outof-sum /tmp/pushed {FILE_LEN}"), FILE_LEN + 8).await?;
        let f = timed(guest.pull(b"/tmp/pushed", &back, PullOptions::default())).await?;
        if run > 0 {
            let all = [&mut raw_in, &mut sum_in, &mut push, &mut raw_out, &mut sum_out, &mut pull];
            for (samples, time) in all.into_iter().zip([a, b, c, d, e, f]) {
                samples.push(rate(FILE_LEN, time));
            }
        }
    }
    if std::fs::read(&back)? != content {
        return Err(CommandError::new("what came back is not what was sent"));
    }
    let mut row = |name, own: &[f64], floor: &[f64], wanted| {
        rows.push(Row::new(name, "MB/s", median(own), Some(median(floor)), wanted));
    };
    row(PUSH, &push, &sum_in, "at least 0.90; floor: raw port into a file, one checksum");
    row("  beside no checksum", &push, &raw_in, "");
    row(PULL, &pull, &sum_out, "at least 0.85; floor: a file into the raw port, one checksum");
    row("  beside no checksum", &pull, &raw_out, "");
    guest.remove(b"/tmp/raw", false, true).await?;
    Ok(())
}

/// Pings beside a transfer, each way.
async fn beside(guest: &Guest, runs: u32, rows: &mut Vec<Row>) -> Result<(), CommandError> {
    let folder = scratch()?;
    let file = folder.path().join("file");
    std::fs::write(&file, noise(FILE_LEN))?;
    let ways = [("ping beside a push, p99", true), ("ping beside a pull, p99", false)];
    let (mut idle, mut times) = (Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..runs {
        let alone = guest.ping_times(2 * PINGS, Duration::from_millis(1)).await?;
        idle.extend(alone.into_iter().map(ms));
        for ((_, is_push), times) in ways.iter().zip(&mut times) {
            times.extend(beside_one(guest, &file, *is_push).await?.into_iter().map(ms));
        }
    }
    let alone = percentile(&idle, 0.99);
    for ((name, _), times) in ways.iter().zip(&times) {
        let wanted = "under 5; floor: p99 of a ping alone";
        rows.push(Row::new(name, "ms", percentile(times, 0.99), Some(alone), wanted));
    }
    Ok(())
}

/// Pings beside transfers of a file, one after the other.
async fn beside_one(
    guest: &Guest,
    file: &Path,
    is_push: bool,
) -> Result<Vec<Duration>, CommandError> {
    let (bulk, file, back) = (guest.clone(), file.to_owned(), file.with_file_name("back"));
    let transfer = tokio::spawn(async move {
        loop {
            let done = match is_push {
                true => bulk.push(&file, b"/tmp/pushed", PushOptions::default()).await,
                false => bulk.pull(b"/tmp/pushed", &back, PullOptions::default()).await,
            };
            if done.is_err() {
                return;
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let times = guest.ping_times(2 * PINGS, Duration::from_millis(3)).await;
    let ended = transfer.is_finished();
    transfer.abort();
    let _ = transfer.await;
    match ended {
        true => Err(CommandError::new("the transfer beside the pings failed")),
        false => Ok(times?),
    }
}

/// Output of a process.
async fn stream(
    guest: &Guest,
    floor: &mut Floor,
    runs: u32,
    rows: &mut Vec<Row>,
) -> Result<(), CommandError> {
    let words = ["dd", "if=/dev/zero", "bs=65536", "count=1526"];
    let len = STREAM_LEN;
    let (mut relay, mut streamed) = (Vec::new(), Vec::new());
    let before = peak_memory(Path::new("/proc/self/status"))?;
    for run in 0..=runs {
        let a = floor.take(&format!("relay {len} {}", words.join(" ")), STREAM_LEN).await?;
        let b = timed(read_all(guest, &words)).await?;
        if run > 0 {
            relay.push(rate(STREAM_LEN, a));
            streamed.push(rate(STREAM_LEN, b));
        }
    }
    let grown = peak_memory(Path::new("/proc/self/status"))? - before;
    let wanted = "at least 0.70; floor: a pipe relayed into the raw port";
    let row = Row::new("100 MB of stdout", "MB/s", median(&streamed), Some(median(&relay)), wanted);
    rows.push(row);
    rows.push(Row::new("host's memory grown by it", "KiB", grown, None, "flat"));
    Ok(())
}

async fn read_all(guest: &Guest, words: &[&str]) -> Result<(), guestline::link::LinkError> {
    let words = words.iter().map(|word| ByteBuf::from(word.as_bytes())).collect();
    let mut process = guest.exec(ExecRequest::new(Command::Argv(words))).await?;
    let mut len = 0;
    loop {
        match process.next().await? {
            ExecEvent::Output { stream: Stream::Stdout, data } => len += data.len(),
            ExecEvent::Output { .. } => {}
            ExecEvent::Exited(_) if len == STREAM_LEN => return Ok(()),
            ExecEvent::Exited(_) | ExecEvent::Refused(_) => {
                return Err(guestline::link::LinkError::Closed);
            }
            ExecEvent::Started { .. } => {}
        }
    }
}

async fn timed<T, E: Into<CommandError>>(
    work: impl Future<Output = Result<T, E>>,
) -> Result<Duration, CommandError> {
    let began = Instant::now();
    work.await.map_err(Into::into)?;
    Ok(began.elapsed())
}

/// Bytes that do not repeat (xorshift64).
pub(super) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
