//! A port: a stream of bytes in each direction, between a device, which never waits, and threads of the host, which do.
//!
//! Both directions are bounded. Who writes on the host waits for room. The device does not take from its guest what has no
//! room here, and hears by the bell when there is room again, something to give, or an end.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use host::poll::Bell;

/// Bytes that wait in one direction before the sender does.
const ROOM: usize = 256 << 10;

/// The port. Any thread may call any method.
pub struct Port {
    name: String,
    bell: Bell,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    to_guest: VecDeque<u8>,
    from_guest: Vec<u8>,
    /// The device has left something with the guest for lack of room.
    stuck: bool,
    closed: bool,
}

impl Port {
    /// An open port of this name, whose device listens to this bell.
    pub fn new(name: &str, bell: Bell) -> Self {
        Self { name: name.to_owned(), bell, state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the host's side is open.
    pub fn is_open(&self) -> bool {
        !self.lock().closed
    }

    /// For the device: whether it may take something from the guest. If not, the bell will ring.
    pub fn has_room(&self) -> bool {
        let mut state = self.lock();
        // Nobody reads a closed port, so it takes everything.
        state.stuck = !state.closed && state.from_guest.len() >= ROOM;
        !state.stuck
    }

    /// For the device: takes what the guest sent.
    pub fn put(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if !state.closed {
            state.from_guest.extend_from_slice(bytes);
            self.changed.notify_all();
        }
    }

    /// For the device: whether there is something for the guest.
    pub fn has_bytes(&self) -> bool {
        !self.lock().to_guest.is_empty()
    }

    /// For the device: the next bytes for the guest, `most` at most.
    pub fn take(&self, most: usize) -> Vec<u8> {
        let mut state = self.lock();
        let count = state.to_guest.len().min(most);
        let bytes = state.to_guest.drain(..count).collect();
        self.changed.notify_all();
        bytes
    }

    /// Waits for what the guest sends, and puts all of that into `bytes`; false once the port is closed.
    pub fn read(&self, bytes: &mut Vec<u8>) -> bool {
        bytes.clear();
        let mut state = self.lock();
        while state.from_guest.is_empty() && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(bytes, &mut state.from_guest);
        if std::mem::take(&mut state.stuck) {
            self.bell.ring();
        }
        !bytes.is_empty()
    }

    /// Sends to the guest, waiting for room; false once the port is closed.
    pub fn write(&self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let mut state = self.lock();
            while state.to_guest.len() >= ROOM && !state.closed {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.closed {
                return false;
            }
            let (now, later) = bytes.split_at(bytes.len().min(ROOM - state.to_guest.len()));
            state.to_guest.extend(now);
            bytes = later;
            drop(state);
            self.bell.ring();
        }
        self.is_open()
    }

    /// Closes the host's side. What has come can still be read, and the guest gets what has been written.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
        self.bell.ring();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn both_directions_are_bounded_and_lose_nothing() {
        let port = Arc::new(Port::new("p", Bell::new().unwrap()));
        let sent: Vec<u8> = (0..=250).cycle().take(3 * ROOM).collect();
        let (writer, bytes) = (port.clone(), sent.clone());
        let thread = std::thread::spawn(move || writer.write(&bytes));
        let mut got = Vec::new();
        while got.len() < sent.len() {
            let part = port.take(1000);
            assert!(part.len() <= 1000 && port.lock().to_guest.len() <= ROOM);
            got.extend(part);
        }
        assert!(thread.join().unwrap() && got == sent);
        while port.has_room() {
            port.put(&sent[..1000]);
        }
        assert!(port.lock().from_guest.len() <= ROOM + 1000);
        assert!(port.read(&mut got) && port.has_room());
    }

    #[test]
    fn a_closed_port_gives_what_it_has_and_then_no_more() {
        let port = Port::new("p", Bell::new().unwrap());
        port.put(b"last");
        assert!(port.write(b"x"));
        port.close();
        port.put(b"too late");
        let mut bytes = Vec::new();
        assert!(port.read(&mut bytes) && bytes == b"last" && !port.read(&mut bytes));
        assert!(!port.write(b"y") && port.take(9) == b"x" && !port.is_open() && port.has_room());
    }
}
