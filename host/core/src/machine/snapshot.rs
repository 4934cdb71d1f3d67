//! Snapshots of a machine that runs: memory and devices are saved under a name, and put back as often as wanted, over the
//! same sockets (QEMU `qapi/migration.json`, `snapshot-save` and `snapshot-load`).
//!
//! ```text
//! first save ──> FOLDER/snapshots.qcow2, a node that no device has, so the guest sees nothing of it
//! save       ──> the guest stands; all that it is goes into the file, under a tag; it runs on in the same QEMU
//!                what its disks hold stays in their own files, under the same tag
//! load       ──> QEMU is killed; the next one takes its sockets, loads what was saved, and goes on from there
//! ```
//! QEMU could load into itself, too, about 100 ms sooner. But under TCG its time stamp counter never goes back as long as it
//! lives (`cpu_ticks_prev`): a guest put back by half a minute found that half a minute had gone by in no time, and its
//! kernel told of RCU stalls (tried, 10.0).
//!
//! Names are kept here, and QEMU sees tags only: a tag is never used again, so a save that somebody gave up, and that
//! QEMU completes all the same, is nobody's. Nobody is killed for what is not there.
//!
//! A machine that was restored from a template has `x-ignore-shared` set. Its memory is private, so all of it is saved
//! with it as well (tried); it is taken back all the same, for memory that is shared would be left out in silence, and the
//! next QEMU does not have it.

use super::args::disk_node;
use super::engine::Engine;
use super::qmp::{Qmp, QmpError};
use super::{Ending, MachineSpec, NEWS, ended};
use crate::host::free_mib;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tracing::{debug, warn};

/// The file, in the machine's work folder.
const FILE: &str = "snapshots.qcow2";

/// Between two looks at a job. QEMU answers nothing while it saves or loads, so a look waits for that by itself.
const LOOK: Duration = Duration::from_millis(2);

/// A save or a load may take so long, and for each [`SLOW_MIB`] of the guest's memory a second more.
const LIMIT: Duration = Duration::from_secs(60);
const SLOW_MIB: u64 = 16;

/// A disk with less is full.
const FULL_MIB: u64 = 4;

/// The size of the disk in the file, which nobody uses: what is saved lies behind it.
const DISK_LEN: u64 = 1024 * 1024;

/// A machine was not saved, or not put back.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotFault {
    /// There is none of that name.
    #[error("there is no such snapshot")]
    Unknown {
        /// The names there are.
        there: Vec<String>,
    },
    /// The file.
    #[error("cannot make `{path}`", path = path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk is full.
    #[error("no room in `{folder}`: {free_mib} MiB are free", folder = folder.display())]
    NoRoom {
        /// The folder of the file.
        folder: PathBuf,
        /// What is left there.
        free_mib: u64,
    },
    /// The next QEMU.
    #[error("cannot start QEMU anew")]
    Start(#[source] io::Error),
    /// QEMU refused.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// QEMU began, and did not complete it.
    #[error("QEMU did not complete it: {reason}")]
    Failed {
        /// As QEMU says.
        reason: String,
    },
    /// The machine ended before, or meanwhile.
    #[error("the machine has ended")]
    Ended(Ending),
    /// QEMU took too long. It may complete it later.
    #[error("QEMU did not complete it within {waited:?}")]
    TimedOut {
        /// How long was waited.
        waited: Duration,
    },
}

/// Saves a machine while it runs, and puts it back. Cheap to clone; of no use when the machine has ended.
#[derive(Debug, Clone)]
pub struct SnapshotsHandle(Arc<Snapshots>);

/// What of a machine is needed.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) qmp: Qmp,
    pub(super) ending: watch::Receiver<Option<Ending>>,
    /// Set while the guest may stand.
    pub(super) held: Arc<AtomicBool>,
    pub(super) engine: Weak<Engine>,
    pub(super) folder: PathBuf,
    pub(super) memory_mib: u64,
    /// The nodes of the disks that can be written to: what they hold is saved with the machine.
    pub(super) disks: Vec<String>,
}

/// See [`Parts::disks`].
pub(super) fn disk_nodes(spec: &MachineSpec) -> Vec<String> {
    let disks = spec.disks.iter().enumerate().filter(|(_, disk)| !disk.read_only);
    disks.map(|(number, _)| disk_node(number)).collect()
}

#[derive(Debug)]
struct Snapshots {
    parts: Parts,
    /// Locked for as long as QEMU is at one of them.
    book: Mutex<Book>,
}

