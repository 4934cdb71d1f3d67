//! `guestline cache verify`.

use super::{BROKEN, DAMAGED};
use crate::commands::image::print;
use crate::context::Context;
use crate::error::CommandError;
use crate::terminal::Progress;
use guestline::provision::{Finding, Removal, Verified};
use guestline::text;

pub(super) fn run(context: &Context, go_on: &dyn Fn() -> bool) -> Result<u8, CommandError> {
    let mut progress = Progress::new();
    progress.show("reading the cache …");
    let mut lost = None;
    let verified = context.cache().verify(go_on, &mut |finding| {
        progress.clear();
        lost = print(&line(finding)).err();
    });
    progress.clear();
    if let Some(error) = lost {
        return Err(error);
    }
    if go_on() {
        print(&summary(&verified))?;
    }
    Ok(status(&verified))
}

fn is_damaged(finding: &Finding) -> bool {
    finding.removal.is_some()
}

fn status(verified: &Verified) -> u8 {
    match &verified.findings[..] {
        [] => 0,
        findings if findings.iter().any(is_damaged) => DAMAGED,
        _ => BROKEN,
    }
}

fn line(finding: &Finding) -> String {
    let (what, why) = (text::printable(&finding.what), text::printable(&finding.why));
    match &finding.removal {
        Some(Removal::Removed) => format!("damaged  {what}: {why}; removed\n"),
        Some(Removal::InUse) => format!("damaged  {what}: {why}; stays, since it is in use\n"),
        Some(Removal::Failed(error)) => {
            format!("damaged  {what}: {why}; cannot be removed: {error}\n")
        }
        None => format!("unknown  {what}: {why}\n"),
    }
}

fn summary(verified: &Verified) -> String {
    let damaged = verified.findings.iter().filter(|finding| is_damaged(finding)).count();
    let mut text = format!("{} right, {damaged} damaged", verified.right);
    if verified.left_alone > 0 {
        text += &format!(", {} left alone", verified.left_alone);
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn what_is_found() {
        let finding = |what: &str, removal| Finding {
            what: what.to_owned(),
            why: "ram has another content".to_owned(),
            removal,
        };
        let no_disk = io::Error::from_raw_os_error(30);
        let mut verified = Verified {
            right: 3,
            left_alone: 1,
            findings: vec![
                finding("template 0123456789ab", Some(Removal::Removed)),
                finding("image tiny/0123456789ab", Some(Removal::InUse)),
                finding("template 123456789abc", Some(Removal::Failed(no_disk))),
                finding("template 23456789abcd", None),
            ],
        };
        let lines = verified.findings.iter().map(line).collect::<String>();
        insta::assert_snapshot!(lines + &summary(&verified));
        assert_eq!(status(&verified), DAMAGED);
        verified.findings.drain(..3);
        assert_eq!(status(&verified), BROKEN);
        verified.findings.clear();
        assert_eq!(status(&verified), 0);
    }
}
