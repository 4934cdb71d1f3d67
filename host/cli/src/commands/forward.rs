//! `guestline forward`: sockets into a named machine, or out of it.

use crate::args::ForwardArgs;
use crate::error::CommandError;
use crate::machines::{self, Attached, Failure};
use crate::signals::Heeded;
use guestline::guest::{ForwardError, HostTarget};
use guestline::link::LinkError;
use guestline_protocol::{ByteBuf, SocketAddress};
use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;
use tokio::signal::unix::SignalKind;

/// How often the guest is asked whether it is still the same.
const LOOK: Duration = Duration::from_secs(2);

pub(crate) fn run(args: &ForwardArgs) -> Result<u8, CommandError> {
    let (here, there) = match args.from_guest {
        false => (&args.listen, &args.target),
        true => (&args.target, &args.listen),
    };
    let (here, there) = (host_address(here)?, guest_address(there)?);
    machines::run(|dirs| async move {
        let attached = machines::attach(dirs, &args.name).await?;
        let (mut interrupt, mut terminate, mut hangup) = (
            Heeded::listen(SignalKind::interrupt())?,
            Heeded::listen(SignalKind::terminate())?,
            Heeded::listen(SignalKind::hangup())?,
        );
        let forwarding = async {
            match args.from_guest {
                false => to_guest(&attached, &here, there).await,
                true => from_guest(&attached, here, there).await,
            }
        };
        tokio::select! {
            failure = forwarding => Err(failure),
            // To be interrupted is how this ends.
            () = interrupt.recv() => Ok(0),
            () = terminate.recv() => Ok(0),
            () = hangup.recv() => Ok(0),
        }
    })
}

async fn to_guest(attached: &Attached, here: &HostTarget, there: SocketAddress) -> Failure {
    let name = &attached.up.name;
    let mut forwarding = match attached.guest.forward(here, there.clone()).await {
        Ok(forwarding) => forwarding,
        Err(ForwardError::Link(error)) => return attached.up.explain(error).await,
        Err(error @ ForwardError::Listen { .. }) => {
            let failure = Failure::from(error);
            return match here {
                HostTarget::Unix(path) if path.exists() => {
                    failure.hint(format!("`{}` is there already", path.display()))
                }
                _ => failure,
            };
        }
    };
    say(&format!("{} is {} in {name}", forwarding.address(), in_words(&there)));
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            error = forwarding.trouble() => {
                let error = guestline::text::chain(&error);
                eprintln!("guestline: no connection can be accepted for now: {error}");
                continue;
            }
        }
        match attached.guest.ping().await {
            Ok(_) | Err(LinkError::NoAnswer { .. }) => {}
            Err(LinkError::Restarted) => {
                if let Some(failure) = again(attached).await {
                    return failure;
                }
            }
            Err(error) => return attached.up.explain(error).await,
        }
    }
}

async fn from_guest(attached: &Attached, here: HostTarget, there: SocketAddress) -> Failure {
    let name = &attached.up.name;
    loop {
        let mut listening = match attached.guest.listen(there.clone(), here.clone()).await {
            Ok(listening) => listening,
            Err(error) => return attached.up.explain(error).await,
        };
        let address = match (&there, listening.port) {
            (SocketAddress::Tcp { host, .. }, Some(port)) => {
                in_words(&SocketAddress::Tcp { host: host.clone(), port })
            }
            _ => in_words(&there),
        };
        say(&format!("{address} in {name} is {here}"));
        match listening.ended().await {
            LinkError::Restarted => {
                if let Some(failure) = again(attached).await {
                    return failure;
                }
            }
            error => return attached.up.explain(error).await,
        }
    }
}

/// The session is lost: waits until the guest is back, or tells why it is not.
async fn again(attached: &Attached) -> Option<Failure> {
    eprintln!(
        "{}; connections can be made again when it is back",
        attached.up.session_lost().await
    );
    match attached.guest.reconnect().await {
        Ok(_) => None,
        Err(error) => Some(attached.up.explain(error).await),
    }
}

fn say(line: &str) {
    // Nobody has to read it.
    let mut stdout = std::io::stdout();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

fn in_words(address: &SocketAddress) -> String {
    match address {
        SocketAddress::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
        SocketAddress::Tcp { host, port } => format!("{host}:{port}"),
        SocketAddress::Unix(path) => guestline::text::escape(path),
    }
}

/// An address on this host; a name is looked up here.
fn host_address(text: &str) -> Result<HostTarget, CommandError> {
    if text.contains('/') {
        return Ok(HostTarget::Unix(text.into()));
    }
    if let Ok(port) = text.parse::<u16>() {
        return Ok(HostTarget::Tcp(SocketAddr::from(([127, 0, 0, 1], port))));
    }
    let found = text.to_socket_addrs().map_err(|error| wrong(text).hint(error.to_string()))?;
    found.into_iter().next().map(HostTarget::Tcp).ok_or_else(|| wrong(text))
}

/// An address in the guest, which looks no names up.
fn guest_address(text: &str) -> Result<SocketAddress, CommandError> {
    if text.contains('/') {
        return Ok(SocketAddress::Unix(ByteBuf::from(text.as_bytes())));
    }
    if let Ok(port) = text.parse::<u16>() {
        return Ok(SocketAddress::Tcp { host: "127.0.0.1".to_owned(), port });
    }
    let literal = text.replacen("localhost:", "127.0.0.1:", 1);
    let address: SocketAddr = literal.parse().map_err(|_| {
        wrong(text).hint("in the machine an address is a number, such as 127.0.0.1:80 or [::1]:80")
    })?;
    Ok(SocketAddress::Tcp { host: address.ip().to_string(), port: address.port() })
}

fn wrong(text: &str) -> CommandError {
    CommandError::new(format!(
        "`{text}` is neither a port, nor ADDRESS:PORT, nor the path of a socket"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_ports_pairs_or_paths() {
        let tcp = |host: &str, port| SocketAddress::Tcp { host: host.to_owned(), port };
        assert_eq!(guest_address("80").unwrap(), tcp("127.0.0.1", 80));
        assert_eq!(guest_address("localhost:80").unwrap(), tcp("127.0.0.1", 80));
        assert_eq!(guest_address("[::1]:80").unwrap(), tcp("::1", 80));
        assert_eq!(
            guest_address("./s").unwrap(),
            SocketAddress::Unix(ByteBuf::from(b"./s".to_vec()))
        );
        assert_eq!(host_address("0").unwrap().to_string(), "127.0.0.1:0");
        assert_eq!(host_address("[::1]:80").unwrap().to_string(), "[::1]:80");
        assert_eq!(host_address("/tmp/s").unwrap(), HostTarget::Unix("/tmp/s".into()));
        for text in ["", "x", "70000", "example.org:80", "1.2.3.4"] {
            assert!(guest_address(text).is_err(), "{text}");
        }
    }
}
