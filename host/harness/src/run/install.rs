//! Packages of the user's, installed into a machine before its tests: a layer of its template.
//!
//! What they need comes from the image: there is no network to the outside. What is missing is named.

use super::scratch::fixture_folder;
use crate::job::{ContentFile, InstallWanted};
use guestline::digest::Digest;
use guestline::provision::{Layer, LayerFiles, LeaseError, SetUpFailure};
use guestline_protocol::ExitStatus;
use std::path::PathBuf;

/// No status of dpkg(1).
const NO_DPKG: u8 = 101;
const LACKING: u8 = 102;

/// What dpkg says of a package that it cannot configure: `a depends on b (>= 1); however:`, then why not. Of one whose own
/// script failed, the reason follows a line with `dpkg: error processing`. The last line that is printed stands in the report.
const SCRIPT: &str = r#"# A busybox has a dpkg without a database.
[ -e /var/lib/dpkg/status ] && command -v dpkg > /dev/null || { echo 'the image has no dpkg'; exit 101; }
cd "$PLACE" || exit
said=$(LC_ALL=C DEBIAN_FRONTEND=noninteractive dpkg --install ./*.deb < /dev/null 2>&1)
status=$?
printf '%s\n' "$said"
if [ $status = 0 ]; then cd /; exec rm -r "$PLACE"; fi
lacks=$(printf '%s\n' "$said" | sed -n 's/^ *[^ ]* \(pre-\)\{0,1\}depends on \(.*\)[;.]\{0,1\}$/\2/p' |
    sed 's/[;.] however:$//; s/[;.]$//' | sort -u | tr '\n' ';' | sed 's/;$//; s/;/, /g')
if [ -n "$lacks" ]; then echo "the image lacks $lacks"; exit 102; fi
printf '%s\n' "$said" | sed -n '/^dpkg: error processing/{n;s/^ *//;p;q}'
exit $status"#;

/// "install a.deb, b.deb".
pub(super) fn said(wanted: &InstallWanted) -> String {
    let names: Vec<&str> = wanted.install.iter().map(|file| &*file.path).collect();
    format!("{PREFIX}{}", names.join(", "))
}

const PREFIX: &str = "install of ";

/// The layer that installs them; their files are in a folder of this host.
pub(super) fn layer(wanted: &InstallWanted, from: PathBuf) -> Layer {
    let digests: Vec<&Digest> =
        wanted.install.iter().map(|ContentFile { digest, .. }| digest).collect();
    let digest = Digest::of(&serde_json::to_vec(&digests).unwrap_or_default());
    let to = fixture_folder(".install");
    Layer {
        lines: vec![SCRIPT.to_owned()],
        name: Some(said(wanted)),
        files: vec![LayerFiles { digest, from, to: to.clone() }],
        env: vec![("PLACE".to_owned(), to)],
        ..Layer::default()
    }
}

/// Why packages were not installed.
pub(super) enum NotInstalled {
    /// It is the image's lack, in words.
    Image(String),
    /// It is theirs.
    Package(String),
}

impl NotInstalled {
    /// None where a machine could not be had for another reason.
    pub(super) fn of(error: &LeaseError) -> Option<Self> {
        let LeaseError::SetUp { step, failure } = error else { return None };
        let name = step.name.as_ref().filter(|name| name.starts_with(PREFIX))?;
        let SetUpFailure::Ended { status, output } = failure else {
            return Some(Self::Package(error.to_string()));
        };
        let last = output.lines().last().unwrap_or_default();
        let why = format!("{name}: {}", crate::text::one_line(last, 200));
        Some(match status {
            ExitStatus::Exited(NO_DPKG | LACKING) => Self::Image(why),
            _ => Self::Package(why),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_has_the_statuses_that_are_told_apart() {
        for status in [NO_DPKG, LACKING] {
            assert!(
                SCRIPT.contains(&format!("exit {status}; }}"))
                    || SCRIPT.contains(&format!("exit {status}; fi"))
            );
        }
    }
}
