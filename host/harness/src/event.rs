//! The event stream: one versioned object for everything that happens in a run.
//!
//! It is what `--message-format json` prints, a line each; `docs/events.schema.json` is its schema.
//! Times are integers. An event may arrive twice: run, attempt and sequence tell it again.

use crate::job::Job;
use crate::outcome::{Outcome, Tally};
use crate::run::Verdict;
use base64::Engine as _;
pub use guestline::clock::now_us;
use guestline::digest::Digest;
use guestline::supervise::MachineName;
use guestline_protocol::Stream;
use serde::Serialize;
use ulid::Ulid;

/// The version of the schema; a field or an event that is added does not change it.
pub const SCHEMA: u32 = 1;

/// An event with what tells it apart.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The run.
    pub run: Ulid,
    /// The attempt, where it belongs to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Ulid>,
    /// Counts the events of the attempt, or those of the run that belong to none.
    pub sequence: u64,
    /// The host's clock, microseconds since 1970.
    pub time_us: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: RunEvent,
}

/// What happens in a run.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum RunEvent {
    /// The run begins.
    RunStarted {
        /// Version of Guestline.
        version: String,
        /// How many tests.
        tests: u32,
        /// What runs the guest's code: `kvm` or `tcg`.
        accelerator: String,
        /// Why that.
        accelerator_why: String,
        /// Was it found out just now?
        accelerator_probed: bool,
        /// QEMU's version.
        qemu: String,
        /// Where evidence is kept.
        folder: String,
    },
    /// An image is not there and is being made; once for each step.
    ImageMaking {
        /// Its name.
        image: String,
        /// What is done now, as in "the image …".
        step: String,
    },
    /// Something that should be known of an image that is being made.
    ImageNote {
        /// Its name.
        image: String,
        /// What.
        text: String,
    },
    /// An image was made.
    ImageMade {
        /// Its name.
        image: String,
        /// Its digest.
        digest: Digest,
        /// How many packages it is made from.
        packages: u32,
        /// How long it took, microseconds.
        elapsed_us: u64,
    },
    /// A template was made: a machine that has booted was saved, to be restored from now on.
    TemplateMade {
        /// Its id.
        template: String,
        /// From the start of QEMU, microseconds.
        elapsed_us: u64,
        /// From when the machine was quiet until the template was there, microseconds.
        saved_us: u64,
    },
    /// A template could not be used and is gone; another is made.
    TemplateDropped {
        /// Its id.
        template: String,
        /// What was wrong with it.
        why: String,
    },
    /// No template can be used or made: the machine boots.
    TemplateMissing {
        /// Why.
        why: String,
    },
    /// An attempt begins; it may still wait for memory.
    AttemptStarted {
        /// The test's place in the run, from 1.
        number: u32,
        /// Which attempt at it, from 1.
        attempt_number: u32,
        /// The test's name.
        test: String,
        /// What runs on what.
        job: Box<Job>,
    },
    /// The attempt's machine is ready.
    MachineReady {
        /// Its name, where a test has several.
        #[serde(skip_serializing_if = "Option::is_none")]
        machine: Option<MachineName>,
        /// From the start of QEMU to the agent's answer, microseconds; with the making of its template, if that was made
        /// for this attempt.
        elapsed_us: u64,
        /// The agent's build id.
        agent: String,
        /// The guest's clock, microseconds since 1970, as the guest says.
        guest_time_us: u64,
        /// The template that it was restored from; none when it has booted.
        #[serde(skip_serializing_if = "Option::is_none")]
        template: Option<String>,
        /// How far the guest's clock was off before it was set, microseconds: guest less host.
        skew_us: i64,
        /// Out of a pool.
        #[serde(skip_serializing_if = "Option::is_none")]
        pool: Option<PooledMachine>,
    },
    /// The test wrote.
    Output {
        /// `stdout` or `stderr`.
        stream: StreamName,
        /// What.
        #[serde(flatten)]
        data: OutputData,
    },
    /// A result that the test's output tells.
    Subtest(Subtest),
    /// The attempt has its outcome.
    AttemptFinished(Box<AttemptFinished>),
    /// All attempts at a test are over.
    TestFinished(Box<TestFinished>),
    /// The run is over.
    RunFinished {
        /// The outcomes.
        tally: Tally,
        /// So many tests were not run, since one had failed.
        not_run: u32,
        /// From the beginning, microseconds.
        elapsed_us: u64,
    },
}

/// A result among those that a test's output tells (TAP, KTAP).
#[derive(Debug, Clone, Serialize)]
pub struct Subtest {
    /// Its name, with those of what it is a part of before it.
    pub name: String,
    /// Its outcome: `passed`, `failed` or `skipped`; of a known failure it is that which was expected.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// It is known to fail (TODO, XFAIL).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub todo: bool,
}

/// A test's end.
#[derive(Debug, Clone, Serialize)]
pub struct TestFinished {
    /// The test's place in the run, from 1.
    pub number: u32,
    /// The test's name.
    pub test: String,
    /// What is said of it.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// An attempt's end.
#[derive(Debug, Clone, Serialize)]
pub struct AttemptFinished {
    /// The test's place in the run, from 1.
    pub number: u32,
    /// Which attempt at it, from 1.
    pub attempt_number: u32,
    /// The test's name.
    pub test: String,
    /// The outcome, with its reason and stage.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The test's exit status, when it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u8>,
    /// From the start of QEMU to the agent's answer, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_us: Option<u64>,
    /// From the request to the exit, microseconds by the host's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_us: Option<u64>,
    /// From the start to the exit, microseconds by the guest's clock, as the guest says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_check_us: Option<u64>,
    /// The whole attempt, without the time in which its machine was ready and waited for its turn, microseconds.
    pub elapsed_us: u64,
    /// What a reader should know, a line each: the evidence of a failure, a child that held stdout.
    pub notes: Vec<String>,
    /// Where its evidence is, when there is any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
}

/// The name of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamName {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

impl From<Stream> for StreamName {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Stdout => Self::Stdout,
            Stream::Stderr => Self::Stderr,
        }
    }
}

/// What a machine did in its pool, before it was the attempt's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PooledMachine {
    /// For so long it was ready, microseconds.
    pub ready_us: u64,
    /// The line that it has run there, as its image says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<String>,
}

/// Output, whatever its bytes: `text` when they are UTF-8, else `base64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputData(pub Vec<u8>);

impl Serialize for OutputData {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(1))?;
        match str::from_utf8(&self.0) {
            Ok(text) => map.serialize_entry("text", text)?,
            Err(_) => {
                let text = base64::engine::general_purpose::STANDARD.encode(&self.0);
                map.serialize_entry("base64", &text)?;
            }
        }
        map.end()
    }
}
