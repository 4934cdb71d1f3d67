//! A web server of a folder, with ranges (RFC 9110, section 14), that can be told to misbehave.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What it does instead of what it should.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fault {
    /// It ends a transfer after so many bytes of a file, counted from the file's beginning, and gives no more of it.
    pub(crate) cut_at: Option<usize>,
    /// It ends each transfer after so many bytes.
    pub(crate) piece: Option<usize>,
    /// It has no ranges.
    pub(crate) no_ranges: bool,
    /// It holds on when it has ended, until the other side goes away.
    pub(crate) stall: bool,
    /// It goes on and on after the end, without saying how long a file is.
    pub(crate) endless: bool,
}

/// A request for a file: which, and from where on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) from: usize,
}

#[derive(Default)]
struct State {
    faults: HashMap<String, Fault>,
    asked: Vec<Asked>,
}

pub(crate) struct StaticWeb {
    address: String,
    state: Arc<Mutex<State>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StaticWeb {
    pub(crate) fn of(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (state, ended) = (Arc::<Mutex<State>>::default(), Arc::new(AtomicBool::new(false)));
        let (folder, theirs, their_end) = (folder.to_owned(), state.clone(), ended.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if their_end.load(Ordering::SeqCst) {
                    return;
                }
                let (folder, state) = (folder.clone(), theirs.clone());
                // Who goes away early is no trouble of ours.
                std::thread::spawn(move || drop(serve(stream.unwrap(), folder, &state)));
            }
        });
        Self { address: address.to_string(), state, ended, thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on a file is served so.
    pub(crate) fn fault(&self, path: &str, fault: Fault) {
        self.state.lock().unwrap().faults.insert(path.to_owned(), fault);
    }

    /// What was asked for since the last time.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }
}

impl Drop for StaticWeb {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, folder: PathBuf, state: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
    let mut from = 0;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.split('-').next().unwrap_or_default().parse().unwrap_or(0);
        }
    }
    let fault = {
        let mut state = state.lock().unwrap();
        state.asked.push(Asked { path: path.clone(), from });
        state.faults.get(&path).cloned().unwrap_or_default()
    };
    let Ok(content) = fs::read(folder.join(&path)) else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    let (len, ranged) = (content.len(), from > 0 && !fault.no_ranges);
    if fault.endless {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        stream.write_all(&content)?;
        loop {
            stream.write_all(&[b'x'; 4096])?;
        }
    }
    let from = if ranged { from } else { 0 };
    if from >= len && ranged {
        return stream
            .write_all(b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n");
    }
    let status = match ranged {
        true => format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{len}", len - 1),
        false => "200 OK".to_owned(),
    };
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", len - from);
    let end =
        fault.cut_at.unwrap_or(len).min(fault.piece.map_or(len, |piece| from + piece)).min(len);
    stream.write_all(head.as_bytes())?;
    stream.write_all(content.get(from..end).unwrap_or_default())?;
    if fault.stall {
        stream.read_to_end(&mut Vec::new())?;
    }
    Ok(())
}
