//! A named machine that tests share the handling of.

use guestline_tests::{Guestline, Ran};

/// A machine `web` that is up; taken down when dropped.
pub(crate) struct Web(pub(crate) Guestline);

impl Web {
    pub(crate) fn up() -> Self {
        let web = Self(Guestline::new());
        let ran = web.0.run(&["up", "web"]);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        assert!(ran.stdout().starts_with("web is up: kernel "), "{}", ran.stdout());
        web
    }

    pub(crate) fn exec(&self, args: &[&str]) -> Ran {
        self.0.run(&[&["exec", "web"], args].concat())
    }

    /// What a shell in the machine prints.
    pub(crate) fn line(&self, line: &str) -> String {
        let ran = self.exec(&["--shell", "--", line]);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        ran.stdout().trim().to_owned()
    }

    /// How many processes of the machine have this in their command lines.
    pub(crate) fn count(&self, words: &str) -> usize {
        let (first, rest) = words.split_at(1);
        self.line(&format!("ps | grep -c '[{first}]{rest}' || true")).parse().unwrap()
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        let ran = self.0.run(&["ps", "--json"]);
        serde_json::from_str(ran.stdout().trim()).unwrap_or_default()
    }

    pub(crate) fn down(self) {
        let ran = self.0.run(&["down", "web"]);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        self.0.assert_nothing_left();
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        let _ = self.0.run(&["down", "--force", "--all"]);
    }
}