/// What was saved.
#[derive(Debug, Default)]
struct Book {
    /// The nodes that the file is, once it is there.
    nodes: Option<Nodes>,
    /// Names, and under which tags QEMU has them.
    tags: BTreeMap<String, String>,
    /// The last number that something of QEMU's was named with.
    number: u64,
}

/// What QEMU calls the file, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Nodes {
    file: String,
    disk: String,
}

impl SnapshotsHandle {
    pub(super) fn new(parts: Parts) -> Self {
        Self(Arc::new(Snapshots { parts, book: Mutex::default() }))
    }

    /// Saves the machine under a name, and lets it run on. What had the name before is gone when this one is there.
    ///
    /// # Errors
    /// [`SnapshotFault`]; the machine runs on, if it has not ended, and what had the name before is still there.
    ///
    /// # Cancel safety
    /// QEMU completes what it began; the name has what it had before.
    pub async fn save(&self, name: &str) -> Result<(), SnapshotFault> {
        let (this, mut book) = (&*self.0, self.0.book.lock().await);
        let saved = this.attend(this.save_as(name, &mut book)).await;
        let folder = &this.parts.folder;
        let saved = saved.map_err(|fault| match (fault, free_mib(folder).unwrap_or(0)) {
            (SnapshotFault::Failed { reason }, free_mib) if is_no_room(&reason, free_mib) => {
                SnapshotFault::NoRoom { folder: folder.clone(), free_mib }
            }
            (fault, _) => fault,
        });
        let is_over =
            matches!(saved, Err(SnapshotFault::Ended(_) | SnapshotFault::TimedOut { .. }));
        if saved.is_err() && !is_over && book.tags.is_empty() {
            this.close(&mut book).await;
        }
        saved
    }

    /// Puts the machine back to what was saved under a name, and lets it run on from there.
    ///
    /// # Errors
    /// [`SnapshotFault`]. After [`SnapshotFault::Unknown`] the machine runs on as if nothing had been asked; after
    /// another one the guest may stand, or be gone.
    ///
    /// # Cancel safety
    /// None: the guest may stand.
    pub async fn load(&self, name: &str) -> Result<(), SnapshotFault> {
        let (this, mut book) = (&*self.0, self.0.book.lock().await);
        let (nodes, tag) = book.find(name)?;
        let job = book.next("job");
        let loading = async {
            let qmp = &this.parts.qmp;
            let Some(engine) = this.parts.engine.upgrade() else {
                return Err(QmpError::Gone.into());
            };
            // What QEMU has of the disks in its memory, it writes when the guest stands, and of the file when it lets go
            // of it.
            if !this.parts.disks.is_empty() {
                qmp.execute_plain("stop", json!({})).await?;
            }
            qmp.execute_plain("blockdev-del", json!({ "node-name": nodes.disk })).await?;
            engine.replace().await.map_err(SnapshotFault::Start)?;
            drop(engine);
            qmp.execute_plain("qmp_capabilities", json!({})).await?;
            this.add_file(&nodes).await?;
            this.add_disk(&nodes).await?;
            let devices = this.devices(&nodes);
            let arguments = json!({ "vmstate": nodes.disk, "devices": devices, "tag": tag });
            this.job("snapshot-load", &job, arguments).await?;
            qmp.execute_plain("cont", json!({})).await?;
            Ok(())
        };
        this.attend(loading).await
    }

    /// Forgets a name; the room of what had it is given back.
    ///
    /// # Errors
    /// [`SnapshotFault`].
    pub async fn delete(&self, name: &str) -> Result<(), SnapshotFault> {
        let (this, mut book) = (&*self.0, self.0.book.lock().await);
        let (nodes, tag) = book.find(name)?;
        book.tags.remove(name);
        this.attend(this.drop_tag(&nodes, &tag, &mut book)).await
    }

    /// Is there a snapshot of that name?
    ///
    /// # Errors
    /// [`SnapshotFault::Unknown`].
    pub async fn find(&self, name: &str) -> Result<(), SnapshotFault> {
        self.0.book.lock().await.find(name).map(drop)
    }

    /// The names there are, sorted.
    pub async fn names(&self) -> Vec<String> {
        self.0.book.lock().await.names()
    }

    /// As [`super::Machine::ended`].
    pub async fn ended(&self) -> Ending {
        ended(&self.0.parts.ending).await
    }
}

impl Book {
    fn names(&self) -> Vec<String> {
        self.tags.keys().cloned().collect()
    }

    /// The nodes and the tag of a name.
    fn find(&self, name: &str) -> Result<(Nodes, String), SnapshotFault> {
        let found = self.nodes.clone().zip(self.tags.get(name).cloned());
        found.ok_or_else(|| SnapshotFault::Unknown { there: self.names() })
    }

