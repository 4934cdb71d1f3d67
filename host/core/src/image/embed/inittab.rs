//! Lines of an inittab: of sysvinit (inittab(5)), and of busybox (its `examples/inittab`).

/// Whose inittab it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `ID:RUNLEVELS:ACTION:COMMAND`.
    Sysv,
    /// `TTY::ACTION:COMMAND`; a system may have none.
    Busybox,
}

/// What busybox does where there is no inittab: with one, it has to be said (busybox `init/init.c`).
const BUSYBOX_DEFAULTS: &str = "\
::sysinit:/etc/init.d/rcS
::askfirst:-/bin/sh
tty2::askfirst:-/bin/sh
tty3::askfirst:-/bin/sh
tty4::askfirst:-/bin/sh
::restart:/sbin/init
::ctrlaltdel:/sbin/reboot
::shutdown:/sbin/swapoff -a
::shutdown:/bin/umount -a -r
";

impl Dialect {
    /// The lines that have the agent started; with the modules that its port needs, where nothing else loads them.
    pub(super) fn lines(self, agent: &str, modules: &[&str]) -> Vec<String> {
        match self {
            Self::Sysv => vec![format!("gl:2345:respawn:{agent}")],
            Self::Busybox => {
                let load = modules.iter().map(|name| format!("::sysinit:/sbin/modprobe {name}"));
                load.chain([format!("::respawn:{agent}")]).collect()
            }
        }
    }

    /// The whole of an inittab where there is none.
    pub(super) fn new_file(self, lines: &[String]) -> String {
        let before = match self {
            Self::Sysv => "",
            Self::Busybox => BUSYBOX_DEFAULTS,
        };
        before.to_owned() + &added("", lines)
    }
}

/// A text with lines after its own.
pub(super) fn added(text: &str, lines: &[String]) -> String {
    let mut text = text.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for line in lines {
        text += line;
        text.push('\n');
    }
    text
}

/// A text without these lines; `cut` when the one before them had no end.
pub(super) fn removed(text: &str, lines: &[String], cut: bool) -> String {
    let kept = |line: &&str| !lines.iter().any(|ours| ours == line.trim_end_matches('\n'));
    let mut text: String = text.split_inclusive('\n').filter(kept).collect();
    if cut && text.ends_with('\n') {
        text.pop();
    }
    text
}

/// Has a text this line?
pub(super) fn has(text: &str, line: &str) -> bool {
    text.lines().any(|has| has == line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_and_go() {
        let lines = Dialect::Busybox.lines("/a", &["virtio_console"]);
        assert_eq!(lines, ["::sysinit:/sbin/modprobe virtio_console", "::respawn:/a"]);
        for text in ["", "a\n", "a", "a\n\nb", "a\n\n"] {
            let more = added(text, &lines);
            assert!(has(&more, "::respawn:/a") && more.starts_with(text));
            let cut = !text.is_empty() && !text.ends_with('\n');
            assert_eq!(removed(&more, &lines, cut), text);
        }
    }
}
