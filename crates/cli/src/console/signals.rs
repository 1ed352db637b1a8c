//! Signals, as events.

use std::io;
use std::process;

use host::jail::Role;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;

use super::{Event, Events, terminal};
use crate::status::Status;

/// Whether a signal asks us to end.
pub(crate) fn is_deadly(signal: i32) -> bool {
    matches!(signal, SIGHUP | SIGINT | SIGTERM)
}

/// Catches the signals that matter and sends them as events from a thread of its own. The second deadly one ends the
/// process at once, whatever the main thread is doing.
///
/// # Errors
/// If a signal cannot be caught.
pub(super) fn watch(events: Events) -> io::Result<()> {
    let mut signals = Signals::new([SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGWINCH])?;
    host::thread::spawn("signals", Role::Signals, move || {
        let mut asked_before = false;
        for signal in &mut signals {
            if is_deadly(signal) && std::mem::replace(&mut asked_before, true) {
                terminal::restore();
                process::exit(i32::from(Status::signal(signal).0));
            }
            events.send(Event::Signal(signal));
        }
    })?;
    Ok(())
}
