//! Single files by guest-file-open, -read, -write and -close, as tree streams on our side, so that whoever moves files
//! need not know which agent does.
//!
//! A file is written in its place: one that goes wrong half way is left half written.

use super::super::{Arrival, LinkError};
use super::{QgaHandle, unsupported};
use guestline_files::Checksum;
use guestline_protocol::tree::{
    Record, RecordTag, TreeContentEnd, TreeItem, TreeKind, TreeParser, record, record_head,
};
use guestline_protocol::{
    ByteBuf, ErrorKind, FileTime, ItemTrouble, PullDoneResponse, RemoteError, Reply, Stream,
    TreeCounts,
};
use qapi::qga::{
    GuestFileWhence, QGASeek, guest_file_close, guest_file_flush, guest_file_open, guest_file_read,
    guest_file_seek, guest_file_write,
};
use std::time::{SystemTime, UNIX_EPOCH};

/// So much of a file goes in one request.
const CHUNK: usize = 48 * 1024;

/// What is given in place of a mode that nobody tells.
const MODE: u32 = 0o644;

/// A file that is open in the guest; closed when dropped.
#[derive(Debug)]
struct OpenFile {
    agent: QgaHandle,
    handle: i64,
    closed: bool,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if !self.closed {
            self.agent.forget(&guest_file_close { handle: self.handle });
        }
    }
}

impl OpenFile {
    async fn open(agent: &QgaHandle, path: &[u8], mode: &str) -> Result<Self, LinkError> {
        let path = String::from_utf8(path.to_vec())
            .map_err(|_| unsupported("name files that are no UTF-8"))?;
        let handle = agent.ask(&guest_file_open { path, mode: Some(mode.to_owned()) }).await?;
        Ok(Self { agent: agent.clone(), handle, closed: false })
    }

    async fn read(&self) -> Result<(Vec<u8>, bool), LinkError> {
        let read = guest_file_read { handle: self.handle, count: Some(CHUNK as i64) };
        let read = self.agent.ask(&read).await?;
        let len = read.buf_b64.len();
        if len > CHUNK || usize::try_from(read.count) != Ok(len) {
            let what = format!("guest-file-read: {len} bytes for {}", read.count);
            return Err(LinkError::Broken { what });
        }
        Ok((read.buf_b64, read.eof || len == 0))
    }

    async fn write(&self, mut bytes: &[u8]) -> Result<(), LinkError> {
        while !bytes.is_empty() {
            let piece = bytes.get(..CHUNK).unwrap_or(bytes);
            let (handle, buf_b64) = (self.handle, piece.to_vec());
            let write = guest_file_write { handle, buf_b64, count: None };
            let count = self.agent.ask(&write).await?.count;
            let taken =
                usize::try_from(count).ok().filter(|taken| (1..=piece.len()).contains(taken));
            let Some(taken) = taken else {
                let what = format!("guest-file-write: {count} of {} bytes", piece.len());
                return Err(LinkError::Broken { what });
            };
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        Ok(())
    }

    async fn seek(&self, offset: i64, whence: QGASeek) -> Result<u64, LinkError> {
        let whence = GuestFileWhence::name(whence);
        let seek = guest_file_seek { handle: self.handle, offset, whence };
        Ok(u64::try_from(self.agent.ask(&seek).await?.position).unwrap_or(0))
    }

    async fn close(&mut self) -> Result<(), LinkError> {
        self.closed = true;
        self.agent.ask(&guest_file_close { handle: self.handle }).await.map(drop)
    }
}

/// A file on its way into the guest.
#[derive(Debug)]
pub(crate) struct QgaPush {
    agent: QgaHandle,
    path: Vec<u8>,
    parser: TreeParser,
    file: Option<OpenFile>,
    /// Written and not sent yet.
    waiting: Vec<u8>,
    written: u64,
    counts: TreeCounts,
    troubles: Vec<ItemTrouble>,
}

impl QgaPush {
    pub(crate) fn new(agent: &QgaHandle, path: &[u8]) -> Self {
        Self {
            agent: agent.clone(),
            path: path.to_vec(),
            parser: TreeParser::default(),
            file: None,
            waiting: Vec::new(),
            written: 0,
            counts: TreeCounts::default(),
            troubles: Vec::new(),
        }
    }

    /// Takes bytes of a tree stream, split anywhere.
    pub(crate) async fn take(&mut self, mut bytes: &[u8]) -> Result<(), LinkError> {
        loop {
            let record = self.parser.next(&mut bytes);
            let record = record.map_err(|error| LinkError::Broken { what: error.to_string() })?;
            match record {
                None => return Ok(()),
                Some(Record::Item(item)) => self.begin(&item).await?,
                Some(Record::Content(content)) => {
                    self.waiting.extend_from_slice(content);
                    self.send(CHUNK).await?;
                }
                Some(Record::Hole(len)) => self.hole(len).await?,
                Some(Record::ContentEnd(end)) => self.end(end).await?,
                Some(Record::End(_)) => {}
            }
        }
    }

    /// What was written.
    pub(crate) fn finish(self) -> (TreeCounts, Vec<ItemTrouble>) {
        (self.counts, self.troubles)
    }

