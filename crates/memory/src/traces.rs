//! Which machine frames are traced, and what was written to them.
//!
//! Who keeps something that is made of a frame's contents and has to follow its changes, as a shadow page table follows the
//! guest's, *traces* the frame. Writes to it are then not cached in translations, exactly as for a frame that holds code
//! ([`crate::code_watch`], one of whose bits says so), so every write is noted; and each note is logged here before the
//! writer's next instruction: which 64-byte granules of the frame it changed. The tracer takes the log before each use of
//! what it has made. So nobody, on whichever vCPU, who can know that a write has happened meets what was made of the frame
//! before it.
//!
//! A frame that is written *limit* times with no look at the log in between is *lost*: it is traced no longer, and the log
//! says so. With a limit of one, the first write of a batch pays for all; with a larger one, frames that have become data
//! again are noticed.
//!
//! A trace, like a watch, begins with a shoot-down of the writable translations from before ([`crate::shootdown`]), whose end
//! the tracer awaits by asking; until then the frame is *unsettled*, and may be written without a note. What is noted as
//! its translations are dropped does not count towards the limit.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use x86::{Gfn, Mfn};

/// What was written to a traced frame since the log was last taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracedWrite {
    /// The guest frame by which it was written.
    pub gfn: Gfn,
    /// The parts that were: bit n for bytes 64 n to 64 n + 63.
    pub granules: u64,
    /// It is traced no longer, and may have been written anywhere since.
    pub lost: bool,
}

#[derive(Debug)]
struct Entry {
    write: TracedWrite,
    writes: u32,
}

#[derive(Debug)]
pub(crate) struct Traces {
    limit: AtomicU32,
    /// By machine frame. Bounded by the number of frames that are traced.
    log: Mutex<HashMap<Mfn, Entry>>,
    /// The log is not empty.
    waiting: AtomicBool,
    writes: AtomicU64,
}

impl Traces {
    pub(crate) fn new() -> Self {
        Self {
            limit: AtomicU32::new(u32::MAX),
            log: Mutex::default(),
            waiting: AtomicBool::new(false),
            writes: AtomicU64::new(0),
        }
    }

    pub(crate) fn set_limit(&self, writes: u32) {
        self.limit.store(writes, Ordering::Relaxed);
    }

    /// Traced writes so far.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Logs a write to a traced frame. If that was one too many, `lose` is called before the tracer can hear of it.
    pub(crate) fn log(&self, gfn: Gfn, mfn: Mfn, granules: u64, counts: bool, lose: impl FnOnce()) {
        let mut log = self.lock();
        let write = TracedWrite { gfn, granules: 0, lost: false };
        let entry = log.entry(mfn).or_insert(Entry { write, writes: 0 });
        entry.write.granules |= granules;
        if counts {
            self.writes.fetch_add(1, Ordering::Relaxed);
            entry.writes = entry.writes.saturating_add(1);
            if entry.writes >= self.limit.load(Ordering::Relaxed) {
                entry.write.lost = true;
                lose();
            }
        }
        self.waiting.store(true, Ordering::SeqCst);
    }

    /// Empties the log.
    pub(crate) fn take(&self, each: impl FnMut(TracedWrite)) {
        if self.waiting.load(Ordering::SeqCst) {
            let log = {
                let mut log = self.lock();
                self.waiting.store(false, Ordering::SeqCst);
                std::mem::take(&mut *log)
            };
            log.into_values().map(|entry| entry.write).for_each(each);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Mfn, Entry>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
