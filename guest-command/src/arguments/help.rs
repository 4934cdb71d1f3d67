//! The texts of `--help`.

use super::{VERBS, Verb};

const HEAD: &str = "\
Do something in a machine of the running test, or tell the test something

Usage: guest [-m NAME] [--json] VERB …

Verbs:
";

const TAIL: &str = "
Options:
  -m, --machine NAME   The machine; not needed where there is only one
      --json           One JSON object on stdout in place of everything else
  -h, --help           This help; of a verb: guest VERB --help
  -V, --version        The version

The test that this belongs to is found by GUESTLINE_SOCKET, which Guestline sets for what it runs.

Exit status: 0 done, 255 with a message when Guestline failed (also wrong usage), 124 the time was over;
of exec the command's own, of skip 77, of fail 1, of push and pull 1 when something could not be copied.
";

pub(super) fn all() -> String {
    let mut text = HEAD.to_owned();
    for verb in VERBS {
        text += &format!("  {:<9} {}\n", verb.word(), about(verb));
    }
    text + TAIL
}

pub(super) fn of(verb: Verb) -> String {
    let (usages, details) = details(verb);
    let mut text = format!("{}\n\n", about(verb));
    for (number, usage) in usages.iter().enumerate() {
        let head = if number == 0 { "Usage:" } else { "      " };
        text += &format!("{head} guest {usage}\n");
    }
    if !details.is_empty() {
        text += &format!("\n{details}\n");
    }
    text
}

fn about(verb: Verb) -> &'static str {
    match verb {
        Verb::Exec => "Run a command in a machine, with its output and exit status",
        Verb::Push => "Copy files of the host into a machine",
        Verb::Pull => "Copy files of a machine to the host",
        Verb::Wait => "Wait until something is so in a machine",
        Verb::Reboot => "Reboot a machine and wait until its agent answers again",
        Verb::Poweroff => "Power a machine off",
        Verb::Facts => "Print what a machine is, as JSON",
        Verb::Log => "Say something in the test's log",
        Verb::Skip => "End the test: it does not apply here",
        Verb::Fail => "End the test: it has failed",
        Verb::Sync => "Wait until every side of the test is at the same point",
        Verb::Send => "Leave a value for the other sides of the test",
        Verb::Await => "Wait for a value of another side, and print it",
    }
}

const COPY: &str = "\
As with cp: TO is a folder to copy into when it ends with / or is a folder already, else the copy's own
place. Folders are copied with all that is in them. Paths in the machine begin at its /.

Exit status: 0, 1 something could not be copied (it is named), 255 Guestline failed.";

fn details(verb: Verb) -> (&'static [&'static str], &'static str) {
    match verb {
        Verb::Exec => (
            &["[-m NAME] exec [OPTIONS] 'LINE'", "[-m NAME] exec [OPTIONS] -- PROGRAM [ARGUMENT]…"],
            "  -u, --user USER      As this user of the guest, by name or number
  -C, --cwd FOLDER     In this folder of the guest [default: /]
  -e, --env K=V        Set a variable of its environment; K alone takes it out
  -i, --stdin          Pass standard input on; else it has nothing to read
  -t, --timeout TIME   Kill it, with all that it started, after this time, as 90, 90s, 500ms, 2m

LINE is for the guest's shell. The end of this program ends the command, too.

Exit status: the command's own, 128 and the number for a signal that killed it, 127 no such program,
126 it cannot be executed, 124 it was killed after --timeout, 141 nobody reads its output, 255 with a
message when Guestline failed.",
        ),
        Verb::Push => (&["[-m NAME] push FROM… TO"], COPY),
        Verb::Pull => (&["[-m NAME] pull FROM… TO"], COPY),
        Verb::Wait => (
            &[
                "[-m NAME] wait [-t TIME] 'LINE'",
                "[-m NAME] wait [-t TIME] --port N | --file PATH | --unit NAME",
            ],
            "      LINE             Until this line for the guest's shell succeeds
      --port N         Until a TCP port of 127.0.0.1 in the guest takes connections
      --file PATH      Until something is at this path
      --unit NAME      Until this unit of systemd is active
  -t, --timeout TIME   Give up after this time, as 90, 90s, 500ms, 2m [default: 60 s]

When the time is over, the output of the last attempt is printed.

Exit status: 0, 124 the time is over, 255 Guestline failed.",
        ),
        Verb::Reboot => (
            &["[-m NAME] reboot [-t TIME]"],
            "  -t, --timeout TIME   Give up after this time, as 90, 90s, 500ms, 2m [default: 120 s]

The reboot is announced: it does not fail the test.

Exit status: 0, 124 the time is over, 255 Guestline failed.",
        ),
        Verb::Poweroff => (
            &["[-m NAME] poweroff"],
            "The end of the machine is announced: it does not fail the test.",
        ),
        Verb::Facts => (&["[-m NAME] facts"], ""),
        Verb::Log => (&["log TEXT…"], ""),
        Verb::Skip => (
            &["skip REASON…"],
            "\
The verdict counts, whatever the script returns later. Exit status 77, so that a script with `set -e`
ends; 255 when the verdict could not be told.",
        ),
        Verb::Fail => (
            &["fail REASON…"],
            "\
The verdict counts, whatever the script returns later. Exit status 1, so that a script with `set -e`
ends; 255 when the verdict could not be told.",
        ),
        Verb::Sync => (
            &["sync [-t TIME] NAME"],
            "  -t, --timeout TIME   Give up after this time, as 90, 90s, 500ms, 2m [default: 60 s]

Sides are the script on the host and each machine that has a script of its own. All must come before
any goes on; then the name can be used again.

Exit status: 0, 124 the time is over (who did not come is named), 255 Guestline failed.",
        ),
        Verb::Send => (
            &["send KEY=VALUE"],
            "The value takes the place of one that was there. It is for every side of this test, and for no other.",
        ),
        Verb::Await => (
            &["await [-t TIME] KEY"],
            "  -t, --timeout TIME   Give up after this time, as 90, 90s, 500ms, 2m [default: 60 s]

Does not wait when the value is there already.

Exit status: 0, 124 the time is over, 255 Guestline failed.",
        ),
    }
}
