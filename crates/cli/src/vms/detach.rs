//! Into the background: `umbra run --detach`.
//!
//! A process that has threads cannot be forked, so umbra starts itself again with the same words and an option that nobody
//! types. The child does everything: what fails meanwhile is said where it was asked for. When the VM runs it says the VM's
//! name on its standard output, leaves the terminal (setsid(2)), and closes its streams. The parent has waited for that,
//! and prints the name.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::documents;
use crate::status::Status;

/// The option, as the child is given it.
const OPTION: &str = "--in-background";
/// The file of the VM's directory that takes what umbra has to say.
pub(super) const MESSAGES: &str = "messages";

/// Starts the VM in a process of its own, and waits until it runs.
///
/// # Errors
/// If there can be no such process.
pub(crate) fn start() -> Result<Status> {
    // The first word is the command's name, which is this one's.
    let words = std::env::args_os().skip(2);
    let mut child = Command::new("/proc/self/exe")
        .args(["run", OPTION])
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("the host gives no process for the VM")?;
    let mut name = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(256).read_to_string(&mut name).context("the VM's process says nothing")?;
    }
    if name.is_empty() {
        let code = child.wait()?.code();
        return Ok(code.and_then(|code| code.try_into().ok()).map_or(Status::OURS, Status));
    }
    documents::print(&name)
}

/// The child's VM runs: says its name and leaves; its standard output becomes `nothing`.
///
/// # Errors
/// If the host does not let it.
pub(crate) fn leave(name: &str, directory: &Path, nothing: &File) -> Result<()> {
    let failed = "cannot go into the background";
    let messages = File::create(directory.join(MESSAGES)).context(failed)?;
    // Whoever started it in another way may have it in a session already.
    let _ = rustix::process::setsid();
    // So that no file system is held for a directory that nobody needs.
    std::env::set_current_dir("/").context(failed)?;
    std::io::stdout().write_all(format!("{name}\n").as_bytes()).context(failed)?;
    std::io::stdout().flush().context(failed)?;
    rustix::stdio::dup2_stderr(&messages).context(failed)?;
    rustix::stdio::dup2_stdout(nothing).context(failed)
}
