//! What is generated from the command line's own description: completions and man pages.

use std::fs;
use std::io::{self, Write, stdout};
use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::args::Args;
use crate::status::Status;

/// `umbra completions`.
///
/// # Errors
/// If standard output cannot be written.
pub(crate) fn completions(shell: Shell) -> Result<Status> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "umbra", &mut script);
    write_out(&script)
}

/// `umbra man`.
///
/// # Errors
/// If the pages cannot be written.
pub(crate) fn man(dir: Option<&Path>) -> Result<Status> {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        Man::new(Args::command()).render(&mut page)?;
        return write_out(&page);
    };
    fs::create_dir_all(dir).with_context(|| format!("cannot make '{}'", dir.display()))?;
    clap_mangen::generate_to(Args::command(), dir)
        .with_context(|| format!("cannot write man pages to '{}'", dir.display()))?;
    Ok(Status::OK)
}

/// Prints to standard output.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn print(text: &str) -> Result<Status> {
    write_out(text.as_bytes())
}

fn write_out(bytes: &[u8]) -> Result<Status> {
    match stdout().write_all(bytes).and_then(|()| stdout().flush()) {
        Ok(()) => Ok(Status::OK),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Status::BROKEN_PIPE),
        Err(error) => Err(error).context("cannot write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn man_pages_hold_the_exit_statuses() {
        let dir = tempfile::tempdir().unwrap();
        man(Some(dir.path())).unwrap();
        let page = fs::read_to_string(dir.path().join("umbra-run.1")).unwrap();
        for status in ["124", "125", "139", "debug\\-exit"] {
            assert!(page.contains(status), "{status} is not in umbra-run(1)");
        }
        assert!(dir.path().join("umbra.1").is_file() && dir.path().join("umbra-doctor.1").is_file());
    }
}
