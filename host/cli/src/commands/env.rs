//! `guestline env`: all that tests may ask for here.

use super::image::print;
use crate::args::{EnvArgs, GlobalArgs};
use crate::context::Context;
use crate::error::CommandError;
use crate::suites;
use guestline_harness::suite::{CapabilityName, Provided, Requirement, Side};
use guestline_harness::text;
use serde_json::json;
use std::fmt::Write as _;

/// Groups of which a host has so many that only their number is told, unless they are asked for.
const MANY: [&str; 4] = ["cpu", "kconfig", "module", "tool"];

pub(crate) fn run(global: &GlobalArgs, args: &EnvArgs) -> Result<u8, CommandError> {
    let context = Context::new()?;
    context.recipe(&args.image)?;
    let mut surroundings = suites::surroundings(global, &args.environment, &context)?;
    let environment = surroundings.image(&args.image);
    let is_wanted = |name: &CapabilityName| {
        let text = name.to_string();
        args.names.is_empty()
            || args
                .names
                .iter()
                .any(|wanted| is_below(wanted, &text) || is_below(wanted, name.path()))
    };
    if let [asked] = &args.names[..]
        && let Ok(requirement) = asked.parse::<Requirement>()
        && requirement.condition() != &guestline_harness::suite::Condition::Present
    {
        let missing = environment.missing(std::slice::from_ref(&requirement), Side::Guest);
        return match missing.first() {
            Some(unmet) => {
                print(&format!("{unmet}\n"))?;
                Ok(4)
            }
            None => {
                print(&format!("{requirement} is met\n"))?;
                Ok(0)
            }
        };
    }
    let mut text = String::new();
    let mut counts: Vec<(String, usize)> = Vec::new();
    let all: Vec<_> = environment.capabilities().filter(|(name, _)| is_wanted(name)).collect();
    for (name, capability) in &all {
        if args.json {
            let value = match &capability.provided {
                Provided::Flag => json!(true),
                Provided::Value(value) => json!(value.to_string()),
                Provided::Devices(devices) => {
                    json!(devices.iter().map(ToString::to_string).collect::<Vec<_>>())
                }
            };
            let doc = environment.doc(name, Side::Guest);
            let object = json!({ "name": name.to_string(), "value": value, "owner": capability.owner, "doc": doc });
            // Writing to a string does not fail.
            let _ = writeln!(text, "{object}");
            continue;
        }
        let group = name.path().split('.').next().unwrap_or_default();
        let is_one_of_many =
            name.path().contains('.') && name.path() != "cpu.model" && MANY.contains(&group);
        if args.names.is_empty() && is_one_of_many {
            let group = match name.side() {
                Some(side) => format!("{side}.{group}.*"),
                None => format!("{group}.*"),
            };
            match counts.iter_mut().find(|(known, _)| *known == group) {
                Some((_, count)) => *count += 1,
                None => counts.push((group, 1)),
            }
            continue;
        }
        let what = match &capability.provided {
            Provided::Flag => String::new(),
            Provided::Value(value) => format!("= {value}"),
            Provided::Devices(devices) => {
                let devices: Vec<_> = devices.iter().map(ToString::to_string).collect();
                format!("{}: {}", devices.len(), devices.join(", "))
            }
        };
        let owner = capability
            .owner
            .as_ref()
            .map(|owner| format!("  (owner: {owner})"))
            .unwrap_or_default();
        let line = format!("{:<32} {}{owner}", name.to_string(), text::one_line(&what, 100));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    for (group, count) in counts {
        let asked = group.trim_end_matches(".*");
        let _ = writeln!(text, "{group:<32} {count} of them: `guestline env {asked}` lists them");
    }
    if !args.json && args.names.is_empty() {
        for open in environment.open() {
            let _ = writeln!(text, "{:<32} known when the guest runs", format!("{open}.*"));
        }
    }
    print(&text)?;
    Ok(if all.is_empty() { 4 } else { 0 })
}

/// A name, or one below it.
fn is_below(group: &str, name: &str) -> bool {
    name.strip_prefix(group.trim_end_matches(".*"))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}
