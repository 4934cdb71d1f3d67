//! A guest that wants to do harm: each attempt ends with a named error, or costs it more than the host.

use super::super::session::Weight;
use super::*;
use guestline_protocol::{AddEntropyRequest, ByteBuf, CancelEvent, SignalEvent};

impl Link {
    async fn weigh(&self) -> Weight {
        let (done, weighed) = oneshot::channel();
        self.orders.send(Order::Weigh { done }).unwrap();
        weighed.await.unwrap()
    }
}

/// A session whose other end is the test's to use, from the hello on.
async fn open_raw() -> (Link, UnixStream, Session) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let answer = async {
        let mut framing = PortFraming::default();
        let head = read_head(&mut theirs, &mut framing).await;
        theirs.write_all(&frame(head, &hello(1, 1))).await.unwrap();
        head.session
    };
    let (opened, session) = tokio::join!(Link::open(socket(ours)), answer);
    (opened.unwrap().0, theirs, session)
}

async fn read_head(stream: &mut UnixStream, framing: &mut PortFraming) -> FrameHead {
    let mut buffer = [0; 4096];
    loop {
        if let Some(frame) = framing.next_frame() {
            return frame.head;
        }
        let len = stream.read(&mut buffer).await.unwrap();
        framing.push(&buffer[..len]);
    }
}

/// Sends the same again and again, until the host has enough.
async fn flood(mut stream: UnixStream, bytes: Vec<u8>) {
    while stream.write_all(&bytes).await.is_ok() {}
}

#[tokio::test]
async fn frames_for_channels_that_nobody_opened() {
    // Never opened, the guest's own, and the session task's own.
    for channel in [77, 0, 0x8000_0077] {
        for is_data in [false, true] {
            let (link, theirs, session) = open_raw().await;
            let head = FrameHead::message(session, channel);
            let bytes = if is_data { data(head, 9) } else { frame(head, &pong(1)) };
            tokio::spawn(flood(theirs, bytes.repeat(100)));
            let error = link.end().await;
            assert!(error.to_string().contains("requests that nobody made"), "{error}");
        }
    }
}

#[tokio::test]
async fn replies_that_are_repeated_after_the_last() {
    let (link, _) = open(|head, _| frame(head, &pong(1)).repeat(5_000)).await;
    assert_eq!(link.ask(&ping(1)).await.unwrap(), pong(1));
    let error = link.end().await;
    assert!(error.to_string().contains("requests that nobody made"), "{error}");
}

#[tokio::test]
async fn empty_data_on_a_channel_that_is_open() {
    let (link, _) = open(|head, _| data(head, 0).repeat(5_000)).await;
    let mut channel = link.channel(&ping(1), 100).await.unwrap();
    assert!(matches!(channel.next().await, Err(LinkError::Broken { .. })));
}

