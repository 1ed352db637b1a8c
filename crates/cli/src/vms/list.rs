//! `umbra ps`.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::args::{ListFormat, PsArgs};
use super::home::{Registry, Vm};
use super::{client, record};
use crate::documents;
use crate::status::Status;
use control::Request;

/// Lists VMs.
///
/// # Errors
/// If they cannot be looked for.
pub(crate) fn run(args: &PsArgs) -> Result<Status> {
    let mut vms = Registry::of_user()?.all()?;
    vms.retain(|vm| args.all || vm.ended.is_none());
    let text: String = if args.quiet {
        vms.iter().map(|vm| format!("{}\n", vm.description.name)).collect()
    } else if args.format == ListFormat::Json {
        vms.iter().map(|vm| format!("{}\n", json(vm))).collect()
    } else {
        let rows = vms.iter().map(row).collect::<Vec<_>>();
        table(&["NAME", "SOURCE", "COMMAND", "CREATED", "STATUS", "PORTS"].map(str::to_owned), &rows)
    };
    documents::print(&text)
}

/// `"running"`, `"paused"`, `"exited"`; or what it says is not to be heard.
fn state(vm: &Vm) -> String {
    if vm.ended.is_some() {
        return "exited".to_owned();
    }
    let state = client::ask(vm, Request::State).ok();
    state.and_then(|state| state.as_str().map(str::to_owned)).unwrap_or_else(|| "not answering".to_owned())
}

fn json(vm: &Vm) -> Value {
    let description = &vm.description;
    json!({
        "name": description.name,
        "source": description.source,
        "command": description.command,
        "created": description.created,
        "state": state(vm),
        "status": vm.ended.map(|ended| ended.status),
        "ports": description.ports,
        "pid": description.pid,
    })
}

fn row(vm: &Vm) -> [String; 6] {
    let description = &vm.description;
    let status = match (vm.ended, state(vm).as_str()) {
        (Some(ended), _) => format!("Exited ({}) {}", ended.status, ago(ended.at)),
        (None, "running") => format!("Up {}", since(description.created)),
        (None, other) => format!("Up {} ({other})", since(description.created)),
    };
    [
        description.name.clone(),
        description.source.clone(),
        shortened(&description.command.join(" ")),
        ago(description.created),
        status,
        description.ports.join(", "),
    ]
}

/// Text that fits in a column, harmless to a terminal.
fn shortened(text: &str) -> String {
    const WIDTH: usize = 24;
    let mut plain: String =
        text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(WIDTH + 1).collect();
    if plain.chars().count() > WIDTH {
        plain.pop();
        plain.pop();
        plain.push('…');
    }
    plain
}

fn since(time: u64) -> String {
    about(Duration::from_secs(record::now().saturating_sub(time)))
}

fn ago(time: u64) -> String {
    format!("{} ago", since(time))
}

/// A time as people say it.
fn about(time: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
    let seconds = time.as_secs();
    let found = UNITS.into_iter().find(|(length, _)| seconds >= 2 * length || (*length == 1 && seconds == 1));
    match found {
        Some((length, unit)) if seconds / length == 1 => format!("1 {unit}"),
        Some((length, unit)) => format!("{} {unit}s", seconds / length),
        None => "less than a second".to_owned(),
    }
}

/// Columns as wide as they need, three spaces apart.
pub(super) fn table<const N: usize>(head: &[String; N], rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in std::iter::once(head).chain(rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in std::iter::once(head).chain(rows) {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += cells.join("   ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_as_people_say_them() {
        let said = |seconds| about(Duration::from_secs(seconds));
        assert_eq!(said(0), "less than a second");
        assert_eq!((said(1), said(90)), ("1 second".into(), "90 seconds".into()));
        assert_eq!((said(120), said(7_199)), ("2 minutes".into(), "119 minutes".into()));
        assert_eq!((said(7_200), said(200_000)), ("2 hours".into(), "2 days".into()));
    }

    #[test]
    fn columns_are_aligned_and_commands_shortened() {
        let row = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        assert_eq!(table(&row("A", "B"), &[row("long", "x"), row("é", "")]), "A      B\nlong   x\né\n");
        assert_eq!(shortened("ls\n\x1b[1m"), "ls  [1m");
        assert_eq!(shortened(&"x".repeat(24)), "x".repeat(24));
        assert_eq!(shortened(&"x".repeat(25)), format!("{}…", "x".repeat(23)));
    }
}
