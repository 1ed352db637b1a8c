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
    let mut command = Args::command();
    command.build();
    let Some(dir) = dir else { return write_out(&page(&command)?) };
    fs::create_dir_all(dir).with_context(|| format!("cannot make '{}'", dir.display()))?;
    write_pages(&command, dir)?;
    Ok(Status::OK)
}

/// The page of a command, and those of the commands below it.
fn write_pages(command: &clap::Command, dir: &Path) -> Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let path = dir.join(format!("{name}.1"));
    fs::write(&path, page(command)?).with_context(|| format!("cannot write '{}'", path.display()))?;
    command.get_subcommands().try_for_each(|below| write_pages(below, dir))
}

/// The man page of a command. What stands below its help becomes sections of their own.
fn page(command: &clap::Command) -> io::Result<Vec<u8>> {
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    man.render_options_section(&mut page)?;
    let below = command.get_after_long_help().or(command.get_after_help());
    page.extend(sections(&below.map(ToString::to_string).unwrap_or_default()).into_bytes());
    Ok(page)
}

/// Paragraphs as sections, line by line: "Exit status:" or "Exit status: 0" begins one of that name.
fn sections(text: &str) -> String {
    let mut roff = String::new();
    for paragraph in text.split("\n\n") {
        let (title, body) = match paragraph.split_once(':') {
            Some((title, body)) if !title.contains(['\n', '(', '\'']) => (title, body),
            _ => ("Notes", paragraph),
        };
        roff += &format!(".SH \"{}\"\n.nf\n", title.to_uppercase());
        for line in body.trim_matches('\n').lines() {
            roff += "\\&";
            roff += &line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
            roff.push('\n');
        }
        roff += ".fi\n";
    }
    roff
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
        assert!(page.contains(".SH \"EXIT STATUS\"") && page.contains(".SH \"EXAMPLES\""));
        assert!(dir.path().join("umbra.1").is_file() && dir.path().join("umbra-doctor.1").is_file());
        assert!(dir.path().join("umbra-debug-block.1").is_file());
    }
}
