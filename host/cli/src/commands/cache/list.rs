//! `guestline cache list` and `du`.

use crate::commands::image::print;
use crate::context::Context;
use crate::error::CommandError;
use crate::machines::span;
use crate::table::table;
use guestline::provision::{CacheEntry, Condition, Content, TemplateRecord};
use guestline::text::{self, size};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) fn list(context: &Context, json: bool) -> Result<u8, CommandError> {
    let entries = context.cache().entries();
    print(&match json {
        true => entries.iter().map(|entry| format!("{}\n", object(entry))).collect(),
        false => rows(&entries, SystemTime::now()),
    })
}

pub(super) fn du(context: &Context) -> Result<u8, CommandError> {
    print(&usage(&context.cache().entries(), context.limit))
}

fn rows(entries: &[CacheEntry], now: SystemTime) -> String {
    let mut rows = vec![["KIND", "ID", "WHAT", "SIZE", "USED", "STATE"].map(str::to_owned)];
    rows.extend(entries.iter().map(|entry| {
        [
            entry.content.kind().to_owned(),
            text::one_line(&entry.id, 60),
            what(&entry.content),
            size(entry.bytes),
            format!("{} ago", span(now.duration_since(entry.used).unwrap_or_default())),
            state(entry).to_owned(),
        ]
    }));
    let mut text = table(&rows);
    // Why something is damaged does not fit the table.
    for entry in entries {
        if let Condition::Damaged(why) = &entry.condition {
            text += &format!("{}: {}\n", name(entry), text::printable(why));
        }
    }
    text
}

/// "template 0123456789ab", "image tiny/0123456789ab", "packages".
pub(super) fn name(entry: &CacheEntry) -> String {
    match entry.content {
        Content::Packages { .. } | Content::Downloads => entry.content.kind().to_owned(),
        _ => format!("{} {}", entry.content.kind(), text::one_line(&entry.id, 60)),
    }
}

/// A few words about it.
fn what(content: &Content) -> String {
    match content {
        Content::Template(Some(record)) => template(record),
        Content::Image(Some(manifest)) => {
            format!("kernel {}", text::one_line(&manifest.kernel_release, 40))
        }
        Content::Template(None) | Content::Image(None) => "-".to_owned(),
        Content::Packages { count: 1 } => "1 package".to_owned(),
        Content::Packages { count } => format!("{count} packages"),
        Content::Kernel => "unpacked for QEMU".to_owned(),
        Content::Modules => "of a kernel of yours".to_owned(),
        Content::Lists => "what apt knows of this suite".to_owned(),
        Content::Downloads => "parts of files of images".to_owned(),
    }
}

/// "tiny, 256M, QEMU 10.0".
pub(super) fn template(record: &TemplateRecord) -> String {
    let memory = match record.memory_mib {
        mib if mib >= 1024 && mib % 1024 == 0 => format!("{}G", mib / 1024),
        mib => format!("{mib}M"),
    };
    let (image, qemu) = (text::one_line(&record.image, 40), text::one_line(&record.qemu, 20));
    let mut words = format!("{image}, {memory}, QEMU {qemu}");
    if record.key.kernel.is_some() {
        words += ", own kernel";
    }
    match record.key.layers.len() {
        0 => {}
        1 => words += ", 1 layer",
        layers => words += &format!(", {layers} layers"),
    }
    words
}

fn state(entry: &CacheEntry) -> &'static str {
    match &entry.condition {
        Condition::Ready if entry.in_use => "in use",
        Condition::Ready => "ready",
        Condition::Damaged(_) => "damaged",
        Condition::Newer => "newer",
        Condition::Foreign => "another user's",
        Condition::Making => "being made",
        Condition::LeftOver => "left over",
    }
}

/// One object of `--json`.
fn object(entry: &CacheEntry) -> Value {
    let used = entry.used.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut object = json!({
        "kind": entry.content.kind(),
        "id": entry.id,
        "bytes": entry.bytes,
        "used_us": u64::try_from(used.as_micros()).unwrap_or(u64::MAX),
        "in_use": entry.in_use,
    });
    let more = match &entry.content {
        Content::Template(Some(record)) => json!({
            "image": record.image,
            "kernel_release": record.kernel_release,
            "memory_mib": record.memory_mib,
            "qemu": record.qemu,
            "own_kernel": record.key.kernel.is_some(),
            "layers": record.key.layers.len(),
            "made_us": record.made_us,
        }),
        Content::Image(Some(manifest)) => json!({
            "image": manifest.name,
            "kernel_release": manifest.kernel_release,
            "digest": manifest.digest(),
        }),
        Content::Packages { count } => json!({ "count": count }),
        Content::Template(None)
        | Content::Image(None)
        | Content::Kernel
        | Content::Modules
        | Content::Lists
        | Content::Downloads => {
            json!({})
        }
    };
    let condition = serde_json::to_value(&entry.condition).unwrap_or_default();
    if let Value::Object(object) = &mut object {
        for value in [more, condition] {
            object.extend(value.as_object().cloned().unwrap_or_default());
        }
    }
    object
}

