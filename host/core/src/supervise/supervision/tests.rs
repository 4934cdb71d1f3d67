//! A supervisor, and an agent that only says hello.

use super::*;
use crate::link::scripted::{self, frame, hello};
use crate::supervise::{down, find, status};
use guestline_protocol::{Reply, Request};
use std::fs;
use std::path::Path;
use tokio::net::UnixListener;

/// Longer than a supervisor that waits for nobody takes, shorter than a guest is waited for.
const SOON: Duration = Duration::from_secs(2);

/// Answers a hello, and tells when it was asked for anything else.
fn hung_agent(path: &Path) -> mpsc::UnboundedReceiver<Request> {
    let listener = UnixListener::bind(path).unwrap();
    let (asked, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        scripted::peer(stream, move |head, request| match request {
            Request::Hello(_) => Some(frame(head, &Reply::Hello(hello()))),
            request => {
                let _ = asked.send(request);
                Some(Vec::new())
            }
        });
    });
    requests
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_answers_nothing_keeps_nobody_waiting() {
    let home = tempfile::tempdir().unwrap();
    let dirs = Dirs::below(home.path());
    fs::create_dir_all(&dirs.state).unwrap();
    let root = WorkRoot::create(&dirs, false).unwrap();
    let socket = home.path().join("agent");
    let mut requests = hung_agent(&socket);
    let name: MachineName = "web".parse().unwrap();
    let endpoint: Endpoint = format!("unix:{}", socket.display()).parse().unwrap();
    let supervision = Supervision {
        name: name.clone(),
        source: Source::Connect(endpoint),
        boot_timeout: Duration::from_secs(60),
    };
    let (_orders, orders) = Down::channel();
    let owned = dirs.clone();
    let supervising = tokio::spawn(async move {
        let finished = supervise(&owned, root, supervision, orders, |_| true).await;
        let how = finished.result.as_ref().map(|ended| ended.how).ok();
        finished.tell().await;
        how
    });
    // It has said hello, and is asked what it is.
    assert!(matches!(requests.recv().await, Some(Request::Facts(_))));
    let folder = find(&dirs, &name).unwrap();
    let told = tokio::time::timeout(SOON, status(&folder)).await.expect("an answer").unwrap();
    assert_eq!(told.name, name);
    let ended = tokio::time::timeout(SOON, down(&folder, false)).await.expect("its end").unwrap();
    assert_eq!(ended.how, How::LetGo);
    assert_eq!(supervising.await.unwrap(), Some(How::LetGo));
}
