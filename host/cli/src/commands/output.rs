//! A file that a command writes: standard output, a pipe or device, or a file that is there whole or as it was.

use crate::error::CommandError;
use guestline::dirs::folder_of;
use std::fs::Permissions;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Who may read a file that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readers {
    /// Its owner.
    Owner,
    /// Whom the umask lets.
    Usual,
}

/// Lets `write` write to a file, `-` being standard output; the outer error is wrong usage.
pub(crate) fn to<T, E>(
    file: &Path,
    what: &str,
    readers: Readers,
    write: impl FnOnce(&mut dyn Write) -> Result<T, E>,
) -> Result<Result<T, E>, CommandError> {
    if file == Path::new("-") {
        let stdout = io::stdout();
        if stdout.is_terminal() {
            let why = format!("{what} is no text, and standard output is a terminal");
            return Err(CommandError::new(why).hint("name a file, or send the output into one"));
        }
        return Ok(write(&mut BufWriter::new(stdout)));
    }
    let wrong = |error: io::Error| {
        CommandError::new(format!("cannot write {what} to `{}`: {error}", file.display()))
    };
    // What a link leads to is written, and not the link.
    let target = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    if target.is_dir() {
        return Err(wrong(io::ErrorKind::IsADirectory.into()));
    }
    if target.exists() && !target.is_file() {
        // A pipe or a device is no file that another could take the place of.
        let pipe = std::fs::File::options().write(true).open(&target).map_err(wrong)?;
        return Ok(write(&mut BufWriter::new(pipe)));
    }
    // Whole or not at all.
    let mode = match readers {
        Readers::Owner => 0o600,
        Readers::Usual => 0o666,
    };
    let mut new = tempfile::Builder::new();
    new.prefix(".guestline-").permissions(Permissions::from_mode(mode));
    let new = new.tempfile_in(folder_of(&target)).map_err(wrong)?;
    let result = write(&mut BufWriter::new(new.as_file()));
    if result.is_ok() {
        new.persist(&target).map_err(|error| wrong(error.error))?;
    }
    Ok(result)
}
