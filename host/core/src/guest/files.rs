//! Files: moved both ways as a stream with checksums, in bounded memory, and looked at in place.
//!
//! ```text
//! push   disk ── TreeReader (a thread) ── buffers ──> channel ──> agent
//! pull   agent ──> channel ── buffers ──> TreeWriter (a thread) ──> disk
//! ```
//! What the guest sends is hostile until the writer has checked it: it makes nothing outside the target.

mod bring;
mod options;

pub use bring::Brought;
pub use options::{FilesError, PullOptions, PushOptions, Transferred};

use super::{Guest, Way};
use crate::link::qga::{QgaPull, QgaPush, unsupported};
use crate::link::{Arrival, BULK_WINDOW, Channel, LinkError, clean, data_buffer, unexpected};
use crate::text::escape;
use guestline_files::{Checksum, Limit, Target, TreeReader, TreeWriter, WriteOptions};
use guestline_protocol::tree::{
    Record, RecordTag, TreeContentEnd, TreeItem, TreeKind, TreeParser, record, record_head,
};
use guestline_protocol::{
    ByteBuf, ErrorKind, FileTime, HEADROOM, ItemTrouble, MAX_DATA_LEN, PullDoneResponse,
    PullRequest, PushRequest, RemoteError, Reply, Request, TreeCounts,
};
use options::over;
use std::path::Path;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// So many buffers may wait between a thread and the link.
const QUEUE: usize = 3;

/// What is asked of a transport here.
const TREES: &str = "move anything but a single file";
const OWNERS: &str = "keep owners of files";

impl Guest {
    /// Copies a file or a tree of this host into the guest.
    ///
    /// # Errors
    /// [`FilesError`]; what went wrong with single items is in [`Transferred::troubles`].
    pub async fn push(
        &self,
        from: &Path,
        to: &[u8],
        options: PushOptions,
    ) -> Result<Transferred, FilesError> {
        let mut reader = TreeReader::open(from, true).map_err(FilesError::Host)?;
        let (buffers, queue) = mpsc::channel::<Vec<u8>>(QUEUE);
        let reading = tokio::task::spawn_blocking(move || {
            loop {
                let mut buffer = data_buffer(MAX_DATA_LEN);
                let full = HEADROOM + MAX_DATA_LEN;
                let more = reader.fill(&mut buffer, HEADROOM, full);
                // The receiver of a transfer that has failed is gone.
                if buffers.blocking_send(buffer).is_err() || !more {
                    return (reader.troubles().to_vec(), reader.counts());
                }
            }
        });
        let mut done = self.push_stream(to, options, queue).await?;
        let (troubles, counts) = reading.await.map_err(|_| FilesError::Host(died()))?;
        done.counts.troubles = done.counts.troubles.max(counts.troubles);
        merge(&mut done.troubles, troubles);
        Ok(done)
    }

    /// Writes a file in the guest, in one step: it is there whole, or as it was before.
    ///
    /// # Errors
    /// [`FilesError`].
    pub async fn write(&self, to: &[u8], content: &[u8], mode: u32) -> Result<(), FilesError> {
        let stream = stream_of(content, mode);
        let (buffers, queue) = mpsc::channel(stream.len().div_ceil(MAX_DATA_LEN).max(1));
        for piece in stream.chunks(MAX_DATA_LEN) {
            let mut buffer = data_buffer(piece.len());
            buffer.extend_from_slice(piece);
            // There is room for all.
            let _ = buffers.try_send(buffer);
        }
        drop(buffers);
        let done = self.push_stream(to, PushOptions::default(), queue).await?;
        match done.troubles.into_iter().next() {
            Some(trouble) => Err(LinkError::Refused(trouble.error).into()),
            None => Ok(()),
        }
    }

    async fn push_stream(
        &self,
        to: &[u8],
        options: PushOptions,
        mut buffers: mpsc::Receiver<Vec<u8>>,
    ) -> Result<Transferred, FilesError> {
        let link = match &self.way {
            Way::Agent(link) => link,
            Way::Qga(_) if options.into => return Err(unsupported(TREES).into()),
            Way::Qga(_) if options.owners => return Err(unsupported(OWNERS).into()),
            Way::Qga(qga) => {
                let mut push = QgaPush::new(qga, to);
                while let Some(buffer) = buffers.recv().await {
                    push.take(buffer.get(HEADROOM..).unwrap_or_default()).await?;
                }
                let (counts, troubles) = push.finish();
                let troubles = troubles.into_iter().map(clean_trouble).collect();
                return Ok(Transferred { counts, troubles });
            }
        };
        let request =
            PushRequest { path: ByteBuf::from(to), into: options.into, owners: options.owners };
        let channel = link.channel(&Request::Push(request), 0).await?;
        let (mut reader, mut writer) = channel.split();
        let feed = async {
            while let Some(buffer) = buffers.recv().await {
                writer.send(buffer).await?;
            }
            Ok::<(), LinkError>(())
        };
        let listen = async {
            loop {
                match reader.next().await? {
                    Arrival::Reply(Reply::PushStarted(_)) => {}
                    Arrival::Reply(Reply::PushDone(done)) => {
                        let troubles = done.troubles.into_iter().map(clean_trouble).collect();
                        return Ok(Transferred { counts: done.counts, troubles });
                    }
                    Arrival::Reply(Reply::Error(error)) => {
                        return Err(LinkError::Refused(clean(error)));
                    }
                    Arrival::Reply(other) => return Err(unexpected(&other)),
                    Arrival::Data { .. } => {
                        return Err(LinkError::Broken { what: "data for a push".to_owned() });
                    }
                }
            }
        };
        let mut listen = std::pin::pin!(listen);
        // The guest's word ends it, also in mid-stream: it is the one that refuses.
        tokio::select! {
            biased;
            done = &mut listen => Ok(done?),
            fed = feed => {
                fed?;
                Ok(listen.await?)
            }
        }
    }

