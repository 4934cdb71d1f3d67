//! Clients against a scripted guest.

use super::*;
use crate::link::scripted::{self, frame, hello};
use crate::link::{Arrival, Lane, Transport, TransportKind, data_buffer};
use guestline_protocol::{
    Command, CreditEvent, DoneResponse, ErrorKind, ExecRequest, ExecStartedEvent, FrameHead,
    FrameKind, Framing, FreezeRequest, HEADROOM, HelloRequest, PortFraming, RemoteError, Reply,
    Request, SendCredit, Session, Stream, encode,
};
use std::collections::HashMap;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// Longer than anything here takes.
const SOON: Duration = Duration::from_secs(5);

/// A guest that answers hellos, and everything else with what `answer` makes of it, until that is none.
fn guest(
    stream: UnixStream,
    mut answer: impl FnMut(FrameHead, Request) -> Option<Vec<u8>> + Send + 'static,
) {
    scripted::peer(stream, move |head, request| match request {
        Request::Hello(_) => Some(frame(head, &Reply::Hello(hello()))),
        request => answer(head, request),
    });
}

fn data(head: FrameHead, len: usize) -> Vec<u8> {
    let head = FrameHead { kind: FrameKind::Data(Stream::Stdout), ..head };
    PortFraming::default().seal(head, vec![7; HEADROOM + len], 0).unwrap()
}

fn started(head: FrameHead, credit: u32) -> Vec<u8> {
    frame(head, &Reply::ExecStarted(ExecStartedEvent { pid: 1, credit }))
}

fn exec(credit: u32) -> Request {
    let command = Command::Shell(b"yes".to_vec().into());
    Request::Exec(ExecRequest { credit, ..ExecRequest::new(command) })
}

/// A machine whose guest is such a one.
struct Machine {
    around: Around,
    budget: Arc<Budget>,
    _door: watch::Sender<Door>,
}

impl Machine {
    async fn new(
        answer: impl FnMut(FrameHead, Request) -> Option<Vec<u8>> + Send + 'static,
    ) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        guest(theirs, answer);
        let transport = Transport::stream(TransportKind::UnixSocket, Lane::socket(ours));
        let (link, hello) = Link::open(transport).await.unwrap();
        let open = Door::Open { epoch: 1, link, hello: Box::new(hello), heard: Instant::now() };
        let (_door, door) = watch::channel(open);
        let (notices, _) = mpsc::unbounded_channel();
        let around = Around { door, notices, over: CancellationToken::new() };
        Self { around, budget: Arc::default(), _door }
    }

    /// The stream of a new client, and the task that serves it.
    fn client(&self) -> (UnixStream, tokio::task::JoinHandle<()>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (around, budget) = (self.around.clone(), self.budget.clone());
        (ours, tokio::spawn(async move { serve(theirs, &around, &budget).await }))
    }

    async fn attach(&self) -> Link {
        let (stream, _) = self.client();
        let transport = Transport::stream(TransportKind::UnixSocket, Lane::socket(stream));
        Link::open(transport).await.unwrap().0
    }

    /// A client that says hello and this, and then neither reads nor says anything.
    async fn stuck(&self, request: &Request) -> (UnixStream, tokio::task::JoinHandle<()>) {
        let (mut stream, serving) = self.client();
        let hello = HelloRequest { min: 1, max: 1, build: String::new(), features: 0, bulk: false };
        let mut framing = PortFraming::default();
        for (channel, request) in [(1, &Request::Hello(hello)), (2, request)] {
            let head = FrameHead::message(Session(9), channel);
            let bytes = framing.seal(head, encode(request), 0).unwrap();
            stream.write_all(&bytes).await.unwrap();
            if channel == 1 {
                // Nothing is asked before the session stands.
                stream.readable().await.unwrap();
            }
        }
        (stream, serving)
    }
}

