//! The floors of `guestline bench link`: each does one thing over a raw virtio-serial port, without a protocol, as quickly
//! as a plain program can. It is pushed into the guest and run there.
//!
//! ```text
//! guestline-floor PORT    then, on the port, a line for each order, and its answer:
//!   echo LEN N            N times LEN bytes in and out
//!   spawn N PROGRAM       N times: spawn with two pipes, in the cgroup that the agent gave to this program, read both to
//!                         their ends, wait; answers nanoseconds, a line each
//!   into FILE LEN         LEN bytes from the port into a file, in writes of 256 KiB; answers a line
//!   outof FILE LEN        LEN bytes of a file into the port
//!   into-sum, outof-sum   the same with one checksum over the data
//!   relay LEN PROGRAM…    the output of a program, LEN bytes, from its pipe into the port
//! ```

use guestline_checksum::Checksum;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

const PIECE: usize = 256 * 1024;

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: guestline-floor PORT");
        return ExitCode::from(2);
    };
    let port = OpenOptions::new().read(true).write(true).open(&path);
    match port.and_then(|mut port| serve(&mut port)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guestline-floor: {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

fn serve(port: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        let line = read_line(port)?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["echo", len, times] => echo(port, number(len)?, number(times)?)?,
            ["spawn", times, program] => {
                for _ in 0..number(times)? {
                    let began = Instant::now();
                    spawn(program)?;
                    writeln!(port, "{}", began.elapsed().as_nanos())?;
                }
            }
            ["into", file, len] => {
                into(port, File::create(file)?, number(len)?, &mut buffer, |_| ())?;
                writeln!(port, "done")?;
            }
            ["into-sum", file, len] => {
                let mut sum = Checksum::default();
                let take = |piece: &[u8]| sum.write(piece);
                into(port, File::create(file)?, number(len)?, &mut buffer, take)?;
                writeln!(port, "{:016x}", sum.finish())?;
            }
            ["outof", file, len] => {
                relay(&mut File::open(file)?, port, number(len)?, &mut buffer, |_| ())?;
            }
            ["outof-sum", file, len] => {
                let mut sum = Checksum::default();
                let take = |piece: &[u8]| sum.write(piece);
                relay(&mut File::open(file)?, port, number(len)?, &mut buffer, take)?;
                port.write_all(&sum.finish().to_le_bytes())?;
            }
            ["relay", len, program, ref args @ ..] => {
                let mut child = Command::new(program).args(args).stdout(Stdio::piped()).spawn()?;
                if let Some(mut stdout) = child.stdout.take() {
                    relay(&mut stdout, port, number(len)?, &mut buffer, |_| ())?;
                }
                child.wait()?;
            }
            _ => return Err(io::Error::other(format!("no order: {line}"))),
        }
    }
}

fn number(text: &str) -> io::Result<usize> {
    text.parse().map_err(|_| io::Error::other(format!("no number: {text}")))
}

fn read_line(port: &mut File) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match port.read(&mut byte)? {
            // The host has not connected yet.
            0 => std::thread::sleep(std::time::Duration::from_millis(5)),
            _ if byte[0] == b'\n' => break,
            _ => line.push(byte[0]),
        }
    }
    String::from_utf8(line).map_err(io::Error::other)
}

fn echo(port: &mut File, len: usize, times: usize) -> io::Result<()> {
    let mut buffer = vec![0; len];
    for _ in 0..times {
        port.read_exact(&mut buffer)?;
        port.write_all(&buffer)?;
    }
    Ok(())
}

/// Spawns a program with pipes for its outputs, reads them to their ends, and waits for it.
fn spawn(program: &str) -> io::Result<()> {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut said = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut said)?;
    }
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_end(&mut said)?;
    }
    child.wait().map(drop)
}

/// A read of the port gives 4 KiB at most; a write of the file takes all that a large buffer holds. `see` sees all of it.
fn into(
    port: &mut File,
    mut file: File,
    mut len: usize,
    buffer: &mut [u8],
    mut see: impl FnMut(&[u8]),
) -> io::Result<()> {
    while len > 0 {
        let piece = len.min(buffer.len());
        port.read_exact(&mut buffer[..piece])?;
        see(&buffer[..piece]);
        file.write_all(&buffer[..piece])?;
        len -= piece;
    }
    Ok(())
}

fn relay(
    from: &mut impl Read,
    port: &mut File,
    mut len: usize,
    buffer: &mut [u8],
    mut see: impl FnMut(&[u8]),
) -> io::Result<()> {
    while len > 0 {
        let piece = len.min(buffer.len());
        match from.read(&mut buffer[..piece])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                see(&buffer[..read]);
                port.write_all(&buffer[..read])?;
                len -= read;
            }
        }
    }
    Ok(())
}