    async fn begin(&mut self, item: &TreeItem) -> Result<(), LinkError> {
        if !item.path.is_empty() || !matches!(item.kind, TreeKind::File { .. }) {
            return Err(unsupported("move anything but a single file"));
        }
        self.file = Some(OpenFile::open(&self.agent, &self.path, "wb").await?);
        self.counts.items += 1;
        if item.mode & 0o7111 != 0 {
            let what = format!("mode {:o} was not set: qemu-guest-agent sets none", item.mode);
            self.trouble(ErrorKind::Unsupported, what);
        }
        Ok(())
    }

    fn trouble(&mut self, kind: ErrorKind, message: String) {
        let error = RemoteError::new(kind, message);
        self.troubles.push(ItemTrouble { path: ByteBuf::from(self.path.clone()), error });
        self.counts.troubles += 1;
    }

    fn file(&self) -> Result<&OpenFile, LinkError> {
        let what = "content without a file".to_owned();
        self.file.as_ref().ok_or(LinkError::Broken { what })
    }

    /// Sends what waits, if it is at least so much.
    async fn send(&mut self, least: usize) -> Result<(), LinkError> {
        if self.waiting.len() >= least.max(1) {
            self.file()?.write(&self.waiting).await?;
            self.written += self.waiting.len() as u64;
            self.waiting.clear();
        }
        Ok(())
    }

    /// All of a hole but its last byte is stepped over.
    async fn hole(&mut self, len: u64) -> Result<(), LinkError> {
        self.send(1).await?;
        if let Some(skip) = len.checked_sub(1) {
            let offset = i64::try_from(skip).unwrap_or(i64::MAX);
            self.file()?.seek(offset, QGASeek::cur).await?;
            self.file()?.write(&[0]).await?;
            self.written += len;
        }
        Ok(())
    }

    async fn end(&mut self, end: TreeContentEnd) -> Result<(), LinkError> {
        self.send(1).await?;
        if let Some(mut file) = self.file.take() {
            file.agent.ask(&guest_file_flush { handle: file.handle }).await?;
            // What is no file on a disk has no position.
            let position = match file.seek(0, QGASeek::cur).await {
                Ok(position) => position,
                Err(LinkError::Refused(_)) => self.written,
                Err(error) => return Err(error),
            };
            file.close().await?;
            if position != self.written {
                let what = format!("{position} bytes of {} were written", self.written);
                self.trouble(ErrorKind::Integrity, what);
            }
        }
        if let Some(error) = end.error {
            self.trouble(error.kind, error.message);
        }
        self.counts.bytes = self.written;
        Ok(())
    }
}

/// A file on its way out of the guest, as a tree stream.
#[derive(Debug)]
pub(crate) struct QgaPull {
    file: OpenFile,
    hash: Checksum,
    len: u64,
    total: u64,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Item,
    Content,
    End,
    Done,
}

impl QgaPull {
    pub(crate) async fn open(agent: &QgaHandle, path: &[u8]) -> Result<Self, LinkError> {
        let file = OpenFile::open(agent, path, "rb").await?;
        Ok(Self { file, hash: Checksum::default(), len: 0, total: 0, phase: Phase::Item })
    }

    /// The next bytes, and at last that it is done.
    pub(crate) async fn next(&mut self) -> Result<Arrival, LinkError> {
        let bytes = match self.phase {
            Phase::Item => {
                self.phase = Phase::Content;
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let seconds = i64::try_from(now.as_secs()).unwrap_or(0);
                // Content is what counts; how much there will be is not known yet.
                record(
                    RecordTag::Item,
                    &TreeItem {
                        path: ByteBuf::new(),
                        kind: TreeKind::File { len: 0 },
                        mode: MODE,
                        uid: 0,
                        gid: 0,
                        modified: FileTime { seconds, nanos: now.subsec_nanos() },
                    },
                )
            }
            Phase::Content => {
                let (content, ended) = self.file.read().await?;
                self.hash.write(&content);
                self.len += content.len() as u64;
                let mut bytes = Vec::new();
                if let Ok(len @ 1..) = u32::try_from(content.len()) {
                    bytes.extend_from_slice(&record_head(RecordTag::Content, len));
                    bytes.extend_from_slice(&content);
                }
                if ended {
                    self.file.close().await?;
                    self.phase = Phase::End;
                    let (len, hash) = (self.len, self.hash.finish());
                    let end = TreeContentEnd { len, hash, error: None };
                    bytes.extend(record(RecordTag::ContentEnd, &end));
                    bytes.extend(record(RecordTag::End, &self.counts()));
                }
                bytes
            }
            Phase::End => {
                self.phase = Phase::Done;
                return Ok(Arrival::Reply(Reply::PullDone(PullDoneResponse {
                    counts: self.counts(),
                    troubles: Vec::new(),
                    total: self.total,
                })));
            }
            Phase::Done => return Err(LinkError::Closed),
        };
        self.total += bytes.len() as u64;
        Ok(Arrival::Data { stream: Stream::Stdout, bytes })
    }

    fn counts(&self) -> TreeCounts {
        TreeCounts { items: 1, troubles: 0, bytes: self.len }
    }
}
