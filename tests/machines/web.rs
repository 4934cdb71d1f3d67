//! A named machine that tests share the handling of.

use guestline::dirs::Dirs;
use guestline::guest::Guest;
use guestline::supervise::attach;
use guestline_tests::{Guestline, Ran, shared_cache};
use std::time::Duration;

/// A machine `web` that is up; taken down when dropped.
pub(crate) struct Web(pub(crate) Guestline);

impl Web {
    pub(crate) fn up() -> Self {
        Self::up_by(Guestline::new())
    }

    pub(crate) fn up_by(guestline: Guestline) -> Self {
        Self::up_with(guestline, &[])
    }

    pub(crate) fn up_with(guestline: Guestline, options: &[&str]) -> Self {
        let web = Self(guestline);
        let ran = web.0.run(&[&["up", "web"], options].concat());
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

    /// Mounts a new ext4 of so many MiB on /mnt.
    pub(crate) fn mount_ext4(&self, mib: u32) {
        self.line(&format!(
            "modprobe loop && truncate -s {mib}M /tmp/disk && mke2fs -F /tmp/disk > /dev/null && \
             losetup /dev/loop0 /tmp/disk && mount -t ext4 /dev/loop0 /mnt"
        ));
    }

    /// How many processes of the machine have this in their command lines.
    pub(crate) fn count(&self, words: &str) -> usize {
        let (first, rest) = words.split_at(1);
        self.line(&format!("ps | grep -c '[{first}]{rest}' || true")).parse().unwrap()
    }

    /// A session with the guest, of this process.
    pub(crate) async fn session(&self) -> Guest {
        let home = self.0.home();
        let dirs = Dirs {
            cache: shared_cache().join("guestline"),
            state: home.join("state/guestline"),
            config: home.join("config/guestline"),
            runtime: home.join("run/guestline"),
        };
        attach(&dirs, &"web".parse().unwrap(), Duration::from_secs(60)).await.unwrap().0
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
