//! A memory balloon (VIRTIO 1.2, 5.5): memory that the guest gives back to the host.
//!
//! Three things in one device:
//!
//! * *The balloon.* The host says how large it is to be, and the driver puts so many pages of the guest's into it (*inflates* it)
//!   or takes them out again (*deflates* it), also on its own account before it runs out of memory.
//! * *Free-page reporting.* The driver says which memory nobody in the guest uses at the moment, and it costs nothing until
//!   somebody does. Nobody has to ask for that, and the guest has as much memory as before.
//! * *Statistics* of the guest's own memory management, which only the guest knows.
//!
//! What becomes of the memory is [`memory::GuestMemory`]'s business, and why a guest that lies harms itself only. Here is
//! what the requests say. One thread serves all queues; requests are answered when they have been done, so that a guest that waits
//! for that finds no memory taken that it uses again.
//!
//! The driver of statistics makes one buffer available and fills it anew whenever it gets it back. So it is given back when
//! somebody wants to know, and what comes then is read and left in the ring.

mod pages;
mod saved;
mod statistics;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use host::jail::Role;
use state::{Record, StateError};
use x86::bits::index;
use x86::{PAGE_SHIFT, PAGE_SIZE};

use crate::service::{Kind, Pump, Service};
use crate::transport::Queues;
pub use statistics::{Statistic, Statistics};

// The queues (5.5.2). Which number the last one has depends on who counts: where there is no queue of hints in between, Linux's
// driver has reporting at 3, and the specification at 4.
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS: u16 = 2;
const REPORTS: [u16; 2] = [3, 4];

// Features (5.5.3).
const STATISTICS_QUEUE: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const PAGE_POISON: u64 = 1 << 4;
const REPORTING: u64 = 1 << 5;

/// The most chains taken at once. Each may be about many megabytes.
const BATCH: usize = 4;

/// Where the driver writes in the configuration: the balloon's size, and what it fills free pages with (5.5.4).
const ACTUAL: u64 = 4;
const POISON: u64 = 12;
const CONFIG_BYTES: usize = 16;

/// What is known of a balloon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// How large it is to be, in bytes.
    pub target_bytes: u64,
    /// How large the guest says that it is.
    pub actual_bytes: u64,
    /// What the guest has reported as free so far, and was given back to the host.
    pub reported_bytes: u64,
    /// Whether the guest has a driver for it.
    pub driven: bool,
    /// What the guest said last of its memory management.
    pub statistics: Statistics,
}

/// What device and host know of the balloon.
#[derive(Debug, Default)]
struct Known {
    /// How many pages there are to be in it, and what of that the driver was told.
    target_pages: u32,
    told_pages: u32,
    /// How many the driver says there are.
    actual_pages: u32,
    /// What the driver fills free pages with.
    poison: u32,
    reported_bytes: u64,
    driven: bool,
    statistics: Statistics,
    /// Somebody wants new statistics.
    wanted: bool,
    /// The driver has been asked for them.
    asked: bool,
    /// The device's thread has something to do.
    woken: bool,
}

#[derive(Debug, Default)]
struct Shared {
    known: Mutex<Known>,
    bell: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, mut known: MutexGuard<'_, Known>) {
        known.woken = true;
        drop(known);
        self.bell.notify_one();
    }
}

/// The host's hold on a balloon. Clones are the same balloon's.
#[derive(Clone, Debug, Default)]
pub struct Control(Arc<Shared>);

impl Control {
    /// Says how large the balloon is to be, in bytes, rounded down to whole pages. The guest comes to that in its own time, or
    /// as far as it can.
    pub fn aim(&self, bytes: u64) {
        let mut known = self.0.lock();
        known.target_pages = u32::try_from(bytes >> PAGE_SHIFT).unwrap_or(u32::MAX);
        self.0.wake(known);
    }

    /// What is known at the moment; and asks the guest for newer statistics, for the next time.
    pub fn figures(&self) -> Figures {
        let mut known = self.0.lock();
        let figures = Figures {
            target_bytes: u64::from(known.target_pages) * PAGE_SIZE,
            actual_bytes: u64::from(known.actual_pages) * PAGE_SIZE,
            reported_bytes: known.reported_bytes,
            driven: known.driven,
            statistics: known.statistics.clone(),
        };
        known.wanted = true;
        self.0.wake(known);
        figures
    }
}