#[tokio::test]
async fn a_frame_without_an_end() {
    let (link, mut theirs, session) = open_raw().await;
    // A head whose length is over the limit is none, and so is all that follows.
    let mut head = frame(FrameHead::message(session, 1), &pong(1));
    head.truncate(HEADROOM);
    head[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    theirs.write_all(&head).await.unwrap();
    tokio::spawn(flood(theirs, vec![b'G'; 64 * 1024]));
    let error = link.end().await;
    assert!(error.to_string().contains("that are no frames"), "{error}");
}

#[tokio::test]
async fn frames_of_another_session() {
    let (link, theirs, session) = open_raw().await;
    let other = FrameHead::message(Session(session.0 ^ 1), 1);
    tokio::spawn(flood(theirs, data(other, 60_000)));
    let error = link.end().await;
    assert!(error.to_string().contains("that are no frames"), "{error}");
}

#[tokio::test]
async fn data_in_tiny_pieces_waits_in_few_large_ones() {
    const BYTES: usize = 100_000;
    let (link, mut theirs, session) = open_raw().await;
    let mut channel = link.channel(&ping(1), BYTES as u32).await.unwrap();
    let head = read_head(&mut theirs, &mut PortFraming::default()).await;
    assert_eq!(head.session, session);
    theirs.write_all(&data(head, 1).repeat(BYTES)).await.unwrap();
    theirs.write_all(&frame(head, &pong(1))).await.unwrap();
    // All has come when the channel is closed.
    while link.weigh().await.channels > 0 {
        tokio::task::yield_now().await;
    }
    assert!(channel.pieces() < 20, "{}", channel.pieces());
    let mut found = 0;
    while let Arrival::Data { bytes, .. } = channel.next().await.unwrap() {
        found += bytes.len();
    }
    assert_eq!(found, BYTES);
}

#[tokio::test]
async fn a_guest_that_never_reads_gets_one_credit_for_many() {
    const PIECES: u64 = 20_000;
    let (link, mut theirs, _) = open_raw().await;
    let mut channel = link.channel(&ping(1), 4).await.unwrap();
    let mut framing = PortFraming::default();
    let head = read_head(&mut theirs, &mut framing).await;
    for _ in 0..PIECES {
        theirs.write_all(&data(head, 1)).await.unwrap();
        assert!(matches!(channel.next().await, Ok(Arrival::Data { .. })));
    }
    let weight = link.weigh().await;
    assert!(weight.backlog < 10_000, "{weight:?}");
    // Nothing of it is lost.
    let (mut messages, mut granted) = (0, 0);
    let mut buffer = vec![0; 64 * 1024];
    while granted < PIECES {
        let len = theirs.read(&mut buffer).await.unwrap();
        framing.push(&buffer[..len]);
        while let Some(frame) = framing.next_frame() {
            if let Request::Credit(credit) = decode(frame.body).unwrap() {
                (messages, granted) = (messages + 1, granted + u64::from(credit.bytes));
            }
        }
    }
    assert_eq!(granted, PIECES);
    assert!(messages < PIECES / 10, "{messages} messages");
}

#[tokio::test]
async fn requests_that_nobody_reads_are_given_up_and_the_link_is_not() {
    let (link, theirs, _) = open_raw().await;
    let entropy = Request::AddEntropy(AddEntropyRequest { seed: ByteBuf::from(vec![1; 250_000]) });
    let mut channels = Vec::new();
    for _ in 0..200 {
        channels.push(link.channel(&entropy, 0).await.unwrap());
    }
    for channel in &mut channels {
        let error = channel.next().await.unwrap_err();
        assert!(matches!(error, LinkError::Unread { .. }), "{error:?}");
    }
    let weight = link.weigh().await;
    assert!(weight.backlog < 300_000 && weight.channels == 0, "{weight:?}");
    // It reads again, from the middle of a frame on.
    peer(theirs, |head, request| match request {
        Request::Hello(_) => frame(head, &hello(1, 1)),
        Request::Ping(ping) => frame(head, &pong(ping.token)),
        _ => Vec::new(),
    });
    link.reopen().await.unwrap();
    assert_eq!(link.ask(&ping(7)).await.unwrap(), pong(7));
}

#[tokio::test]
async fn words_on_a_channel_that_nobody_reads_are_bounded_too() {
    let (link, _theirs, _) = open_raw().await;
    let mut channel = link.channel(&ping(1), 0).await.unwrap();
    let signal = Request::Signal(SignalEvent { signal: 1, group: false });
    let (_, writer) = link.channel(&ping(2), 0).await.unwrap().split();
    for _ in 0..600_000 {
        writer.tell(&signal);
    }
    // Those that are over by now are dropped: this one was the first to go.
    assert!(matches!(channel.next().await, Err(LinkError::Unread { .. })));
    assert!(link.weigh().await.backlog < 10_000);
}

#[tokio::test]
async fn one_channel_too_many_is_refused_and_the_next_is_not() {
    let (link, _) = open(|head, request| match request {
        Request::Cancel(CancelEvent {}) => frame(head, &Reply::Done(DoneResponse {})),
        _ => Vec::new(),
    })
    .await;
    let mut channels = Vec::new();
    for token in 0..guestline_protocol::MAX_CHANNELS as u64 {
        channels.push(link.channel(&ping(token), 0).await.unwrap());
    }
    let LinkError::Refused(error) = link.ask(&ping(1)).await.unwrap_err() else { panic!() };
    assert_eq!(error.kind, ErrorKind::Busy);
    assert_eq!(error.message, "256 requests are under way already");
    channels.pop();
    while link.weigh().await.channels == channels.len() + 1 {
        tokio::task::yield_now().await;
    }
    let mut channel = link.channel(&ping(1), 0).await.unwrap();
    let unanswered = tokio::time::timeout(Duration::from_millis(50), channel.next()).await;
    assert!(unanswered.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_answers_each_keepalive_and_nothing_else() {
    let mut pings = 0;
    let (link, _) = open(move |head, request| match request {
        Request::Ping(ping) => {
            pings += 1;
            frame(head, &pong(ping.token + pings))
        }
        _ => Vec::new(),
    })
    .await;
    let stat = Request::Stat(StatRequest { path: b"/".to_vec().into(), follow: false });
    let error = link.ask(&stat).await.unwrap_err();
    assert!(matches!(error, LinkError::NoAnswer { what: "stat", .. }), "{error:?}");
    // And for a day, with a request that may take as long.
    let mut channel = link.channel(&stat, 0).await.unwrap();
    let day = Duration::from_secs(24 * 3600);
    assert!(tokio::time::timeout(day, channel.next()).await.is_err());
    let weight = link.weigh().await;
    assert!(weight.channels <= 3 && weight.backlog == 0, "{weight:?}");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_says_anything_but_the_answer_to_a_keepalive() {
    let (link, mut theirs, session) = open_raw().await;
    let _channel = link.channel(&ping(1), 0).await.unwrap();
    let credit = Reply::Credit(CreditEvent { bytes: 1 });
    let credit = frame(FrameHead::message(session, 1), &credit);
    for _ in 0..10_000 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        theirs.write_all(&credit).await.unwrap();
    }
    let weight = link.weigh().await;
    assert!(weight.channels <= 2 && weight.backlog < 1_000, "{weight:?}");
}