    /// Copies a file or a tree of the guest to this host.
    ///
    /// # Errors
    /// [`FilesError`]; what went wrong with single items is in [`Transferred::troubles`].
    pub async fn pull(
        &self,
        from: &[u8],
        to: &Path,
        options: PullOptions,
    ) -> Result<Transferred, FilesError> {
        let target = match options.into {
            true => Target::Into(to.to_owned()),
            false => Target::At(to.to_owned()),
        };
        let write = WriteOptions {
            owners: options.owners,
            nodes: options.nodes,
            special_bits: options.special_bits,
            max_bytes: options.max_bytes,
            max_items: options.max_entries,
            keep_free: options.keep_free,
        };
        if options.owners && matches!(self.way, Way::Qga(_)) {
            return Err(unsupported(OWNERS).into());
        }
        let channel = self.start_pull(from, options.follow).await?;
        // The thread takes from the channel itself: each change of hands costs a wake-up. It ends with this future.
        let cancel = CancellationToken::new();
        let _guard = cancel.clone().drop_guard();
        let runtime = tokio::runtime::Handle::current();
        let writing = tokio::task::spawn_blocking(move || {
            write_all(&runtime, channel, TreeWriter::new(target, write), &cancel)
        });
        let (written, sent, refused) = writing.await.map_err(|_| FilesError::Host(died()))??;
        if let Some(error) = refused {
            return Err(LinkError::Refused(error).into());
        }
        let (mut counts, troubles) = written.map_err(|(error, limit)| match limit {
            Some(limit) => over(from, to, limit),
            None => FilesError::Host(error),
        })?;
        let mut all: Vec<ItemTrouble> = troubles.into_iter().map(clean_trouble).collect();
        if let Some(done) = sent {
            counts.troubles = counts.troubles.max(done.counts.troubles);
            merge(&mut all, done.troubles.into_iter().map(clean_trouble).collect());
        }
        Ok(Transferred { counts, troubles: all })
    }

    /// Reads a file of the guest, of at most `limit` bytes.
    ///
    /// # Errors
    /// [`FilesError`].
    pub async fn read(&self, from: &[u8], limit: usize) -> Result<Vec<u8>, FilesError> {
        let path = || escape(from);
        let mut channel = self.start_pull(from, true).await?;
        let mut parser = TreeParser::default();
        let (mut content, mut is_file) = (Vec::new(), false);
        let (mut checksum, mut is_whole) = (Checksum::default(), false);
        loop {
            match channel.next().await? {
                Arrival::Data { bytes, .. } => {
                    let mut rest = &bytes[..];
                    while let Some(record) = parser.next(&mut rest).map_err(not_a_tree)? {
                        match record {
                            Record::Item(item) => match item.kind {
                                TreeKind::File { .. } if !is_file => is_file = true,
                                _ => return Err(FilesError::NoFile { path: path() }),
                            },
                            Record::Content(bytes) => {
                                checksum.write(bytes);
                                content.extend_from_slice(bytes);
                            }
                            Record::Hole(len) => {
                                checksum.write(&len.to_le_bytes());
                                let len = usize::try_from(len).unwrap_or(usize::MAX);
                                let whole = content.len().saturating_add(len);
                                content.resize(whole.min(limit.saturating_add(1)), 0);
                            }
                            Record::ContentEnd(TreeContentEnd { error: Some(error), .. }) => {
                                return Err(LinkError::Refused(clean(error)).into());
                            }
                            Record::ContentEnd(end) => {
                                is_whole = end.hash == checksum.finish()
                                    && end.len == content.len() as u64;
                                if !is_whole && content.len() <= limit {
                                    return Err(broken("a file that is not what was sent").into());
                                }
                            }
                            Record::End(_) => {}
                        }
                        if content.len() > limit {
                            let limit = limit as u64;
                            return Err(FilesError::TooLong { path: path(), limit });
                        }
                    }
                }
                Arrival::Reply(Reply::PullDone(_)) if is_whole => return Ok(content),
                Arrival::Reply(Reply::PullDone(_)) if is_file => {
                    return Err(broken("a file that is not whole").into());
                }
                Arrival::Reply(Reply::PullDone(_)) => {
                    return Err(FilesError::NoFile { path: path() });
                }
                Arrival::Reply(Reply::Error(error)) => {
                    return Err(LinkError::Refused(clean(error)).into());
                }
                Arrival::Reply(other) => return Err(unexpected(&other).into()),
            }
        }
    }

