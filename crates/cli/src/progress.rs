//! Progress of something slow: a moving line on a terminal, a plain line per step elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::message;

/// How often the line moves.
const TICK: Duration = Duration::from_millis(100);

/// A piece of work under way; its line goes when it is dropped.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts showing.
    pub(crate) fn start(what: &str) -> Self {
        let progress = Self { bar: terminal() };
        progress.step(what);
        progress
    }

    /// A step of unknown length begins.
    pub(crate) fn step(&self, what: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_style(style("{spinner} {msg}"));
                bar.set_message(what.to_owned());
            }
            None => message::note(what),
        }
    }

    /// Starts showing how `size` bytes are copied; on a terminal only, for it may take no time.
    pub(crate) fn copying(what: &str, size: u64) -> Self {
        let progress = Self { bar: terminal() };
        progress.length(what, size);
        progress
    }

    /// A download of `size` bytes begins.
    pub(crate) fn download(&self, what: &str, size: u64) {
        match &self.bar {
            Some(_) => self.length(what, size),
            None => message::note(&format!("fetching {what} ({} KiB)", size.div_ceil(1024))),
        }
    }

    /// A step of so many parts begins.
    pub(crate) fn count(&self, what: &str, parts: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(parts);
            bar.set_position(0);
            bar.set_style(style("{spinner} {msg} [{bar:24}] {pos}/{len}"));
            bar.set_message(what.to_owned());
        }
    }

    /// Work of `size` bytes begins.
    fn length(&self, what: &str, size: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(size);
            bar.set_style(style("{spinner} {msg} [{bar:24}] {bytes}/{total_bytes} {eta}"));
            bar.set_message(what.to_owned());
        }
    }

    /// A part of it is done.
    pub(crate) fn advance(&self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    /// It has come so far.
    pub(crate) fn position(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A line that moves, on a terminal.
fn terminal() -> Option<ProgressBar> {
    stderr().is_terminal().then(|| {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(TICK);
        bar
    })
}

/// A style from a template; the plain one if the template were wrong, which the tests exclude.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
