//! The jobs: what each request that may block does, from its beginning to its last word.

use crate::control;
use crate::follow::{Follower, Next};
use crate::jobs::{Desk, Word};
use guestline_files::{Target, TreeReader, TreeWriter, WriteOptions, ops};
use guestline_protocol::file::MAX_PIECE_ENTRIES;
use guestline_protocol::log::{LOG_HEAD_LEN, MAX_LOG_TEXT};
use guestline_protocol::{
    DoneResponse, ErrorKind, FolderEntry, FollowRequest, HEADROOM, LeavingResponse, ListRequest,
    ListResponse, MAX_DATA_LEN, PowerRequest, PullDoneResponse, PullRequest, PushDoneResponse,
    PushRequest, RemoteError, Reply, SampleRequest, worth_granting,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What an entry of a folder takes beside its names at most, and so much of them goes into one reply, bytes.
const ENTRY_LEN: usize = 96;
const PIECE_LEN: usize = 64 * 1024;

/// Samples come no closer than this.
const MIN_INTERVAL_MS: u32 = 10;

/// A path of the host's, which must be absolute: an agent has no working folder that means anything.
pub(crate) fn path(bytes: &[u8]) -> Result<PathBuf, RemoteError> {
    let path = Path::new(OsStr::from_bytes(bytes));
    let wrong = match () {
        () if bytes.contains(&0) => "holds a zero byte",
        () if !path.is_absolute() => "is not absolute",
        () => return Ok(path.to_owned()),
    };
    let message = format!("path `{}` {wrong}", path.display());
    Err(RemoteError::new(ErrorKind::Invalid, message))
}

pub(crate) fn cancelled() -> Reply {
    let message = "cancelled".to_owned();
    Reply::Error(RemoteError::new(ErrorKind::Cancelled, message))
}

/// The reply for what was done or refused.
pub(crate) fn done(result: Result<(), RemoteError>) -> Reply {
    match result {
        Ok(()) => Reply::Done(DoneResponse {}),
        Err(error) => Reply::Error(error),
    }
}

pub(crate) fn pull(desk: &Desk, request: &PullRequest) -> Reply {
    let opened = path(&request.path).and_then(|path| TreeReader::open(&path, request.follow));
    let mut reader = match opened {
        Ok(reader) => reader,
        Err(error) => return Reply::Error(error),
    };
    let enough = usize::try_from(worth_granting(request.credit.into())).unwrap_or(usize::MAX);
    let enough = enough.clamp(1, MAX_DATA_LEN);
    loop {
        let Ok(credit) = desk.credit(enough) else { return cancelled() };
        let mut buffer = desk.buffer();
        let limit = credit.min(MAX_DATA_LEN).saturating_add(HEADROOM);
        let more = reader.fill(&mut buffer, HEADROOM, limit);
        if desk.send(buffer).is_err() {
            return cancelled();
        }
        if !more {
            let (counts, troubles) = (reader.counts(), reader.troubles().to_vec());
            return Reply::PullDone(PullDoneResponse { counts, troubles, total: desk.sent() });
        }
    }
}

pub(crate) fn push(desk: &Desk, request: &PushRequest) -> Reply {
    let target = match path(&request.path) {
        Ok(path) if request.into => Target::Into(path),
        Ok(path) => Target::At(path),
        Err(error) => return Reply::Error(error),
    };
    let options = WriteOptions {
        owners: request.owners,
        nodes: true,
        special_bits: true,
        ..WriteOptions::default()
    };
    let mut writer = match TreeWriter::new(target, options) {
        Ok(writer) => writer,
        Err(error) => return Reply::Error(error),
    };
    while !writer.is_done() {
        let input = match desk.input() {
            Ok(input) => input,
            Err(error) => return Reply::Error(error),
        };
        let taken = writer.take(input.bytes());
        desk.used(input);
        if let Err(error) = taken {
            return Reply::Error(error);
        }
    }
    match writer.finish() {
        Ok(counts) => {
            let troubles = writer.troubles().to_vec();
            Reply::PushDone(PushDoneResponse { counts, troubles })
        }
        Err(error) => Reply::Error(error),
    }
}

pub(crate) fn list(desk: &Desk, request: &ListRequest) -> Reply {
    let mut entries = match path(&request.path).and_then(|path| ops::list(&path)) {
        Ok(entries) => entries,
        Err(error) => return Reply::Error(error),
    };
    loop {
        let count = first_piece(&entries);
        if count == entries.len() {
            break;
        }
        let rest = entries.split_off(count);
        desk.say(Word::Reply(Reply::List(ListResponse { entries, more: true })));
        entries = rest;
        if desk.is_stopped() {
            return cancelled();
        }
    }
    Reply::List(ListResponse { entries, more: false })
}

/// How many entries go into one reply: few enough, and not too long together.
fn first_piece(entries: &[FolderEntry]) -> usize {
    let mut len = 0_usize;
    let fits = |entry: &&FolderEntry| {
        let target = entry.info.as_ref().and_then(|info| info.target.as_ref());
        let names = entry.name.len().saturating_add(target.map_or(0, |target| target.len()));
        len = len.saturating_add(names).saturating_add(ENTRY_LEN);
        len <= PIECE_LEN
    };
    entries.iter().take(MAX_PIECE_ENTRIES).take_while(fits).count().max(1).min(entries.len())
}

pub(crate) fn follow(desk: &Desk, request: &FollowRequest) -> Reply {
    let mut follower = match Follower::open(request) {
        Ok(follower) => follower,
        Err(error) => return Reply::Error(error),
    };
    loop {
        // A record is sent whole.
        let Ok(credit) = desk.credit(MAX_LOG_TEXT.saturating_add(LOG_HEAD_LEN)) else {
            return cancelled();
        };
        match follower.next(credit.min(MAX_DATA_LEN), desk.stop()) {
            Ok(Next::Records(records)) => {
                let mut buffer = Vec::with_capacity(records.len().saturating_add(HEADROOM));
                buffer.resize(HEADROOM, 0);
                buffer.extend_from_slice(&records);
                if desk.send(buffer).is_err() {
                    return cancelled();
                }
            }
            Ok(Next::End) => return follow_end(desk),
            Ok(Next::Stopped) => return cancelled(),
            Err(error) => return Reply::Error(error),
        }
    }
}

/// The end of a log follows its data.
fn follow_end(desk: &Desk) -> Reply {
    let end = guestline_protocol::EndEvent { total: desk.sent() };
    desk.say(Word::Reply(Reply::End(end)));
    Reply::Done(DoneResponse {})
}

pub(crate) fn sample(desk: &Desk, request: &SampleRequest) -> Reply {
    let interval = request.interval_ms.max(MIN_INTERVAL_MS);
    let interval = PollTimeout::try_from(interval).unwrap_or(PollTimeout::MAX);
    loop {
        desk.say(Word::Reply(Reply::Sample(control::usage::sample())));
        let _ = poll(&mut [PollFd::new(desk.stop(), PollFlags::POLLIN)], interval);
        if desk.is_stopped() {
            return cancelled();
        }
    }
}

pub(crate) fn power(desk: &Desk, request: &PowerRequest, init: bool) -> Reply {
    match control::power::prepare(request, init) {
        Ok(leave) => {
            // Carried out when the answer has left.
            desk.say(Word::Leave(leave));
            Reply::Leaving(LeavingResponse {})
        }
        Err(error) => Reply::Error(error),
    }
}
