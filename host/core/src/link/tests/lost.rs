//! Sessions that are lost, and what comes after them.

use super::*;
use guestline_protocol::{End, TtyFraming};
use tokio::io::{DuplexStream, duplex};

fn lane(stream: DuplexStream) -> Lane {
    let (reader, writer) = tokio::io::split(stream);
    Lane::of(reader, writer)
}

fn stat() -> Request {
    Request::Stat(StatRequest { path: b"/".to_vec().into(), follow: false })
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_was_silent_for_long_may_come_back() {
    let mut hellos = 0;
    let (link, _) = try_open(move |head, request| match request {
        Request::Hello(_) => {
            hellos += 1;
            // The second session's comes while the guest still boots.
            if (2..500).contains(&hellos) { Vec::new() } else { frame(head, &hello(1, 1)) }
        }
        Request::Ping(ping) if hellos > 1 => frame(head, &pong(ping.token)),
        _ => Vec::new(),
    })
    .await
    .unwrap();
    let (mut first, mut second) =
        (link.channel(&stat(), 0).await.unwrap(), link.channel(&stat(), 0).await.unwrap());
    for channel in [&mut first, &mut second] {
        let error = channel.next().await.unwrap_err();
        assert!(matches!(error, LinkError::Silent { .. }), "{error:?}");
    }
    // Whoever comes now is told the same, at once.
    assert!(matches!(link.ask(&stat()).await, Err(LinkError::Silent { .. })));
    assert!(link.silence().is_none());
    link.reopen().await.unwrap();
    assert_eq!(link.ask(&ping(7)).await.unwrap(), pong(7));
}

#[tokio::test(start_paused = true)]
async fn what_comes_late_for_a_session_that_is_lost_is_nobodys() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut sessions = Vec::new();
    peer(theirs, move |head, request| match request {
        Request::Hello(_) => {
            sessions.push(head.session);
            let mut bytes = Vec::new();
            if sessions.len() > 1 {
                bytes = frame(FrameHead::message(sessions[0], 1), &pong(1)).repeat(3_000);
            }
            bytes.extend(frame(head, &hello(1, 1)));
            bytes
        }
        Request::Ping(ping) if sessions.len() > 1 => frame(head, &pong(ping.token)),
        _ => Vec::new(),
    });
    let (link, _) = Link::open(socket(ours)).await.unwrap();
    assert!(matches!(link.ask(&stat()).await, Err(LinkError::NoAnswer { .. })));
    let mut channel = link.channel(&stat(), 0).await.unwrap();
    assert!(matches!(channel.next().await, Err(LinkError::Silent { .. })));
    link.reopen().await.unwrap();
    assert_eq!(link.ask(&ping(7)).await.unwrap(), pong(7));
}

#[tokio::test(start_paused = true)]
async fn half_a_frame_then_silence_then_a_good_hello() {
    let mut hellos = 0;
    let (link, _) = try_open(move |head, request| match request {
        Request::Hello(_) => {
            hellos += 1;
            frame(head, &hello(1, 1))
        }
        Request::Ping(ping) if hellos > 1 => frame(head, &pong(ping.token)),
        // Its head is good, and then the guest dies; whoever comes after it knows nothing of this session, and says
        // so, in what is taken for the rest of the frame.
        Request::Stat(_) => data(head, 200_000)[..1_000].to_vec(),
        _ => frame(head, &no_session()),
    })
    .await
    .unwrap();
    let mut channel = link.channel(&stat(), 256 * 1024).await.unwrap();
    assert!(matches!(channel.next().await, Err(LinkError::Silent { .. })));
    link.reopen().await.unwrap();
    assert_eq!(link.ask(&ping(7)).await.unwrap(), pong(7));
}

#[tokio::test]
async fn half_a_frame_then_a_hang_up_then_a_good_hello() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let half = async move {
        let mut framing = PortFraming::default();
        let mut buffer = [0; 4096];
        for answer in [&|head| frame(head, &hello(1, 1)), &|head| data(head, 50)[..40].to_vec()]
            as [&(dyn Fn(FrameHead) -> Vec<u8> + Sync); 2]
        {
            let len = theirs.read(&mut buffer).await.unwrap();
            framing.push(&buffer[..len]);
            let head = framing.next_frame().unwrap().head;
            theirs.write_all(&answer(head)).await.unwrap();
        }
    };
    tokio::spawn(half);
    let (link, _) = Link::open(socket(ours)).await.unwrap();
    let mut channel = link.channel(&ping(1), 100).await.unwrap();
    assert!(matches!(channel.next().await, Err(LinkError::Closed)));
    assert!(matches!(link.reopen().await, Err(LinkError::Closed)));
    let (link, _) = open(|head, _| frame(head, &pong(2))).await;
    assert_eq!(link.ask(&ping(2)).await.unwrap(), pong(2));
}