fn usage(entries: &[CacheEntry], limit: u64) -> String {
    let of = |kind: &str| {
        let all = entries.iter().filter(|entry| entry.content.kind() == kind);
        all.fold((0, 0_u64), |(count, bytes), entry| (count + 1, bytes.saturating_add(entry.bytes)))
    };
    let all = entries.iter().map(|entry| entry.bytes).fold(0, u64::saturating_add);
    let row = |kind: &str, name: &str, is_counted: bool| {
        let (count, bytes) = of(kind);
        let count = if is_counted { count.to_string() } else { String::new() };
        [name.to_owned(), count, size(bytes)]
    };
    let mut text = table(&[
        row("template", "templates", true),
        row("image", "images", true),
        row("kernel", "kernels", true),
        row("modules", "modules", true),
        row("packages", "packages", false),
        row("lists", "lists", true),
        ["in all".to_owned(), String::new(), size(all)],
        ["limit".to_owned(), String::new(), size(limit)],
    ]);
    if all > limit {
        text += "over the limit: `guestline cache prune` removes what was used least recently\n";
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use guestline::digest::Digest;
    use std::time::Duration;

    fn record(layers: usize) -> TemplateRecord {
        let digest = Digest::of(b"x");
        serde_json::from_value(json!({
            "key": {
                "format": 1, "image": digest, "agent": digest, "kernel": null, "cmdline": "quiet",
                "machine": "-m\n256M", "host_cpu": null, "qemu": digest, "layers": vec![["true"]; layers],
            },
            "image": "tiny", "kernel_release": "6.1.0-56-cloud-amd64", "qemu": "10.0", "memory_mib": 256,
            "guestline": "0.1.0", "made_us": 1, "ready_us": 2, "quiet_us": 3, "quiet": true,
        }))
        .unwrap()
    }

    /// Used so many seconds after 1970.
    pub(in super::super) fn entries() -> Vec<CacheEntry> {
        let used = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let template = |layers| Content::Template(Some(Box::new(record(layers))));
        let image = serde_json::from_value(json!({
            "format": 1, "name": "tiny", "recipe": Digest::of(b"r"), "agent": Digest::of(b"a"), "packages": [],
            "kernel_release": "6.1.0-56-cloud-amd64", "cmdline": "quiet", "memory_mib": 256, "files": [],
            "warm_up": null, "ready": "agent", "shell": "/bin/sh", "provides": [], "owner": "", "licence": "",
        }));
        let image = Content::Image(Some(Box::new(image.unwrap())));
        let damaged = Condition::Damaged("ram was written to".to_owned());
        vec![
            CacheEntry::example(
                template(0),
                "0123456789ab",
                97_700_000,
                used(90),
                Condition::Ready,
            )
            .in_use(),
            CacheEntry::example(template(2), "123456789abc", 99_000_000, used(40), damaged),
            CacheEntry::example(
                Content::Template(None),
                "templates/2",
                4_096,
                used(0),
                Condition::Newer,
            ),
            CacheEntry::example(image, "tiny/23456789abcd", 62_000_000, used(90), Condition::Ready),
            CacheEntry::example(
                Content::Image(None),
                "tiny/.making-x",
                0,
                used(0),
                Condition::LeftOver,
            ),
            CacheEntry::example(
                Content::Packages { count: 2 },
                "-",
                28_000_000,
                used(10),
                Condition::Ready,
            ),
        ]
    }

    #[test]
    fn a_table_of_what_is_kept() {
        insta::assert_snapshot!(rows(&entries(), UNIX_EPOCH + Duration::from_secs(100)));
        assert_eq!(rows(&[], UNIX_EPOCH), "KIND  ID  WHAT  SIZE  USED  STATE\n");
    }

    #[test]
    fn objects_of_what_is_kept() {
        let objects =
            entries().iter().map(|entry| format!("{}\n", object(entry))).collect::<String>();
        insta::assert_snapshot!(objects);
    }

    #[test]
    fn how_much_room_it_takes() {
        let all = entries();
        insta::assert_snapshot!(format!("{}──\n{}", usage(&all, 10 << 30), usage(&all, 100 << 20)));
    }
}
