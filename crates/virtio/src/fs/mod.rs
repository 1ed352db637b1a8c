//! A shared directory (VIRTIO 1.2, 5.11): the guest's kernel speaks FUSE, and the device answers from a
//! [`Share`](backend::share::Share).
//!
//! | module | concept |
//! |---|---|
//! | [`wire`] | the protocol's structures and numbers, as data |
//! | [`request`] | one request: taken apart, carried out, answered |
//! | [`directory`] | the answer that lists a directory |
//! | [`session`] | what was agreed on, and for how long answers hold |
//!
//! There are no daemon and no window of shared memory (DAX): data goes between files and the driver's buffers in one
//! system call, without a copy.

mod directory;
mod request;
mod saved;
mod session;
#[cfg(test)]
mod tests;
mod wire;

use std::borrow::Cow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use backend::share::Share;
use host::jail::Role;
use state::{Record, StateError};

use crate::service::{Kind, Malformed, Request, Service};
use session::Session;
pub use session::Validity;

/// The room for a tag (5.11.4).
const TAG: usize = 36;

/// The device.
pub struct Fs {
    share: Share,
    validity: Validity,
    queues: u16,
    config: Vec<u8>,
    session: Mutex<Session>,
}

impl Fs {
    /// A device for `share`, which a guest mounts by its tag (as much of it as fits), with a number of queues for
    /// requests, 1 at least and 16 at most. What a guest was told holds as long as `validity` says.
    pub fn new(share: Share, tag: &str, validity: Validity, queues: u16) -> Self {
        let queues = queues.clamp(1, 16);
        let mut config = vec![0; TAG];
        for (byte, from) in config.iter_mut().zip(tag.bytes()) {
            *byte = from;
        }
        config.extend(u32::from(queues).to_le_bytes());
        Self { share, validity, queues, config, session: Mutex::default() }
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service for Fs {
    fn kind(&self) -> Kind {
        Kind { name: "virtio-fs", id: 26, class: 0x01_8000 }
    }

    fn role(&self) -> Role {
        if self.share.is_read_only() { Role::FilesToRead } else { Role::Files }
    }

    fn features(&self) -> u64 {
        0
    }

    /// One for what must not wait (5.11.2), then those for requests.
    fn queues(&self) -> u16 {
        self.queues + 1
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.config)
    }

    fn serve(&self, request: &Request<'_>) -> Result<u32, Malformed> {
        request::serve(self, request)
    }

    fn save(&self) -> Option<Record> {
        Some(saved::save(self))
    }

    fn restore(&self, record: Option<&Record>) -> Result<(), StateError> {
        saved::restore(self, record)
    }
}
