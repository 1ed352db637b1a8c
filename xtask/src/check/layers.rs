//! The layer law: a crate uses only the crates that its row in `docs/LAYERS.md` allows.
//!
//! What a crate uses is asked of cargo. Test code may use anything.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::table;

/// Where the law stands.
const LAW: &str = "docs/LAYERS.md";

/// A crate's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// What it may use; `None` is anything.
    may_use: Option<Vec<String>>,
    /// Whether it may hold unsafe code.
    pub(super) may_be_unsafe: bool,
}

/// The law, by crate.
pub(super) type Law = BTreeMap<String, Row>;

pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    Ok(violations(&law(root)?, &dependencies(root)?))
}

/// Reads the law.
pub(super) fn law(root: &Path) -> Result<Law> {
    let text = fs::read_to_string(root.join(LAW)).with_context(|| format!("cannot read {LAW}"))?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Law {
    let row = |cells: Vec<&str>| {
        let [name, may_use, may_be_unsafe, ..] = cells.as_slice() else { return None };
        let may_use = match *may_use {
            "any" => None,
            "–" => Some(Vec::new()),
            list => Some(list.split_whitespace().map(|name| table::plain(name).to_owned()).collect()),
        };
        Some((table::plain(name).to_owned(), Row { may_use, may_be_unsafe: *may_be_unsafe == "yes" }))
    };
    table::rows(text, "crate").into_iter().filter_map(row).collect()
}

/// What each crate of the workspace uses of the others.
fn dependencies(root: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("cannot run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata failed");
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let used = |package: &Value| -> Option<(String, Vec<String>)> {
        let of_workspace = |item: &&Value| item["path"].is_string() && item["kind"] != "dev";
        let names = package["dependencies"].as_array()?.iter().filter(of_workspace);
        Some((
            package["name"].as_str()?.to_owned(),
            names.filter_map(|item| Some(item["name"].as_str()?.to_owned())).collect(),
        ))
    };
    Ok(packages.iter().filter_map(used).collect())
}

fn violations(law: &Law, dependencies: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, used) in dependencies {
        let Some(row) = law.get(name) else {
            complaints.push(format!("{name} has no row in {LAW}"));
            continue;
        };
        let Some(may_use) = &row.may_use else { continue };
        for other in used.iter().filter(|other| !may_use.contains(other)) {
            complaints.push(format!("{name} uses {other}, which its row in {LAW} does not allow"));
        }
    }
    let gone = law.keys().filter(|name| !dependencies.contains_key(*name));
    complaints.extend(gone.map(|name| format!("{LAW} has a row for {name}, which does not exist")));
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAW: &str = "\
| crate | may use | unsafe | what |
|---|---|---|---|
| `x86` | – | no | facts |
| `host` | `x86` | yes | Linux |
| `xtask` | any | no | tasks |
";

    fn uses(pairs: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
        pairs
            .iter()
            .map(|(name, used)| ((*name).to_owned(), used.iter().map(|name| (*name).to_owned()).collect()))
            .collect()
    }

    #[test]
    fn a_lawful_house_passes() {
        let law = parse(LAW);
        assert!(law["host"].may_be_unsafe && !law["x86"].may_be_unsafe);
        assert!(
            violations(&law, &uses(&[("x86", &[]), ("host", &["x86"]), ("xtask", &["host"])])).is_empty()
        );
    }

    #[test]
    fn every_way_to_break_the_law_is_seen() {
        let law = parse(LAW);
        let broken = uses(&[("x86", &["host"]), ("host", &["x86"]), ("new", &[])]);
        let complaints = violations(&law, &broken).join("\n");
        assert!(complaints.contains("x86 uses host"));
        assert!(complaints.contains("new has no row"));
        assert!(complaints.contains("row for xtask, which does not exist"));
    }
}