    async fn start_pull(&self, from: &[u8], follow: bool) -> Result<PullSource, LinkError> {
        let link = match &self.way {
            Way::Agent(link) => link,
            Way::Qga(qga) => return Ok(PullSource::Qga(QgaPull::open(qga, from).await?)),
        };
        let credit = link.window(BULK_WINDOW);
        let request = PullRequest { path: ByteBuf::from(from), follow, credit };
        Ok(PullSource::Agent(link.channel(&Request::Pull(request), credit).await?))
    }
}

/// What files come from.
#[derive(Debug)]
enum PullSource {
    Agent(Channel),
    Qga(QgaPull),
}

impl PullSource {
    async fn next(&mut self) -> Result<Arrival, LinkError> {
        match self {
            Self::Agent(channel) => channel.next().await,
            Self::Qga(pull) => pull.next().await,
        }
    }
}

/// What a pull came to: what was written or what it went over, the guest's last word, or its refusal.
type Written = (
    Result<(TreeCounts, Vec<ItemTrouble>), (RemoteError, Option<Limit>)>,
    Option<PullDoneResponse>,
    Option<RemoteError>,
);

/// Writes what comes on a channel, up to its last reply. Blocks; for a thread of its own.
fn write_all(
    runtime: &tokio::runtime::Handle,
    mut channel: PullSource,
    writer: Result<TreeWriter, RemoteError>,
    cancel: &CancellationToken,
) -> Result<Written, LinkError> {
    let mut writer = match writer {
        Ok(writer) => writer,
        Err(error) => return Ok((Err((error, None)), None, None)),
    };
    let (mut sent, mut refused) = (None, None);
    while sent.is_none() && refused.is_none() {
        let next = async {
            tokio::select! {
                biased;
                arrival = channel.next() => arrival,
                () = cancel.cancelled() => Err(LinkError::Closed),
            }
        };
        match runtime.block_on(next)? {
            Arrival::Data { bytes, .. } => {
                if let Err(error) = writer.take(&bytes) {
                    return Ok((Err((error, writer.exceeded())), None, None));
                }
            }
            Arrival::Reply(Reply::PullDone(done)) => sent = Some(done),
            Arrival::Reply(Reply::Error(error)) => refused = Some(clean(error)),
            Arrival::Reply(other) => return Err(unexpected(&other)),
        }
    }
    let counts = writer.finish().map(|counts| (counts, writer.troubles().to_vec()));
    Ok((counts.map_err(|error| (error, None)), sent, refused))
}

/// The tree stream of one file.
fn stream_of(content: &[u8], mode: u32) -> Vec<u8> {
    let len = content.len() as u64;
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let modified =
        FileTime { seconds: i64::try_from(now.as_secs()).unwrap_or(0), nanos: now.subsec_nanos() };
    let (path, kind) = (ByteBuf::new(), TreeKind::File { len });
    let item = TreeItem { path, kind, mode, uid: 0, gid: 0, modified };
    let mut bytes = record(RecordTag::Item, &item);
    for piece in content.chunks(1 << 30) {
        bytes.extend(record_head(RecordTag::Content, piece.len() as u32));
        bytes.extend_from_slice(piece);
    }
    let hash = Checksum::of(content);
    bytes.extend(record(RecordTag::ContentEnd, &TreeContentEnd { len, hash, error: None }));
    bytes.extend(record(RecordTag::End, &TreeCounts { items: 1, troubles: 0, bytes: len }));
    bytes
}

fn clean_trouble(trouble: ItemTrouble) -> ItemTrouble {
    ItemTrouble { path: trouble.path, error: clean(trouble.error) }
}

/// One list of both sides' troubles, each once.
fn merge(all: &mut Vec<ItemTrouble>, more: Vec<ItemTrouble>) {
    for trouble in more {
        if !all.iter().any(|known| known.path == trouble.path) {
            all.push(trouble);
        }
    }
}

fn died() -> RemoteError {
    let message = "the thread that moves files died".to_owned();
    RemoteError { kind: ErrorKind::System, errno: None, message }
}

fn broken(what: &str) -> LinkError {
    LinkError::Broken { what: what.to_owned() }
}

fn not_a_tree(error: guestline_protocol::tree::NotATree) -> FilesError {
    FilesError::Link(broken(&error.to_string()))
}