    /// A word that QEMU has not heard before.
    fn next(&mut self, what: &str) -> String {
        self.number += 1;
        format!("{what}{}", self.number)
    }
}

/// The guest may stand, until this is dropped.
struct Held<'a>(&'a AtomicBool);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Snapshots {
    /// Does something for as long as the machine lives and the time lasts.
    async fn attend<T>(
        &self,
        doing: impl Future<Output = Result<T, SnapshotFault>>,
    ) -> Result<T, SnapshotFault> {
        self.parts.held.store(true, Ordering::Release);
        let _held = Held(&self.parts.held);
        let limit = limit(self.parts.memory_mib);
        let done = tokio::select! {
            biased;
            ending = ended(&self.parts.ending) => return Err(SnapshotFault::Ended(ending)),
            done = doing => done,
            () = tokio::time::sleep(limit) => return Err(SnapshotFault::TimedOut { waited: limit }),
        };
        match done {
            Err(SnapshotFault::Qmp(QmpError::Gone)) => {
                let ending = tokio::time::timeout(NEWS, ended(&self.parts.ending)).await;
                Err(SnapshotFault::Ended(ending.unwrap_or(Ending::unknown())))
            }
            done => done,
        }
    }

    async fn save_as(&self, name: &str, book: &mut Book) -> Result<(), SnapshotFault> {
        let nodes = match &book.nodes {
            Some(nodes) => nodes.clone(),
            None => self.make(book).await?,
        };
        let (tag, job) = (book.next("tag"), book.next("job"));
        let devices = self.devices(&nodes);
        let arguments = json!({ "vmstate": nodes.disk, "devices": devices, "tag": tag });
        self.job("snapshot-save", &job, arguments).await?;
        if let Some(before) = book.tags.insert(name.to_owned(), tag) {
            // It costs room, and nothing else.
            if let Err(error) = self.drop_tag(&nodes, &before, book).await {
                warn!(%error, "a snapshot that was overwritten stays in the file");
            }
        }
        Ok(())
    }

    async fn drop_tag(
        &self,
        nodes: &Nodes,
        tag: &str,
        book: &mut Book,
    ) -> Result<(), SnapshotFault> {
        let job = book.next("job");
        self.job("snapshot-delete", &job, json!({ "devices": self.devices(nodes), "tag": tag }))
            .await
    }

    /// All nodes that a snapshot is in.
    fn devices(&self, nodes: &Nodes) -> Vec<String> {
        let mut devices = vec![nodes.disk.clone()];
        devices.extend(self.parts.disks.iter().cloned());
        devices
    }

    /// Makes the file, and tells its nodes.
    async fn make(&self, book: &mut Book) -> Result<Nodes, SnapshotFault> {
        let off = json!({ "capability": "x-ignore-shared", "state": false });
        let off = json!({ "capabilities": [off] });
        self.parts.qmp.execute_plain("migrate-set-capabilities", off).await?;

        let path = self.path();
        // What an attempt left that was given up; and QEMU would make it readable for others.
        let _ = fs::remove_file(&path);
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        made.map_err(|source| SnapshotFault::File { path: path.clone(), source })?;
        let nodes = Nodes { file: book.next("file"), disk: book.next("snapshots") };
        self.add_file(&nodes).await?;
        let options = json!({ "driver": "qcow2", "file": nodes.file, "size": DISK_LEN });
        let job = book.next("job");
        self.job("blockdev-create", &job, json!({ "options": options })).await?;
        self.add_disk(&nodes).await?;
        book.nodes = Some(nodes.clone());
        Ok(nodes)
    }

    async fn add_file(&self, nodes: &Nodes) -> Result<(), SnapshotFault> {
        let (path, file) = (self.path(), &nodes.file);
        self.add(json!({ "driver": "file", "filename": path, "node-name": file })).await
    }

    async fn add_disk(&self, Nodes { file, disk }: &Nodes) -> Result<(), SnapshotFault> {
        self.add(json!({ "driver": "qcow2", "file": file, "node-name": disk })).await
    }

    /// Nothing here outlives the machine, so nothing has to be on the disk; and what is deleted gives its room back.
    async fn add(&self, mut options: Value) -> Result<(), SnapshotFault> {
        options["cache"] = json!({ "direct": false, "no-flush": true });
        options["discard"] = json!("unmap");
        self.parts.qmp.execute_plain("blockdev-add", options).await?;
        Ok(())
    }

