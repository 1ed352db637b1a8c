//! The user's terminal: raw while a guest has it, and always put back.
//!
//! Put back means: when [`RawMode`] is dropped, and when any thread panics ([`restore`] is called by the panic hook,
//! because a thread that dies unwinds its own stack only). The settings to go back to are kept in one place, and
//! whoever takes them out puts them back, so it happens once.

use std::io::{self, IsTerminal, stdin, stdout};
use std::sync::{Mutex, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// What the terminal was like before.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal in raw mode, until dropped.
pub(crate) struct RawMode(());

impl RawMode {
    /// Makes the terminal on standard input raw: every byte goes through at once, and nothing is echoed.
    ///
    /// # Errors
    /// If standard input is not a terminal.
    pub(crate) fn enter() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let mode = Self(());
        tcsetattr(stdin(), OptionalActions::Drain, &raw)?;
        Ok(mode)
    }

    /// Makes it raw again after something else had it, as a shell has after SIGCONT.
    pub(crate) fn again(&self) {
        if let Ok(mut raw) = tcgetattr(stdin()) {
            raw.make_raw();
            let _ = tcsetattr(stdin(), OptionalActions::Now, &raw);
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back, if that has not been done. What was typed and not read is dropped: it was for the guest.
pub(crate) fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        let _ = tcsetattr(stdin(), OptionalActions::Flush, &before);
    }
}

/// [`restore`] for a thread that may not wait, for the end of a process that the jail has stopped.
pub(crate) fn restore_at_once() {
    let before = BEFORE.try_lock().ok().and_then(|mut before| before.take());
    if let Some(before) = before {
        let _ = tcsetattr(stdin(), OptionalActions::Flush, &before);
    }
}

/// Whether a person sits at both ends of the console.
pub(crate) fn is_interactive() -> bool {
    stdin().is_terminal() && stdout().is_terminal()
}

/// Height and width of the terminal on standard output; the classic size if it does not say.
pub(crate) fn size() -> (u16, u16) {
    match tcgetwinsize(stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        _ => (24, 80),
    }
}

/// What the terminal is called, if that is a name and not something to put into a script.
pub(crate) fn kind() -> String {
    let good = |text: &String| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-+._".contains(&byte))
    };
    std::env::var("TERM").ok().filter(good).unwrap_or_else(|| "linux".to_owned())
}
