//! Sockets of this host, forwarded as a guest's.

use super::*;
use nix::poll::{PollTimeout, poll};
use std::net::{TcpListener, TcpStream};

const CHANNEL: u32 = 1;

/// One turn of the poll loop: what the sockets say.
fn turn(sockets: &mut Sockets) -> Vec<Said> {
    let (mut fds, mut channels) = (Vec::new(), Vec::new());
    sockets.poll_fds(true, &mut fds, &mut channels);
    poll(&mut fds, PollTimeout::from(5000_u16)).unwrap();
    let found = fds.iter().map(|fd| fd.revents().unwrap());
    let ready: Vec<_> = channels.into_iter().zip(found).collect();
    let mut all = Vec::new();
    sockets.on_ready(&ready, &mut |_, said| all.push(said));
    all
}

fn until_the_last_word(sockets: &mut Sockets) -> Vec<Said> {
    let mut all = Vec::new();
    while sockets.has(CHANNEL) {
        all.extend(turn(sockets));
    }
    all
}

fn connect_to(listener: &TcpListener) -> (Sockets, TcpStream) {
    let mut sockets = Sockets::default();
    let port = listener.local_addr().unwrap().port();
    let address = SocketAddress::Tcp { host: "127.0.0.1".to_owned(), port };
    let connected = sockets.connect(CHANNEL, &ConnectRequest { address, credit: 1 << 20 }).unwrap();
    let (stream, _) = listener.accept().unwrap();
    if connected.is_none() {
        assert!(matches!(&turn(&mut sockets)[..], [Said::Reply(Reply::Connected(_))]));
    }
    (sockets, stream)
}

#[test]
fn an_error_comes_behind_the_data_and_says_how_much_that_was() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut sockets, mut stream) = connect_to(&listener);
    stream.write_all(&[7; 1000]).unwrap();
    // Closed like this, TCP says that it was broken off (socket(7), SO_LINGER).
    let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &at_once).unwrap();
    drop(stream);
    let said = until_the_last_word(&mut sockets);
    let data: usize = said
        .iter()
        .map(|said| match said {
            Said::Data(buffer) => buffer.len() - HEADROOM,
            Said::Reply(_) => 0,
        })
        .sum();
    assert_eq!(data, 1000);
    let [.., Said::Reply(Reply::End(end)), Said::Reply(Reply::Error(error))] = &said[..] else {
        panic!("no end and error");
    };
    assert_eq!((end.total, error.errno), (1000, Some(Errno::ECONNRESET as i32)));
}

#[test]
fn a_connection_that_fails_has_no_end_of_data() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mut sockets = Sockets::default();
    let address = SocketAddress::Tcp { host: "127.0.0.1".to_owned(), port };
    if sockets.connect(CHANNEL, &ConnectRequest { address, credit: 1 }).is_ok() {
        let said = until_the_last_word(&mut sockets);
        assert!(matches!(&said[..], [Said::Reply(Reply::Error(_))]));
    }
}
