//! Whether an image is in order. Exit statuses are those of qemu-img(1), which scripts know.

use anyhow::Result;
use backend::qcow2::Report;

use super::args::CheckArgs;
use crate::documents::print;
use crate::message;
use crate::status::Status;

/// The check did not come to its end.
const UNCHECKED: Status = Status(1);
/// Contents are lost, or may get lost.
const CORRUPT: Status = Status(2);
/// Space is lost, and nothing else.
const LEAKS: Status = Status(3);
/// The format has nothing that could be checked.
const UNSUPPORTED: Status = Status(63);

/// `umbra disk check`.
pub(super) fn run(args: &CheckArgs) -> Result<Status> {
    let checked = match backend::begins_as_qcow2(&args.file) {
        Ok(true) => check(args),
        Ok(false) => {
            let shown = args.file.display();
            message::error(&format!(
                "'{shown}' is no qcow2 image: a raw image has nothing that could be checked"
            ));
            return Ok(UNSUPPORTED);
        }
        Err(error) => Err(error.into()),
    };
    checked.or_else(|error| {
        message::error(&format!("{error:#}"));
        Ok(UNCHECKED)
    })
}

fn check(args: &CheckArgs) -> Result<Status> {
    let found = backend::check(&args.file)?;
    let repaired = args.repair && backend::repair(&args.file)?;
    let left = if repaired { backend::check(&args.file)? } else { found };
    print(&text(&found, repaired))?;
    Ok(status(&left))
}

fn status(report: &Report) -> Status {
    match report {
        Report { low: 0, wrong: 0, leaks: 0 } => Status::OK,
        Report { low: 0, wrong: 0, .. } => LEAKS,
        _ => CORRUPT,
    }
}

fn text(found: &Report, repaired: bool) -> String {
    let Report { leaks, low, wrong } = *found;
    let mut lines = Vec::new();
    if leaks != 0 {
        lines.push(format!("{leaks} clusters are counted and not used: lost space"));
    }
    if low != 0 {
        lines.push(format!(
            "{low} clusters are used and not counted: contents may be lost when the image is written"
        ));
    }
    if wrong != 0 {
        lines.push(format!("{wrong} entries of its tables lead nowhere, or where others lead: copy what can be read, with 'umbra disk convert'"));
    }
    lines.push(match (leaks + low != 0, wrong != 0, repaired) {
        (false, false, _) => "the image is in order".to_owned(),
        (_, _, true) => "the refcounts are right now".to_owned(),
        (true, false, false) => "'umbra disk check --repair' makes that right".to_owned(),
        (_, true, false) => "the image is corrupt".to_owned(),
    });
    lines.iter().map(|line| format!("{line}\n")).collect()
}