#[tokio::test]
async fn a_client_that_is_gone_is_noticed_though_its_data_waits_for_the_guest() {
    // The guest grants much, and then takes nothing.
    let mut first = true;
    let machine =
        Machine::new(move |head, _| std::mem::take(&mut first).then(|| started(head, u32::MAX)))
            .await;
    let (stream, serving) = machine.client();
    let transport = Transport::stream(TransportKind::UnixSocket, Lane::socket(stream));
    let (link, _) = Link::open(transport).await.unwrap();
    let mut channel = link.channel(&exec(1000), 1000).await.unwrap();
    assert!(matches!(channel.reply().await, Ok(Reply::ExecStarted(_))));
    // Something that the guest does not take.
    let _stuck = link.channel(&exec(0), 0).await.unwrap();
    let endless = async {
        loop {
            let mut buffer = data_buffer(100_000);
            buffer.extend(vec![0; 100_000]);
            channel.send(buffer).await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(500), endless).await.is_err());
    drop((channel, link, _stuck));
    tokio::time::timeout(SOON, serving).await.expect("it is noticed").unwrap();
    assert!(machine.budget.is_untouched());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_read_nothing_hold_nobody_up() {
    const ENOUGH: u64 = 4 << 20;
    // Sends what it is granted.
    let mut accounts: HashMap<u32, SendCredit> = HashMap::new();
    let machine = Machine::new(move |head, request| {
        let account = accounts.entry(head.channel).or_default();
        let mut out = Vec::new();
        match request {
            Request::Exec(exec) => {
                account.grant(exec.credit);
                out = started(head, 0);
            }
            Request::Credit(CreditEvent { bytes }) => account.grant(bytes),
            _ => {}
        }
        while account.left() > 0 {
            let len = account.left().min(30_000);
            account.spend(len);
            out.extend(data(head, len));
        }
        Some(out)
    })
    .await;
    let mut stuck = Vec::new();
    for _ in 0..40 {
        stuck.push(machine.stuck(&exec(1 << 20)).await);
    }
    let link = machine.attach().await;
    let mut channel = link.channel(&exec(256 * 1024), 256 * 1024).await.unwrap();
    let reading = async {
        let mut got = 0;
        while got < ENOUGH {
            if let Arrival::Data { bytes, .. } = channel.next().await.unwrap() {
                got += bytes.len() as u64;
            }
        }
    };
    tokio::time::timeout(SOON, reading).await.expect("it gets all");
    assert!(machine.budget.pooled() <= 24 << 20);
}

/// What the guest was asked to freeze, and to thaw.
type Heard = mpsc::UnboundedReceiver<Request>;

/// A guest that freezes what has this path, when it is told to go on.
async fn freezer(path: &'static str) -> (Machine, Heard) {
    let (heard, hears) = mpsc::unbounded_channel();
    let machine = Machine::new(move |head, request| {
        let reply = match &request {
            Request::Freeze(freeze) if freeze.path.as_slice() != path.as_bytes() => {
                Reply::Error(RemoteError::new(ErrorKind::System, "it is frozen already"))
            }
            _ => Reply::Done(DoneResponse {}),
        };
        let _ = heard.send(request);
        Some(frame(head, &reply))
    })
    .await;
    (machine, hears)
}

fn freeze(path: &str) -> Request {
    Request::Freeze(FreezeRequest { path: path.as_bytes().to_vec().into() })
}

#[tokio::test]
async fn what_a_client_froze_is_thawed_when_it_leaves_and_nothing_else() {
    let (machine, mut hears) = freezer("/mnt").await;
    let link = machine.attach().await;
    assert!(link.ask(&freeze("/mnt")).await.is_ok());
    assert!(link.ask(&freeze("/others")).await.is_err());
    drop(link);
    let mut heard = Vec::new();
    for _ in 0..3 {
        heard.push(tokio::time::timeout(SOON, hears.recv()).await.unwrap().unwrap());
    }
    assert!(matches!(&heard[2], Request::Thaw(thaw) if thaw.path.as_slice() == b"/mnt"));
    // Whoever is here later is asked for nothing more.
    let link = machine.attach().await;
    assert!(link.ask(&freeze("/last")).await.is_err());
    assert!(matches!(hears.recv().await, Some(Request::Freeze(_))));
}

#[tokio::test]
async fn what_is_frozen_only_when_the_client_has_left_is_thawed() {
    // It takes until somebody else asks for something.
    let (heard, mut hears) = mpsc::unbounded_channel();
    let mut freezing = None;
    let machine = Machine::new(move |head, request| {
        let done = |head| frame(head, &Reply::Done(DoneResponse {}));
        let out = match &request {
            Request::Freeze(_) => {
                freezing = Some(head);
                Vec::new()
            }
            _ => [freezing.take().map(done).unwrap_or_default(), done(head)].concat(),
        };
        let _ = heard.send(request);
        Some(out)
    })
    .await;
    let (stream, serving) = machine.stuck(&freeze("/mnt")).await;
    assert!(matches!(hears.recv().await, Some(Request::Freeze(_))));
    drop(stream);
    tokio::time::timeout(SOON, serving).await.expect("its end").unwrap();
    let link = machine.attach().await;
    assert!(link.ask(&Request::Identity(Default::default())).await.is_ok());
    assert!(matches!(hears.recv().await, Some(Request::Identity(_))));
    let thaw = tokio::time::timeout(SOON, hears.recv()).await.unwrap();
    assert!(matches!(thaw, Some(Request::Thaw(thaw)) if thaw.path.as_slice() == b"/mnt"));
}
