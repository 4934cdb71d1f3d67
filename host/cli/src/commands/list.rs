//! `guestline list`: what would run, and what could not.

use super::image::print;
use crate::args::{GlobalArgs, ListArgs};
use crate::context::Context;
use crate::error::CommandError;
use crate::suites::{self, Selected};
use guestline_harness::plan::{Fit, Item, Plan, PlanTerms};
use guestline_harness::suite::settings::On;
use guestline_harness::suite::test::shown;
use guestline_harness::text;
use serde_json::json;
use std::fmt::Write as _;
use tokio_util::sync::CancellationToken;

/// There is nothing of what was asked for.
const NONE: u8 = 4;

pub(crate) fn run(global: &GlobalArgs, args: &ListArgs) -> Result<u8, CommandError> {
    let context = Context::new()?;
    let selected = suites::select(&args.select, &context, &CancellationToken::new())?;
    let terms = PlanTerms {
        target: args.select.target.word(),
        ..suites::plain_terms(suites::overrides(&args.select)?)
    };
    let mut surroundings = suites::surroundings(global, &args.select.environment, &context)?;
    let mut plan = selected.plan(&args.select, terms, &mut surroundings)?;
    for warning in &plan.warnings {
        eprintln!("warning: {warning}");
    }
    if let Some(name) = &args.why {
        plan.retain(|item| item.test.name == *name || item.name() == *name);
        if plan.items.is_empty() {
            return Err(CommandError::new(format!("there is no test `{name}` here"))
                .hint("`guestline list` lists them"));
        }
    }
    if args.compatible || args.incompatible {
        plan.retain(|item| (item.fit == Fit::Fits) == args.compatible);
    }
    let text = match (args.json, &args.why) {
        (true, _) => as_json(&plan),
        (false, Some(_)) => why(&plan),
        (false, None) => as_text(&plan, &selected, args),
    };
    print(&text)?;
    Ok(if plan.items.is_empty() { NONE } else { 0 })
}

fn kind(item: &Item) -> &'static str {
    match (item.test.kind.word(), item.test.on()) {
        ("script", On::Host) => "host script",
        ("script", On::Both) => "script on both",
        ("check", On::Host) => "host check",
        (word, _) => word,
    }
}

fn as_text(plan: &Plan, selected: &Selected, args: &ListArgs) -> String {
    let width = plan.items.iter().map(|item| item.name().len()).max().unwrap_or(0).min(60);
    let mut text = String::new();
    for item in &plan.items {
        let needs: Vec<_> =
            item.test.settings.requires.iter().flatten().map(ToString::to_string).collect();
        let needs =
            if needs.is_empty() { String::new() } else { format!("needs {}", needs.join(", ")) };
        let what = match &item.fit {
            Fit::Fits => needs,
            Fit::Lacks(lacks) => {
                let lacks: Vec<_> = lacks.iter().map(ToString::to_string).collect();
                format!("incompatible: {}", lacks.join("; "))
            }
        };
        let line = format!("{:<width$}  {:<12}  {what}", item.name(), kind(item));
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    for none in selected.found.none.iter().filter(|none| args.all || none.is_meant) {
        let _ = writeln!(text, "no test: {} ({})", text::printable(&shown(&none.file)), none.why);
    }
    let (tests, variants) = (plan.tests(), plan.items.len());
    let lacking = plan.items.iter().filter(|item| item.fit != Fit::Fits).count();
    let _ = write!(text, "{tests} tests");
    if variants != tests {
        let _ = write!(text, ", {variants} variants");
    }
    if lacking > 0 && !args.incompatible {
        let _ = write!(text, ", {lacking} incompatible here");
    }
    text.push('\n');
    text
}

fn as_json(plan: &Plan) -> String {
    let mut text = String::new();
    for item in &plan.items {
        let settings = &item.test.settings;
        let lacks = match &item.fit {
            Fit::Fits => Vec::new(),
            Fit::Lacks(lacks) => lacks.iter().map(ToString::to_string).collect(),
        };
        let requires: Vec<_> =
            settings.requires.iter().flatten().map(ToString::to_string).collect();
        let later: Vec<_> = item.later.iter().map(ToString::to_string).collect();
        let object = json!({
            "api": guestline_harness::suite::config::API,
            "suite": item.test.suite.name,
            "name": item.test.name,
            "variant": item.variant.id(),
            "kind": item.test.kind,
            "on": item.test.on(),
            "file": item.test.file,
            "line": item.test.line,
            "owner": settings.owner,
            "about": settings.about,
            "tags": settings.tags,
            "requires": requires,
            "compatible": lacks.is_empty(),
            "lacks": lacks,
            "known_when_it_runs": later,
        });
        let _ = writeln!(text, "{object}");
    }
    text
}

/// What each variant needs and what there is.
fn why(plan: &Plan) -> String {
    let mut text = String::new();
    for item in &plan.items {
        let fits = if item.fit == Fit::Fits { "can run here" } else { "incompatible here" };
        let _ = writeln!(text, "{}   {fits}", item.name());
        if let Fit::Lacks(lacks) = &item.fit {
            for lack in lacks {
                let _ = writeln!(text, "  {lack}");
            }
        }
        for requirement in &item.later {
            let _ = writeln!(text, "  needs {requirement}: known when the guest runs");
        }
        if item.test.settings.requires.as_ref().is_none_or(Vec::is_empty) {
            let _ = writeln!(text, "  needs nothing but the common set-up");
        }
    }
    text
}
