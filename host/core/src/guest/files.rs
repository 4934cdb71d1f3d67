//! Files: moved both ways as a stream with checksums, in bounded memory, and looked at in place.
//!
//! ```text
//! push   disk ── TreeReader (a thread) ── buffers ──> channel ──> agent
//! pull   agent ──> channel ── buffers ──> TreeWriter (a thread) ──> disk
//! ```
//! What the guest sends is hostile until the writer has checked it: it makes nothing outside the target.

use super::{Guest, Way};
use crate::link::qga::{QgaPull, QgaPush, unsupported};
use crate::link::{Arrival, BULK_WINDOW, Channel, LinkError, clean, data_buffer, unexpected};
use crate::text::escape;
use guestline_files::{Checksum, Target, TreeReader, TreeWriter, WriteOptions};
use guestline_protocol::tree::{
    Record, RecordTag, TreeContentEnd, TreeItem, TreeKind, TreeParser, record, record_head,
};
use guestline_protocol::{
    ByteBuf, ErrorKind, FileInfo, FileTime, FolderEntry, HEADROOM, ItemTrouble, ListRequest,
    MAX_DATA_LEN, MakeFolderRequest, PullDoneResponse, PullRequest, PushRequest, RemoteError,
    RemoveRequest, Reply, Request, StatRequest, TreeCounts,
};
use std::path::Path;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// So many buffers may wait between a thread and the link.
const QUEUE: usize = 3;

/// What is asked of a transport here.
const TREES: &str = "move anything but a single file";
const OWNERS: &str = "keep owners of files";

/// A folder whose names and link targets take more bytes together is not listed.
const MAX_LISTED_LEN: usize = 16 * 1024 * 1024;

/// A folder with more entries is not listed.
const MAX_LISTED: usize = 200_000;

/// How files come into the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PushOptions {
    /// The target is a folder to put things into, made when it is not there; else it is the thing's own place.
    pub into: bool,
    /// Keep owners, by number; else files belong to the agent's user.
    pub owners: bool,
}

/// How files come out of the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PullOptions {
    /// The target is a folder to put things into; else it is the thing's own place.
    pub into: bool,
    /// What a symbolic link that is asked for points to is meant.
    pub follow: bool,
    /// Keep owners, by number; wants root.
    pub owners: bool,
    /// Make device nodes; wants root.
    pub nodes: bool,
    /// Keep set-user-ID and set-group-ID bits, although the guest chose the content.
    pub special_bits: bool,
    /// At most so many bytes.
    pub max_bytes: Option<u64>,
}

/// What was moved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transferred {
    /// Items and bytes, as the receiver counts.
    pub counts: TreeCounts,
    /// What went wrong with single items, on either side; the others are in their places.
    pub troubles: Vec<ItemTrouble>,
}

/// Files could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The link, or the guest refused.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// This host.
    #[error("on this host: {0}")]
    Host(RemoteError),
    /// More than was allowed.
    #[error("`{path}` in the guest has more than {limit} bytes")]
    TooLong {
        /// What was pulled.
        path: String,
        /// What was allowed.
        limit: usize,
    },
    /// What is there is of another kind.
    #[error("`{path}` in the guest is no file")]
    NoFile {
        /// What was pulled.
        path: String,
    },
}

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
            max_items: None,
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
        let (mut counts, troubles) = written.map_err(FilesError::Host)?;
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

    /// What is at a path in the guest.
    ///
    /// # Errors
    /// [`LinkError`]; [`LinkError::Refused`] with [`ErrorKind::NotFound`] when nothing is.
    pub async fn stat(&self, path: &[u8], follow: bool) -> Result<FileInfo, LinkError> {
        let request = StatRequest { path: ByteBuf::from(path), follow };
        match self.link_to("look at files in place")?.ask(&Request::Stat(request)).await? {
            Reply::Stat(info) => Ok(info),
            other => Err(unexpected(&other)),
        }
    }

    /// The entries of a folder in the guest, by name.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn list(&self, path: &[u8]) -> Result<Vec<FolderEntry>, LinkError> {
        let request = Request::List(ListRequest { path: ByteBuf::from(path) });
        let mut channel = self.link_to("list folders")?.channel(&request, 0).await?;
        let (mut entries, mut len) = (Vec::new(), 0);
        loop {
            match channel.reply().await? {
                Reply::List(list) => {
                    if list.more && list.entries.is_empty() {
                        return Err(broken("a piece of a folder with nothing in it"));
                    }
                    for entry in &list.entries {
                        if !is_name(&entry.name) {
                            return Err(broken("an entry of a folder whose name is none"));
                        }
                        let target = entry.info.as_ref().and_then(|info| info.target.as_ref());
                        len += entry.name.len() + target.map_or(0, |target| target.len());
                    }
                    entries.extend(list.entries);
                    if entries.len() > MAX_LISTED || len > MAX_LISTED_LEN {
                        return Err(broken("a folder without end"));
                    }
                    if !list.more {
                        entries.sort_by(|a, b| a.name.cmp(&b.name));
                        return Ok(entries);
                    }
                }
                Reply::Error(error) => return Err(LinkError::Refused(clean(error))),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Makes a folder in the guest; with `parents` those above it too, and it may be there already.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn make_folder(
        &self,
        path: &[u8],
        mode: u32,
        parents: bool,
    ) -> Result<(), LinkError> {
        let request = MakeFolderRequest { path: ByteBuf::from(path), mode, parents };
        self.done(&Request::MakeFolder(request), "make folders").await
    }

    /// Removes a file of the guest, or with `recursive` a folder with all that is in it.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn remove(
        &self,
        path: &[u8],
        recursive: bool,
        missing_ok: bool,
    ) -> Result<(), LinkError> {
        let request = RemoveRequest { path: ByteBuf::from(path), recursive, missing_ok };
        self.done(&Request::Remove(request), "remove files").await
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

/// What a pull came to: what was written, the guest's last word, or its refusal.
type Written = (
    Result<(TreeCounts, Vec<ItemTrouble>), RemoteError>,
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
        Err(error) => return Ok((Err(error), None, None)),
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
                    return Ok((Err(error), None, None));
                }
            }
            Arrival::Reply(Reply::PullDone(done)) => sent = Some(done),
            Arrival::Reply(Reply::Error(error)) => refused = Some(clean(error)),
            Arrival::Reply(other) => return Err(unexpected(&other)),
        }
    }
    let counts = writer.finish().map(|counts| (counts, writer.troubles().to_vec()));
    Ok((counts, sent, refused))
}

/// Can a folder have an entry of this name?
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= 255
        && !name.iter().any(|&byte| byte == 0 || byte == b'/')
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
