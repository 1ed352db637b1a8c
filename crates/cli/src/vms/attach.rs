//! `umbra console`: the console of a VM in the background, on this terminal.

use std::io::{self, Read, Write, stderr, stdin, stdout};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use init::wire::encode_size;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;

use super::client;
use super::home::Registry;
use crate::console::terminal::{self, RawMode};
use crate::message;
use crate::status::Status;
use control::{Kind, Request};

/// The keys that leave, as docker has them: Ctrl-P, Ctrl-Q.
const LEAVE: [u8; 2] = [0x10, 0x11];

/// Attaches to a VM's console.
///
/// # Errors
/// If there is no such VM, or it has no console to attach to.
pub(crate) fn run(name: &str) -> Result<Status> {
    let vm = Registry::of_user()?.find(name)?;
    let interactive = terminal::is_interactive();
    let size = interactive.then(terminal::size);
    let mut stream = client::connect(&vm, Request::Console { size })?;
    let takes_input = client::answer(&vm, &mut stream)?["input"] == true;
    if interactive {
        let about_input = if takes_input { "" } else { "; it reads no input" };
        message::note(&format!("attached to '{name}': Ctrl-P Ctrl-Q leaves it{about_input}"));
    }
    match converse(stream, interactive, Input::Passed)? {
        End::Exit(status) => {
            // Who asks next is to find it ended.
            client::until_gone(&vm)?;
            Ok(Status(status))
        }
        End::Left => Ok(Status::OK),
        End::Unheard => Ok(Status::BROKEN_PIPE),
        End::Lost => {
            bail!("the VM '{name}' has left this console: it was killed, or this terminal did not keep up")
        }
    }
}

/// What becomes of standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// It is passed on.
    Passed,
    /// There is none.
    Empty,
}

/// How a conversation ended.
pub(super) enum End {
    /// The other side has ended, with this status.
    Exit(u8),
    /// The user left it.
    Left,
    /// Nobody takes the output.
    Unheard,
    /// The connection broke.
    Lost,
}

/// Passes input on and prints output until either side ends it; on a terminal, if it is interactive, which is raw meanwhile.
///
/// # Errors
/// If the terminal, a thread or standard output cannot be had.
pub(super) fn converse(mut stream: UnixStream, interactive: bool, input: Input) -> Result<End> {
    let raw = if interactive { Some(RawMode::enter().context("cannot use the terminal")?) } else { None };
    if interactive {
        follow_size(stream.try_clone()?).context("cannot catch signals")?;
    }
    let left = Arc::new(AtomicBool::new(false));
    if input == Input::Passed {
        let (typed_to, has_left) = (stream.try_clone()?, left.clone());
        std::thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || send_input(typed_to, interactive, &has_left))
            .context("the host gives no thread")?;
    } else {
        // What has ended by now needs no input.
        let _ = control::send_frames(&mut stream, Kind::InputEnd, &[]);
    }
    let end = show(&mut stream);
    drop(raw);
    Ok(match end {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => End::Unheard,
        Err(error) => return Err(error).context("cannot write to standard output"),
        Ok(Some(status)) => End::Exit(status),
        Ok(None) if left.load(Ordering::Relaxed) => {
            // The guest's prompt is still on the line.
            message::block("");
            End::Left
        }
        Ok(None) => End::Lost,
    })
}

/// Prints what the VM prints; its status, if it ends.
fn show(stream: &mut UnixStream) -> io::Result<Option<u8>> {
    loop {
        match control::read_frame(stream) {
            Ok(Some((Kind::Output, bytes))) => {
                stdout().write_all(&bytes).and_then(|()| stdout().flush())?;
            }
            Ok(Some((Kind::Error, bytes))) => {
                // Nowhere to complain if standard error is gone.
                let _ = stderr().write_all(&bytes);
            }
            Ok(Some((Kind::End, bytes))) => return Ok(bytes.first().copied()),
            _ => return Ok(None),
        }
    }
}

/// Sends what is typed, until it ends or the keys that leave are among it.
fn send_input(mut stream: UnixStream, interactive: bool, left: &AtomicBool) {
    let (mut keys, mut buffer) = (Keys::default(), [0; 4096]);
    loop {
        let typed = match stdin().read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => buffer.get(..count).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let (bytes, leaves) = if interactive { keys.take(typed) } else { (typed.to_vec(), false) };
        if !bytes.is_empty() && control::send_frames(&mut stream, Kind::Input, &bytes).is_err() {
            return;
        }
        if leaves {
            left.store(true, Ordering::Relaxed);
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
    let _ = control::send_frames(&mut stream, Kind::InputEnd, &[]);
}

/// Looks for the keys that leave.
#[derive(Default)]
struct Keys {
    /// The first of them was typed, and is held back.
    held: bool,
}

impl Keys {
    /// What of these bytes is for the guest, and whether the keys were among them.
    fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let [first, second] = LEAVE;
        let mut bytes = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            if std::mem::take(&mut self.held) {
                if byte == second {
                    return (bytes, true);
                }
                bytes.push(first);
            }
            if byte == first {
                self.held = true;
            } else {
                bytes.push(byte);
            }
        }
        (bytes, false)
    }
}

/// Tells the VM the terminal's size whenever that changes, and gives the terminal back when we are to end.
fn follow_size(mut stream: UnixStream) -> io::Result<()> {
    let mut signals = Signals::new([SIGWINCH, SIGHUP, SIGINT, SIGTERM])?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in &mut signals {
            if signal != SIGWINCH {
                terminal::restore();
                process::exit(i32::from(Status::signal(signal).0));
            }
            let _ = control::send_frames(&mut stream, Kind::Size, &encode_size(terminal::size()));
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_keys_leave_and_one_does_not() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"ab"), (b"ab".to_vec(), false));
        assert_eq!(keys.take(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(keys.take(b"b"), (b"\x10b".to_vec(), false));
        assert_eq!(keys.take(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.take(b"\x11x"), (b"".to_vec(), true));
        assert_eq!(Keys::default().take(b"\x11a\x10\x11"), (b"\x11a".to_vec(), true));
    }
}
