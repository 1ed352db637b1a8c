//! Waiting for many files at once (epoll(7)), and being woken by another thread meanwhile (eventfd(2)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec};
use rustix::io::Errno;

/// The most events that one wait reports; the others are reported by the next.
const MOST_EVENTS: usize = 256;
/// What stands for a time that cannot be told.
const LONG: Timespec = Timespec { tv_sec: 3600, tv_nsec: 0 };

/// When a file is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Whenever something arrives or room appears: once for each time, so that whoever is told goes on until the file has
    /// no more.
    Edge,
    /// As long as there is something to read.
    Readable,
}

/// A file that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The number that it was added with.
    pub token: u64,
    /// There is something to read, an end or an error among them.
    pub readable: bool,
    /// There is room to write, or an error.
    pub writable: bool,
}

/// A set of files to wait for. A file leaves it when it is closed.
#[derive(Debug)]
pub struct Poller(OwnedFd);

impl Poller {
    /// An empty set.
    ///
    /// # Errors
    /// If the host has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Adds a file, to be reported as `token`.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn add(&self, file: BorrowedFd<'_>, token: u64, trigger: Trigger) -> io::Result<()> {
        let flags = match trigger {
            Trigger::Edge => EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET,
            Trigger::Readable => EventFlags::IN,
        };
        Ok(epoll::add(&self.0, file, EventData::new_u64(token), flags)?)
    }

    /// Waits until a file is ready or the time is over, without a limit if none is given, and puts what is ready into
    /// `ready`. An interruption by a signal ends the wait, too.
    ///
    /// # Errors
    /// As epoll_wait(2).
    pub fn wait(&self, ready: &mut Vec<Ready>, limit: Option<Duration>) -> io::Result<()> {
        ready.clear();
        let limit = limit.map(|limit| Timespec::try_from(limit).unwrap_or(LONG));
        let mut events =
            [const { epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) } }; MOST_EVENTS];
        let count = match epoll::wait(&self.0, &mut events[..], limit.as_ref()) {
            Err(Errno::INTR) => 0,
            count => count?,
        };
        ready.extend(events.iter().take(count).map(|event| {
            let (flags, data) = (event.flags, event.data);
            let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
            Ready {
                token: data.u64(),
                readable: broken || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
                writable: broken || flags.contains(EventFlags::OUT),
            }
        }));
        Ok(())
    }
}

/// Something that any thread rings and one waits for, as a file in its [`Poller`].
#[derive(Clone, Debug)]
pub struct Bell(Arc<OwnedFd>);

impl Bell {
    /// A bell.
    ///
    /// # Errors
    /// If the host has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(Arc::new(rustix::event::eventfd(0, flags)?)))
    }

    /// Rings it: who waits, or waits next, is woken.
    pub fn ring(&self) {
        // It only fails when it has been rung 2^64 - 2 times since it was last heard, and then it rings still.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn ready(poller: &Poller, limit_ms: u64) -> Vec<Ready> {
        let mut ready = Vec::new();
        poller.wait(&mut ready, Some(Duration::from_millis(limit_ms))).unwrap();
        ready
    }

    #[test]
    fn a_bell_rings_once_for_each_time() {
        let poller = Poller::new().unwrap();
        let bell = Bell::new().unwrap();
        poller.add(bell.as_fd(), 7, Trigger::Edge).unwrap();
        ready(&poller, 0);
        assert_eq!(ready(&poller, 0), []);
        let other = bell.clone();
        std::thread::spawn(move || other.ring()).join().unwrap();
        let seen = ready(&poller, 10_000);
        assert_eq!((seen[0].token, seen[0].readable), (7, true));
        assert_eq!(ready(&poller, 1), []);
    }

    #[test]
    fn edges_and_levels() {
        let poller = Poller::new().unwrap();
        let (mut a, b) = UnixStream::pair().unwrap();
        let (mut c, mut d) = UnixStream::pair().unwrap();
        poller.add(b.as_fd(), 1, Trigger::Edge).unwrap();
        poller.add(d.as_fd(), 2, Trigger::Readable).unwrap();
        assert_eq!(ready(&poller, 0), [Ready { token: 1, readable: false, writable: true }]);
        a.write_all(b"x").unwrap();
        c.write_all(b"x").unwrap();
        assert_eq!(ready(&poller, 0).len(), 2);
        assert_eq!(ready(&poller, 0), [Ready { token: 2, readable: true, writable: false }]);
        d.read_exact(&mut [0]).unwrap();
        drop((a, d));
        let seen = ready(&poller, 0);
        assert_eq!(seen, [Ready { token: 1, readable: true, writable: true }]);
    }
}