/// The device.
#[derive(Debug, Default)]
pub struct Balloon(Control);

impl Balloon {
    /// A balloon with nothing in it, and that is to have nothing in it.
    pub fn new(control: Control) -> Self {
        Self(control)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.0.lock()
    }
}

impl Service for Balloon {
    fn kind(&self) -> Kind {
        Kind { name: "virtio-balloon", id: 5, class: 0x05_0000 }
    }

    fn role(&self) -> Role {
        Role::Balloon
    }

    fn features(&self) -> u64 {
        STATISTICS_QUEUE | DEFLATE_ON_OOM | PAGE_POISON | REPORTING
    }

    fn queues(&self) -> u16 {
        5
    }

    fn config(&self) -> Cow<'_, [u8]> {
        let known = self.known();
        // Target, size, the queue of hints that there is not, what free pages are filled with.
        let words = [known.target_pages, known.actual_pages, 0, known.poison];
        Cow::Owned(words.iter().flat_map(|word| word.to_le_bytes()).collect())
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let mut known = self.known();
        let known = &mut *known;
        for (at, &byte) in (offset..CONFIG_BYTES as u64).zip(data) {
            let (word, place) = match at {
                ACTUAL..8 => (&mut known.actual_pages, at - ACTUAL),
                POISON.. => (&mut known.poison, at - POISON),
                _ => continue,
            };
            let mut bytes = word.to_le_bytes();
            if let Some(old) = bytes.get_mut(index(place)) {
                *old = byte;
            }
            *word = u32::from_le_bytes(bytes);
        }
    }

    fn reset(&self) {
        let mut known = self.known();
        *known = Known {
            target_pages: known.target_pages,
            reported_bytes: known.reported_bytes,
            woken: known.woken,
            ..Known::default()
        };
    }

    fn pump(&self) -> Option<&dyn Pump> {
        Some(self)
    }

    fn save(&self) -> Option<Record> {
        Some(saved::save(&self.known()))
    }

    fn restore(&self, record: Option<&Record>) -> Result<(), StateError> {
        saved::restore(&mut self.known(), record)
    }
}

impl Pump for Balloon {
    fn wake(&self) {
        self.0.0.wake(self.known());
    }

    fn wait(&self) {
        let mut known = self.known();
        while !known.woken {
            known = self.0.0.bell.wait(known).unwrap_or_else(PoisonError::into_inner);
        }
        known.woken = false;
    }

    fn turn(&self, queues: &Queues<'_>) -> bool {
        let driven = queues.is_driven();
        let (changed, poisoned) = {
            let mut known = self.known();
            known.driven = driven;
            let changed = known.target_pages != known.told_pages;
            known.told_pages = known.target_pages;
            (changed, known.poison != 0)
        };
        if changed {
            queues.config_changed();
        }
        let always = |(): &()| true;
        let mut more =
            queues.drain(INFLATE, BATCH, &mut (), always, |(), chain| pages::inflate(queues, chain));
        more |= queues.drain(DEFLATE, BATCH, &mut (), always, |(), chain| pages::deflate(queues, chain));
        for queue in REPORTS {
            let mut bytes = 0;
            more |= queues.drain(
                queue,
                BATCH,
                &mut bytes,
                |_| true,
                |bytes, chain| {
                    // What the driver expects to find there is not zeros: its contents stay (5.5.6.7).
                    if !poisoned {
                        *bytes += pages::empty(queues, chain);
                    }
                    Ok(())
                },
            );
            self.known().reported_bytes += bytes;
        }
        more | self.ask(queues)
    }
}

impl Balloon {
    /// Reads statistics that have come, and asks for new ones if somebody wants them; true if there may be more to do.
    fn ask(&self, queues: &Queues<'_>) -> bool {
        let (wanted, asked) = {
            let known = self.known();
            (known.wanted, known.asked)
        };
        if !wanted && !asked {
            return false;
        }
        // Two, so that the driver's notification of the next is on: it has one.
        let mut batch = queues.take(STATISTICS, 2);
        let Some(chain) = batch.next() else { return false };
        if asked {
            let statistics = Statistics::read(queues.memory(), &chain.readable);
            let mut known = self.known();
            known.statistics = statistics;
            (known.wanted, known.asked) = (false, false);
            batch.put_back(chain);
        } else {
            self.known().asked = true;
            batch.answer(chain.ticket, Ok(0));
        }
        false
    }
}
