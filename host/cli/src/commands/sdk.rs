//! `guestline sdk`: what scripts and tests use.

use super::agent::extract;
use crate::args::{SdkArgs, SdkCommand};
use crate::context::GUEST;
use crate::error::CommandError;
use std::path::Path;

/// The Python module.
pub(crate) const PYTHON: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/lib/guestline.py"));

pub(crate) fn run(args: &SdkArgs) -> Result<u8, CommandError> {
    match &args.command {
        SdkCommand::Python { output: None } => super::image::print(PYTHON),
        SdkCommand::Python { output: Some(file) } => write(file),
        SdkCommand::Guest { .. } if GUEST.is_empty() => {
            Err(CommandError::new("this build carries no static program `guest`")
                .hint("`make build` in the source tree builds one and puts it in"))
        }
        SdkCommand::Guest { output } => extract("`guest`", "guest", GUEST, output),
    }
}

fn write(file: &Path) -> Result<u8, CommandError> {
    let file = if file.is_dir() { file.join("guestline.py") } else { file.to_owned() };
    std::fs::write(&file, PYTHON).map_err(|error| {
        CommandError::new(format!("cannot write `{}`: {error}", file.display()))
    })?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_written_into_a_folder_and_to_a_file() {
        let folder = tempfile::tempdir().unwrap();
        for (file, found) in
            [(folder.path().to_owned(), "guestline.py"), (folder.path().join("x"), "x")]
        {
            let output = Some(file);
            run(&SdkArgs { command: SdkCommand::Python { output } }).unwrap();
            assert_eq!(std::fs::read_to_string(folder.path().join(found)).unwrap(), PYTHON);
        }
        let output = Some("/no/such/folder/x".into());
        assert!(run(&SdkArgs { command: SdkCommand::Python { output } }).is_err());
    }
}