    /// Gives back what a file holds that has no snapshot; half a one, say.
    async fn close(&self, book: &mut Book) {
        if let Some(Nodes { file, disk }) = book.nodes.take() {
            let closing = async {
                for node in [disk, file] {
                    let arguments = json!({ "node-name": node });
                    self.parts.qmp.execute_plain("blockdev-del", arguments).await?;
                }
                Ok(())
            };
            if let Err(error) = self.attend(closing).await {
                debug!(%error, "a file without a snapshot stays open");
            }
        }
        if let Ok(file) = OpenOptions::new().write(true).open(self.path()) {
            // QEMU may still have it.
            let _ = file.set_len(0);
        }
    }

    /// Has QEMU do a job, and waits until it is done.
    async fn job(
        &self,
        command: &'static str,
        id: &str,
        mut arguments: Value,
    ) -> Result<(), SnapshotFault> {
        let qmp = &self.parts.qmp;
        arguments["job-id"] = json!(id);
        qmp.execute_plain(command, arguments).await?;
        let ended = loop {
            let jobs = qmp.execute_plain("query-jobs", json!({})).await?;
            match job_end(&jobs, id) {
                Some(ended) => break ended,
                None => tokio::time::sleep(LOOK).await,
            }
        };
        qmp.execute_plain("job-dismiss", json!({ "id": id })).await?;
        ended.map_err(|reason| SnapshotFault::Failed { reason: crate::text::printable(&reason) })
    }

    fn path(&self) -> PathBuf {
        self.parts.folder.join(FILE)
    }
}

/// How long QEMU may take to save, or to load, so much memory.
fn limit(memory_mib: u64) -> Duration {
    LIMIT + Duration::from_secs(memory_mib / SLOW_MIB)
}

/// How a job has ended, if it has; the rest of what QEMU says of jobs is not looked at (QEMU `qapi/job.json`).
fn job_end(jobs: &Value, id: &str) -> Option<Result<(), String>> {
    let mut all = jobs.as_array().into_iter().flatten();
    let Some(job) = all.find(|job| job["id"] == id) else {
        return Some(Err("it knows nothing of the job any more".to_owned()));
    };
    match (job["status"].as_str(), job["error"].as_str()) {
        (Some("concluded"), Some(error)) => Some(Err(error.to_owned())),
        (Some("concluded"), None) => Some(Ok(())),
        _ => None,
    }
}

/// Does a save fail for this reason because the disk is full, with so much left of it? What QEMU says of that is mostly
/// "Input/output error" (tried, 7.2 and 10.0).
fn is_no_room(reason: &str, free_mib: u64) -> bool {
    free_mib < FULL_MIB || reason.contains("No space left") || reason.contains("quota exceeded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_waited_for_until_it_is_concluded() {
        let jobs = |status: &str| {
            json!([{ "id": "other", "status": "concluded", "error": "x" },
            { "id": "job1", "type": "of-the-future", "status": status }])
        };
        for status in ["created", "running", "waiting", "pending", "aborting", "of-the-future"] {
            assert_eq!(job_end(&jobs(status), "job1"), None, "{status}");
        }
        assert_eq!(job_end(&jobs("concluded"), "job1"), Some(Ok(())));
        assert_eq!(job_end(&jobs("concluded"), "other"), Some(Err("x".to_owned())));
        assert!(matches!(job_end(&jobs("running"), "job2"), Some(Err(_))));
        assert!(matches!(job_end(&Value::Null, "job1"), Some(Err(_))));
    }

    #[test]
    fn a_full_disk_is_told_from_other_troubles() {
        let reason = "Error while writing VM state: Input/output error";
        assert!(is_no_room(reason, 0));
        assert!(!is_no_room(reason, 4));
        assert!(is_no_room("Could not write: No space left on device", 4));
        assert!(is_no_room("Disk quota exceeded", 4));
    }

    #[test]
    fn names_find_their_tags_and_numbers_are_not_used_again() {
        let mut book = Book::default();
        assert!(
            matches!(book.find("a"), Err(SnapshotFault::Unknown { there }) if there.is_empty())
        );
        let nodes = Nodes { file: book.next("file"), disk: book.next("snapshots") };
        book.nodes = Some(nodes.clone());
        for name in ["b", "a", "b"] {
            let tag = book.next("tag");
            book.tags.insert(name.to_owned(), tag);
        }
        assert_eq!(book.find("b").unwrap(), (nodes, "tag5".to_owned()));
        assert_eq!(book.find("a").unwrap().1, "tag4");
        let Err(SnapshotFault::Unknown { there }) = book.find("c") else { panic!() };
        assert_eq!(there, ["a", "b"]);
    }

    #[test]
    fn more_memory_has_more_time() {
        assert_eq!(limit(256), Duration::from_secs(76));
        assert!(limit(64 * 1024) > Duration::from_secs(3600));
    }
}
