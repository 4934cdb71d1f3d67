//! How the agent says no: errors as data, made in one place.

use guestline_files::describe;
use guestline_protocol::{ErrorKind, RemoteError};
use nix::errno::Errno;

/// The request makes no sense.
pub(crate) fn invalid(message: String) -> RemoteError {
    RemoteError::new(ErrorKind::Invalid, message)
}

/// The kernel refused: `what` it was about comes before the reason.
pub(crate) fn system(errno: Errno, what: &str) -> RemoteError {
    let message = format!("{what}: {}", describe(errno));
    RemoteError { kind: ErrorKind::System, errno: Some(errno as i32), message }
}

/// The error number behind an error of std; `EIO` where there is none.
pub(crate) fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
