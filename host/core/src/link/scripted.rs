//! A scripted peer of a link, for tests.

use guestline_protocol::{
    ExecExitedEvent, ExitStatus, Frame, FrameHead, FrameKind, Framing, HelloResponse, PortFraming,
    Reply, Request, ResourceUsage, decode, encode,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Answers messages with what `answer` makes of them, until the stream ends. When that is none, it stays there and takes
/// nothing any more.
pub(crate) fn peer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    mut answer: impl FnMut(FrameHead, Request) -> Option<Vec<u8>> + Send + 'static,
) {
    tokio::spawn(async move {
        let mut framing = PortFraming::default();
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = stream.read(&mut buffer).await {
            framing.push(&buffer[..len]);
            let mut out = Vec::new();
            while let Some(Frame { head, body }) = framing.next_frame() {
                if head.kind != FrameKind::Message {
                    continue;
                }
                let Some(bytes) = answer(head, decode(body).unwrap()) else {
                    stream.write_all(&out).await.unwrap();
                    return std::future::pending().await;
                };
                out.extend(bytes);
            }
            stream.write_all(&out).await.unwrap();
        }
    });
}

pub(crate) fn frame(head: FrameHead, reply: &Reply) -> Vec<u8> {
    PortFraming::default().seal(head, encode(reply), 0).unwrap()
}

pub(crate) fn hello() -> HelloResponse {
    HelloResponse {
        min: 1,
        max: 1,
        build: "guest".to_owned(),
        features: 0,
        init: true,
        bulk: false,
        incarnation: 1,
        clock_us: 0,
    }
}

/// The end of a command that sent so many bytes.
pub(crate) fn exited(total: u64) -> Reply {
    Reply::ExecExited(ExecExitedEvent {
        status: ExitStatus::Exited(0),
        output_held: false,
        cancelled: false,
        elapsed_us: 0,
        usage: ResourceUsage::default(),
        total,
    })
}
