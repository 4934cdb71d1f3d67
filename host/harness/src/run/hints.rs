//! What the words of a guest suggest.

use crate::text;
use guestline::capture::ConsoleLine;

/// What the console of a kernel that does not get to the agent says of its configuration.
pub(super) fn boot_hint(console: &[ConsoleLine]) -> Option<String> {
    const SAYS: [(&str, &str); 5] = [
        (
            "Unable to mount root fs",
            "it found no initramfs: CONFIG_BLK_DEV_INITRD (a packed one also wants CONFIG_RD_GZIP or its like)",
        ),
        ("No working init found", "it cannot run the agent: CONFIG_BINFMT_ELF and CONFIG_64BIT"),
        ("Failed to execute /init", "it cannot run the agent: CONFIG_BINFMT_ELF and CONFIG_64BIT"),
        (
            "unable to open an initial console",
            "CONFIG_TTY and CONFIG_SERIAL_8250_CONSOLE give it one",
        ),
        ("Out of memory", "more memory may do: --memory"),
    ];
    let said = |mark: &str| console.iter().any(|line| line.text.contains(mark));
    let known = SAYS.iter().find(|(mark, _)| said(mark)).map(|(_, hint)| *hint);
    let silent = "a kernel that says nothing may lack CONFIG_SERIAL_8250_CONSOLE";
    let hint = known.or(console.is_empty().then_some(silent))?;
    Some(format!("hint: {hint}"))
}

/// The program that a shell's or the agent's last complaint names: "sh: nginx: not found",
/// "/bin/sh: 1: nginx: Permission denied", "bash: line 1: nginx: command not found".
pub(super) fn missing_tool(output: &str, status: u8) -> Option<String> {
    let complaints: &[&str] = match status {
        127 => &[": not found", ": command not found", ": No such file or directory"],
        _ => &[
            ": Permission denied",
            ": may not be executed",
            ": no executable file",
            ": Exec format error",
        ],
    };
    output.lines().rev().find_map(|line| {
        let named = complaints.iter().find_map(|end| line.trim_end().strip_suffix(end))?;
        let tool = named.rsplit(": ").next()?.trim();
        (!tool.is_empty()).then(|| text::one_line(tool, 60))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_tool_that_a_shell_misses() {
        let tool = |output, status| missing_tool(output, status);
        assert_eq!(tool("sh: systemctl: not found\n", 127).as_deref(), Some("systemctl"));
        assert_eq!(tool("/bin/sh: 1: nginx: not found", 127).as_deref(), Some("nginx"));
        assert_eq!(tool("bash: line 1: x: command not found\nend", 127).as_deref(), Some("x"));
        assert_eq!(tool("nginx: not found", 127).as_deref(), Some("nginx"));
        assert_eq!(tool("sh: /etc/passwd: Permission denied", 126).as_deref(), Some("/etc/passwd"));
        assert_eq!(tool("something else", 127), None);
    }
}