/// A peer whose agent is of the incarnation that the order of the hellos gives.
async fn open_incarnations(incarnations: &'static [u64]) -> Link {
    let mut hellos = incarnations.iter();
    let (link, _) = try_open(move |head, request| match request {
        Request::Hello(_) => frame(head, &hello_of(*hellos.next().unwrap(), 1, 1)),
        Request::Ping(ping) => frame(head, &pong(ping.token)),
        _ => frame(head, &no_session()),
    })
    .await
    .unwrap();
    link
}

#[tokio::test]
async fn the_same_agent_is_told_from_another() {
    let link = open_incarnations(&[5, 5, 6, 6]).await;
    for began_anew in [false, true, false] {
        assert!(matches!(link.ask(&stat()).await, Err(LinkError::Restarted)));
        assert_eq!(link.reopen().await.unwrap().began_anew, began_anew);
        assert_eq!(link.ask(&ping(7)).await.unwrap(), pong(7));
    }
}

#[tokio::test]
async fn a_late_answer_to_a_hello_by_another_agent_ends_the_session() {
    for (other, is_lost) in [(1, false), (2, true)] {
        let mut greeted = None;
        let (link, _) = try_open(move |head, request| match request {
            Request::Hello(_) => {
                greeted = Some(head);
                frame(head, &hello(1, 1))
            }
            // The hello was still in the port when another agent opened it.
            Request::Stat(_) => frame(greeted.unwrap(), &hello_of(other, 1, 1)),
            Request::Ping(ping) => frame(head, &pong(ping.token)),
            _ => Vec::new(),
        })
        .await
        .unwrap();
        let mut channel = link.channel(&stat(), 0).await.unwrap();
        match is_lost {
            true => assert!(matches!(channel.next().await, Err(LinkError::Restarted))),
            false => assert_eq!(link.ask(&ping(7)).await.unwrap(), pong(7)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_takes_an_hour_to_boot_finds_one_hello() {
    let (ours, theirs) = duplex(16);
    let opening = tokio::spawn(Link::open(Transport::stream(TransportKind::Stdio, lane(ours))));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let (heard, mut hellos) = mpsc::unbounded_channel();
    peer(theirs, move |head, request| match request {
        Request::Hello(_) => {
            heard.send(()).unwrap();
            frame(head, &hello(1, 1))
        }
        _ => Vec::new(),
    });
    opening.await.unwrap().unwrap();
    assert!(hellos.len() <= 2, "{}", hellos.len());
    hellos.recv().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_tty_is_greeted_for_as_long_as_it_takes() {
    let (ours, mut theirs) = duplex(1 << 20);
    let opening = tokio::spawn(Link::open(Transport::tty(lane(ours))));
    // Nobody is there, and nothing that is said is kept.
    let mut buffer = vec![0; 64 * 1024];
    let nobody = async { while theirs.read(&mut buffer).await.is_ok() {} };
    let _ = tokio::time::timeout(Duration::from_secs(3600), nobody).await;
    let mut framing = TtyFraming::new(End::Guest);
    let greeted = async {
        loop {
            let len = theirs.read(&mut buffer).await.unwrap();
            framing.push(&buffer[..len]);
            if let Some(frame) = framing.next_frame() {
                return frame.head;
            }
        }
    };
    let head = tokio::time::timeout(Duration::from_secs(10), greeted).await.unwrap();
    let answer = framing.seal(head, encode(&hello(1, 1)), 1).unwrap();
    theirs.write_all(&answer).await.unwrap();
    opening.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_waits_for_the_rest_of_a_frame_hears_the_hello_behind_what_fills_it_up() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let (mut framing, mut buffer) = (PortFraming::default(), vec![0; 64 * 1024]);
        let mut heard = 0;
        while let Ok(len @ 1..) = theirs.read(&mut buffer).await {
            framing.push(&buffer[..len]);
            while let Some(Frame { head, body }) = framing.next_frame() {
                if head.kind != FrameKind::Message {
                    continue;
                }
                let answer = match decode(body) {
                    Ok(Request::Hello(_)) => frame(head, &hello(1, 1)),
                    Ok(Request::Ping(ping)) => frame(head, &pong(ping.token)),
                    _ => Vec::new(),
                };
                theirs.write_all(&answer).await.unwrap();
                heard += 1;
                if heard == 1 {
                    // What the guest was at when it was saved.
                    let longest = data(head, guestline_protocol::MAX_DATA_LEN);
                    framing.push(&longest[..1_000]);
                    assert!(framing.next_frame().is_none());
                }
            }
        }
    });
    let (link, _) = Link::open(socket(ours)).await.unwrap();
    // The hello is swallowed, however often it is said.
    let plain = tokio::time::timeout(Duration::from_secs(60), link.reopen()).await;
    assert!(plain.is_err());
    link.reopen_restored().await.unwrap();
    assert_eq!(link.ask(&ping(7)).await.unwrap(), pong(7));
}
