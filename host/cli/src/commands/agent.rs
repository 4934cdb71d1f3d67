//! `guestline agent`: the guest agent that this program carries, for images that others build.

use crate::args::{AgentArgs, AgentCommand, GlobalArgs, InitArg};
use crate::context::agent;
use crate::error::CommandError;
use guestline::dirs::folder_of;
use guestline::image::embed::ServiceManager;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

pub(crate) fn run(global: &GlobalArgs, args: &AgentArgs) -> Result<u8, CommandError> {
    match &args.command {
        AgentCommand::Extract { file } => {
            extract("the agent", "guestline-agent", agent(global)?.bytes(), file)
        }
        AgentCommand::Unit { init, path } => {
            if !path.starts_with('/')
                || path.chars().any(|c| c.is_control() || " \"'\\%$`".contains(c))
            {
                let message = format!("--path `{path}` is no plain absolute path");
                return Err(CommandError::new(message));
            }
            super::image::print(&unit(*init, path))
        }
    }
}

fn unit(init: InitArg, path: &str) -> String {
    let manager = match init {
        InitArg::Systemd => ServiceManager::Systemd,
        InitArg::Openrc => ServiceManager::OpenRc,
        InitArg::Plain => ServiceManager::Plain,
    };
    manager.unit(path)
}

/// Writes a program, in a folder under this name: whole or not at all.
pub(super) fn extract(
    what: &str,
    name: &str,
    bytes: &[u8],
    file: &Path,
) -> Result<u8, CommandError> {
    if file == Path::new("-") {
        let mut stdout = io::stdout();
        if stdout.is_terminal() {
            let message = format!("{what} is a program, and standard output is a terminal");
            return Err(CommandError::new(message).hint("name a file, or send the output into one"));
        }
        return match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(0),
        };
    }
    let wrong = |error: io::Error| {
        CommandError::new(format!("cannot write {what} to `{}`: {error}", file.display()))
    };
    if file.is_dir() {
        return extract(what, name, bytes, &file.join(name));
    }
    let mut new = tempfile::NamedTempFile::new_in(folder_of(file)).map_err(wrong)?;
    new.write_all(bytes).map_err(wrong)?;
    new.as_file().set_permissions(std::fs::Permissions::from_mode(0o755)).map_err(wrong)?;
    new.persist(file).map_err(|error| wrong(error.error))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_files() {
        let all = [InitArg::Systemd, InitArg::Openrc, InitArg::Plain]
            .map(|init| unit(init, "/usr/local/sbin/guestline-agent"));
        insta::assert_snapshot!(all.join("────\n"));
    }

    #[test]
    fn the_agent_is_written_whole_and_may_be_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent");
        std::fs::write(&file, "old").unwrap();
        assert_eq!(extract("it", "guestline-agent", b"new", &file).unwrap(), 0);
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(extract("it", "guestline-agent", b"new", folder.path()).unwrap(), 0);
        assert!(folder.path().join("guestline-agent").exists());
        assert!(extract("it", "agent", b"new", Path::new("/nonexistent/agent")).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
