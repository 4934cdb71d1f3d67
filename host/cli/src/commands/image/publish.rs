//! `guestline image publish`: images into a folder that any web server can hold.

use super::{BROKEN, DAMAGED, WRONG_MANIFEST, all_recipes, interruptible, made, print, tell};
use crate::args::{GlobalArgs, ImagePublishArgs};
use crate::context::{Context, agent};
use crate::error::CommandError;
use guestline::image::share::{IndexError, PublishError, Published, Shared, SigningKey, publish};
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) fn run(
    context: &Context,
    global: &GlobalArgs,
    args: &ImagePublishArgs,
) -> Result<u8, CommandError> {
    let (images, left_out) = match args.names.is_empty() {
        // Who only removes adds nothing.
        true if !args.remove.is_empty() => (Vec::new(), 0),
        true => all(context, global)?,
        false => {
            let made = args.names.iter().map(|name| made(context, global, name));
            let made = made.map(|made| made.map(|(recipe, image)| Shared { image, recipe }));
            (made.collect::<Result<_, _>>()?, 0)
        }
    };
    let (key, is_new) = match &args.key {
        Some(path) => (SigningKey::from_file(path)?, false),
        None => SigningKey::from_own_file(&context.dirs.state.join("keys/images.key"))?,
    };
    if is_new {
        let path = context.dirs.state.join("keys/images.key");
        eprintln!("a key to sign with was made: {}", path.display());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let what = args.folder.display().to_string();
    interruptible(&what, |cancel| {
        let published = publish(&args.folder, &images, &args.remove, &key, now, cancel);
        let error = match published {
            Ok(published) => {
                print(&told(&published, args, &key))?;
                return Ok(left_out);
            }
            Err(error) => error,
        };
        let hint = error.hint();
        let status = match &error {
            PublishError::NoManifest { .. } | PublishError::NotThere { .. } => {
                let error = CommandError::new(error);
                return Err(error.hints(hint));
            }
            PublishError::There { source, .. } => match **source {
                IndexError::OtherKey { .. } => 2,
                _ => DAMAGED,
            },
            PublishError::Damaged { .. } => DAMAGED,
            _ => BROKEN,
        };
        if !cancel.is_cancelled() {
            tell(&format!("nothing was published at `{what}`"), &error, hint);
        }
        Ok(status)
    })
}

/// All images that are made. What cannot be used, which is said, is left out; then with the status of that.
fn all(context: &Context, global: &GlobalArgs) -> Result<(Vec<Shared>, u8), CommandError> {
    let (store, agent) = (context.store(), agent(global)?);
    let (recipes, is_wrong) = all_recipes(context);
    let mut left_out = if is_wrong { WRONG_MANIFEST } else { 0 };
    let mut images = Vec::new();
    for recipe in recipes {
        match store.find(&recipe, &agent) {
            Ok(Some(image)) => images.push(Shared { image, recipe }),
            Ok(None) => {}
            Err(error) => {
                tell(&format!("image {} is left out", recipe.name), &error, error.hint());
                left_out = DAMAGED;
            }
        }
    }
    match images.is_empty() {
        false => Ok((images, left_out)),
        true => Err(CommandError::new("no image is made that could be published")
            .hint("make one: guestline image build tiny")),
    }
}

fn told(published: &Published, args: &ImagePublishArgs, key: &SigningKey) -> String {
    let mut text = String::new();
    for (word, names) in [
        ("new    ", &published.new),
        ("there  ", &published.unchanged),
        ("removed", &published.removed),
    ] {
        for name in names {
            text += &format!("{word}  image {name}\n");
        }
    }
    text + &format!(
        "{} files written to {}, signed with the key {}\n\
         others take them so: guestline image pull NAME --from URL --key {}\n",
        published.files,
        args.folder.display(),
        key.public().id(),
        key.public(),
    )
}
