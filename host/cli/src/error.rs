//! Why a command could not be carried out: wrong usage or configuration, printed with what mends it.

use std::error::Error;

/// A wrong command line or configuration. What breaks later is an outcome, not this.
#[derive(Debug)]
pub(crate) struct CommandError {
    source: Box<dyn Error + Send + Sync>,
    hints: Vec<String>,
}

impl CommandError {
    pub(crate) fn new(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: source.into(), hints: Vec::new() }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// With what mends it, where that is known.
    pub(crate) fn hints(self, hints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        hints.into_iter().fold(self, Self::hint)
    }

    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("error: {}\n", self.source);
        let mut said = self.source.to_string();
        let mut cause = self.source.source();
        while let Some(error) = cause {
            // A transparent error says what its source says.
            if error.to_string() != said {
                text += &format!("caused by: {error}\n");
            }
            said = error.to_string();
            cause = error.source();
        }
        for hint in &self.hints {
            text += &format!("hint: {hint}\n");
        }
        text
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for CommandError {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_and_hints_have_lines_of_their_own() {
        let error = std::str::from_utf8(&[0xff][..]).map_err(std::io::Error::other).unwrap_err();
        let text = CommandError::new(error).hint("write UTF-8").to_text();
        assert_eq!(
            text,
            "error: invalid utf-8 sequence of 1 bytes from index 0\nhint: write UTF-8\n"
        );
    }
}
