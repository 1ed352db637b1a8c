//! A file has at most 800 lines, unless `docs/LIMITS.md` gives it more with a reason.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::source::{self, Source};
use super::table;

/// Where exceptions stand.
const EXCEPTIONS: &str = "docs/LIMITS.md";
/// The limit.
const LINES: usize = 800;

pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let text =
        fs::read_to_string(root.join(EXCEPTIONS)).with_context(|| format!("cannot read {EXCEPTIONS}"))?;
    Ok(complaints(&text, &source::all(root)?))
}

fn complaints(exceptions: &str, sources: &[Source]) -> Vec<String> {
    let rows = table::rows(exceptions, "file");
    let row_of =
        |path: &str| rows.iter().find(|row| row.first().is_some_and(|cell| table::plain(cell) == path));
    let mut complaints = Vec::new();
    for source in sources {
        let lines = source.text.lines().count();
        let limit = match row_of(&source.path).map(Vec::as_slice) {
            Some([_, limit, reason]) if !reason.is_empty() => limit.parse().unwrap_or(LINES),
            _ => LINES,
        };
        if lines > limit {
            complaints.push(format!(
                "{} has {lines} lines; {limit} are allowed: split it, or give a reason in {EXCEPTIONS}",
                source.path
            ));
        }
    }
    for path in rows.iter().filter_map(|row| row.first()).map(|cell| table::plain(cell)) {
        let needed = sources.iter().any(|source| source.path == path && source.text.lines().count() > LINES);
        if !needed {
            complaints.push(format!("{EXCEPTIONS} has a row for {path}, which does not need it"));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, lines: usize) -> Source {
        Source { path: path.into(), text: "x\n".repeat(lines) }
    }

    #[test]
    fn long_files_need_a_reason() {
        let table = "| file | lines | reason |\n|---|---|---|\n| `a.rs` | 900 | a table |\n| `b.rs` | 900 | |\n| `c.rs` | 900 | x |\n";
        let sources = [source("a.rs", 900), source("b.rs", 801), source("c.rs", 5), source("d.rs", 800)];
        let complaints = complaints(table, &sources);
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints[0].starts_with("b.rs has 801 lines; 800 are allowed"));
        assert!(complaints[1].contains("row for c.rs"));
        assert_eq!(super::complaints(table, &[source("a.rs", 901)]).len(), 3);
    }
}
