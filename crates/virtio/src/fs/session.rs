//! What driver and device agreed on, and for how long a driver may go by what it was told.

use std::time::Duration;

use backend::share::Errno;
use serde::{Deserialize, Serialize};

use super::wire::{CACHE_DIR, InitIn, InitOut, KEEP_CACHE, MAJOR, MINOR, OLDEST_MINOR, feature};

/// What is offered. Without `ATOMIC_O_TRUNC` a file is truncated by a request of its own; without locks and flush a guest's
/// kernel deals with these itself.
const OFFERED: u32 = feature::ASYNC_READ
    | feature::BIG_WRITES
    | feature::AUTO_INVAL_DATA
    | feature::DO_READDIRPLUS
    | feature::READDIRPLUS_AUTO
    | feature::ASYNC_DIO
    | feature::PARALLEL_DIROPS
    | feature::MAX_PAGES
    | feature::CACHE_SYMLINKS
    | feature::HANDLE_KILLPRIV_V2;

/// The most pages of a request's data: 1 MiB, and what fits into the descriptors of a queue.
const MOST_PAGES: u16 = 256;
/// The most bytes that are read or written by one request, whose buffers may be the same memory over and over.
pub(super) const MOST_DATA: u32 = 1 << 20;
/// How many requests for which nobody waits may be under way.
const BACKGROUND: u16 = 64;

/// How long what a guest was told holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Others change the directory too: names and attributes are asked for again after a second, contents at each opening.
    Changing,
    /// Nobody is expected to change it, so that a guest may keep what it has read and looked for in vain; a change is seen
    /// late. Extended attributes are not looked for at all, which would be once for each file.
    Settled,
}

impl Validity {
    /// How long a name or attributes hold.
    pub(super) fn of_entries(self) -> Duration {
        match self {
            Self::Changing => Duration::from_secs(1),
            Self::Settled => Duration::from_secs(3600),
        }
    }

    /// How long it holds that there is no such name.
    pub(super) fn of_absence(self) -> Duration {
        match self {
            Self::Changing => Duration::ZERO,
            Self::Settled => self.of_entries(),
        }
    }

    /// The flags of an answer to an opening.
    pub(super) fn of_contents(self) -> u32 {
        match self {
            Self::Changing => 0,
            Self::Settled => KEEP_CACHE | CACHE_DIR,
        }
    }
}

/// The state of the conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    /// It has begun.
    pub(super) begun: bool,
}

impl Session {
    /// Agrees on a version and features.
    ///
    /// # Errors
    /// `EPROTO` if the driver is too old.
    pub(super) fn begin(&mut self, asked: &InitIn) -> Result<InitOut, Errno> {
        if asked.major < MAJOR || asked.major == MAJOR && asked.minor < OLDEST_MINOR {
            return Err(Errno::PROTO);
        }
        // A driver with a newer major version asks again with this one.
        self.begun = asked.major == MAJOR;
        Ok(InitOut {
            major: MAJOR,
            minor: MINOR,
            max_readahead: asked.max_readahead,
            flags: OFFERED & asked.flags,
            max_background: BACKGROUND,
            congestion_threshold: BACKGROUND / 4 * 3,
            max_write: MOST_DATA,
            time_granularity: 1,
            max_pages: MOST_PAGES,
            ..InitOut::default()
        })
    }
}
