//! The command `guest` inside a machine: the program, pushed on demand, and a socket that leads to the machine's side.

use guestline::guest::{FilesError, Guest, HostTarget, Listening};
use guestline_protocol::{ByteBuf, SocketAddress};
use std::path::Path;

/// The folder of [`enter`] in a machine.
pub const GUEST_FOLDER: &str = "/run/guestline";

/// Puts the static program into a folder of a guest, as `guest`, and listens there on `socket`, for as long as what is
/// returned lives. Connections go to the socket of this host on which [`super::serve`] serves the machine's side. The
/// folder is to be in the `PATH` of the script there, and the socket its `GUESTLINE_SOCKET`. To be done again after a
/// reboot.
///
/// # Errors
/// [`FilesError`].
pub async fn enter(
    guest: &Guest,
    folder: &str,
    program: &[u8],
    socket: &Path,
) -> Result<Listening, FilesError> {
    guest.make_folder(folder.as_bytes(), 0o755, true).await?;
    guest.write(format!("{folder}/guest").as_bytes(), program, 0o755).await?;
    let inside = format!("{folder}/socket").into_bytes();
    // One that a listener before left behind.
    guest.remove(&inside, false, true).await?;
    let inside = SocketAddress::Unix(ByteBuf::from(inside));
    Ok(guest.listen(inside, HostTarget::Unix(socket.to_owned())).await?)
}
