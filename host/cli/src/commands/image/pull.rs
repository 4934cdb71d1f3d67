//! `guestline image pull`, and `list --from`: published images.

use super::import::{self, status};
use super::{BROKEN, DAMAGED, interruptible, print, tell};
use crate::args::{GlobalArgs, ImagePullArgs, SourceArgs};
use crate::context::Context;
use crate::error::CommandError;
use crate::table::table;
use crate::terminal::Progress;
use guestline::image::share::{
    FetchError, IndexError, Offer, Offers, PublicKey, PullError, PullTerms, Source,
};
use guestline::text::{self, size};
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How much there is of an image is shown so often.
const REFRESH: Duration = Duration::from_millis(100);

pub(super) fn run(
    context: &Context,
    global: &GlobalArgs,
    args: &ImagePullArgs,
) -> Result<u8, CommandError> {
    if args.names.is_empty() {
        return list(context, &args.source, false);
    }
    if args.name.is_some() && args.names.len() > 1 {
        return Err(CommandError::new("--as gives one image another name, and several are named"));
    }
    let (source, keys) = trusted(context, &args.source)?;
    let images = context.images(global)?;
    interruptible(&args.names.join(" "), |cancel| {
        let progress = RefCell::new(Progress::new());
        let ended = with_offers(&source, &keys, context, &args.source, cancel, |offers| {
            // All are looked up before one is fetched.
            for name in &args.names {
                offers.find(name)?;
            }
            for name in &args.names {
                let shown = Cell::new(None::<Instant>);
                let tell = |step: &str| {
                    if shown.get().is_none_or(|at| at.elapsed() >= REFRESH) {
                        shown.set(Some(Instant::now()));
                        progress.borrow_mut().show(&format!("image {name}: {step}"));
                    }
                };
                let (allow_older, tell) = (args.source.allow_older, &tell);
                let terms = PullTerms { cancel, allow_older, tell };
                let pulled = images.pull(offers, name, args.name.as_deref(), &terms);
                progress.borrow_mut().clear();
                let pulled = pulled?;
                let told = import::told(&pulled.received);
                // A reader that went away has what it wants; the image is there all the same.
                let _ = print(&match pulled.fetched {
                    0 => told,
                    bytes => format!("{told}       {} fetched from {source}\n", size(bytes)),
                });
            }
            context.cache().evict(context.limit);
            Ok(0)
        });
        progress.borrow_mut().clear();
        ended
    })
}

/// What is published somewhere.
pub(super) fn list(context: &Context, args: &SourceArgs, json: bool) -> Result<u8, CommandError> {
    let (source, keys) = trusted(context, args)?;
    interruptible(&source.to_string(), |cancel| {
        with_offers(&source, &keys, context, args, cancel, |offers| {
            // A reader that went away has what it wants.
            let _ = print(&match json {
                true => offers.images.iter().map(object).collect(),
                false => rows(&offers.images),
            });
            Ok(0)
        })
    })
}

/// Where images come from, and the keys that are trusted.
fn trusted(context: &Context, args: &SourceArgs) -> Result<(Source, Vec<PublicKey>), CommandError> {
    let configured = &context.published;
    let Some(from) = args.from.as_ref().or(configured.from.as_ref()) else {
        return Err(CommandError::new("it is not said where images are published")
            .hint("--from URL says it, or `from = \"URL\"` below [images] in guestline.toml"));
    };
    let source = Source::parse(from)
        .map_err(|why| CommandError::new(format!("`{from}` is no source of images: {why}")))?;
    let given = match args.keys.is_empty() {
        true => &configured.keys,
        false => &args.keys,
    };
    let keys = given.iter().map(|key| PublicKey::parse(key)).collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() {
        return Err(CommandError::new(format!(
            "no key is known that would tell who signed what is at `{source}`"
        ))
        .hint("ask who publishes there for the public key, another way than from there: `guestline image publish` prints it")
        .hint("then: --key KEY, or `keys = [\"KEY\"]` below [images] in guestline.toml"));
    }
    Ok((source, keys))
}

/// Does something with what is published; says why not, where it cannot.
fn with_offers(
    source: &Source,
    keys: &[PublicKey],
    context: &Context,
    args: &SourceArgs,
    cancel: &CancellationToken,
    run: impl FnOnce(&Offers) -> Result<u8, PullError>,
) -> Result<u8, CommandError> {
    let terms = PullTerms { cancel, allow_older: args.allow_older, tell: &|_| () };
    let offers = context.store().offers(source, keys, &terms);
    let error = match offers.and_then(|offers| run(&offers)) {
        Ok(status) => return Ok(status),
        Err(_) if cancel.is_cancelled() => return Ok(BROKEN),
        Err(error) => error,
    };
    let hint = error.hint();
    let status = match &error {
        PullError::Unknown { .. } | PullError::Index(IndexError::None { .. }) => {
            let error = CommandError::new(error);
            return Err(error.hints(hint));
        }
        PullError::Index(IndexError::Fetch(error)) | PullError::Fetch(error) => match error {
            FetchError::Digest { .. } | FetchError::TooLong { .. } => DAMAGED,
            _ => BROKEN,
        },
        PullError::Index(_) | PullError::Older { .. } | PullError::Format { .. } => DAMAGED,
        PullError::Receive(error) => status(error),
        PullError::NoRoom { .. } | PullError::Memory { .. } => BROKEN,
    };
    tell(&format!("cannot pull from `{source}`"), &error, hint);
    Ok(status)
}

fn rows(offers: &[Offer]) -> String {
    let mut rows = vec![["NAME", "DIGEST", "SIZE", "KERNEL", "WHAT"].map(str::to_owned)];
    rows.extend(offers.iter().map(|offer| {
        [
            offer.name.clone(),
            offer.digest.short().to_owned(),
            format!("{:.1} MB", offer.size as f64 / 1e6),
            text::one_line(&offer.kernel, 40),
            text::one_line(&offer.summary, 80),
        ]
    }));
    table(&rows)
}

/// One object of `--json`.
fn object(offer: &Offer) -> String {
    format!(
        "{}\n",
        json!({
            "name": offer.name, "summary": offer.summary, "digest": offer.digest, "size": offer.size,
            "kernel": offer.kernel, "agent": offer.agent, "provides": offer.provides, "owner": offer.owner,
            "licence": offer.licence, "format": offer.image_format, "files": offer.files, "sbom": offer.sbom,
        })
    )
}
