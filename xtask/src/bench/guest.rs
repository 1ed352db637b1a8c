//! The driver: the static program that holds all others, compiled from `bench/guest`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// What the compiler is told. It shall not turn our loops into calls of memcpy or into vectors, nor multiply and add at
/// once where a processor could: then programs would not be what they are called, and sums would differ.
const FLAGS: [&str; 9] = [
    "-std=gnu11",
    "-O2",
    "-static",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fno-tree-vectorize",
    "-fno-tree-loop-distribute-patterns",
    "-ffp-contract=off",
];

/// One of its programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// The class that it is averaged with.
    pub(super) class: String,
    /// Its name.
    pub(super) name: String,
}

/// The compiled driver.
pub(super) struct Driver {
    path: PathBuf,
}

impl Driver {
    /// Compiles it to `target`.
    ///
    /// # Errors
    /// If there is no compiler, or no static C library.
    pub(super) fn build(root: &Path, target: &Path) -> Result<Self> {
        let dir = root.join("bench/guest");
        let items = fs::read_dir(&dir).with_context(|| format!("cannot read '{}'", dir.display()))?;
        let mut sources: Vec<PathBuf> = items.flatten().map(|item| item.path()).collect();
        sources.retain(|path| path.extension().is_some_and(|extension| extension == "c"));
        sources.sort();
        let output = Command::new("gcc")
            .args(FLAGS)
            .args(&sources)
            .arg("-o")
            .arg(target)
            .arg("-lm")
            .output()
            .context("cannot run gcc: install gcc and libc6-dev")?;
        if !output.status.success() {
            bail!("the driver does not compile:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(Self { path: target.to_owned() })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What it can do, in its order.
    ///
    /// # Errors
    /// If it does not run here.
    pub(super) fn programs(&self) -> Result<Vec<Program>> {
        let output = Command::new(&self.path).arg("list").output().context("cannot run the driver")?;
        ensure!(output.status.success(), "the driver does not list its programs");
        Ok(parse(&String::from_utf8_lossy(&output.stdout)))
    }
}

/// Reads lines of a class and a name.
fn parse(text: &str) -> Vec<Program> {
    let program = |line: &str| {
        let (class, name) = line.split_once(' ')?;
        Some(Program { class: class.to_owned(), name: name.to_owned() })
    };
    text.lines().filter_map(program).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_programs() {
        let programs = parse("integer sort\nkernel fork-exec\n\n");
        assert_eq!(programs.len(), 2);
        assert_eq!((programs[1].class.as_str(), programs[1].name.as_str()), ("kernel", "fork-exec"));
    }
}
