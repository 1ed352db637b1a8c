//! Asynchronous events: what the controller says without being asked (NVM Express 1.4, 5.2).
//!
//! A driver leaves requests with the controller, and each event completes one. After an event of some type no other of it is
//! told until the driver has read the log page that goes with it. The only events here are errors: doorbells that cannot be.

use serde::{Deserialize, Serialize};

use crate::identify::EVENT_LIMIT;
use crate::status::Status;

/// The log page that goes with errors.
const ERROR_LOG: u32 = 1;

/// What happened: the number that the event has among errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A doorbell of a queue that does not exist.
    DoorbellRegister = 0,
    /// A value that a doorbell cannot have.
    DoorbellValue = 1,
}

/// Events and requests for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Events {
    /// Commands that wait for an event.
    requests: Vec<u16>,
    /// Events that have not been told, a bit each.
    untold: u8,
    /// One has been told, and the driver has not looked at the log since.
    told: bool,
}

impl Events {
    /// Whether it holds no more than it would have kept.
    pub(crate) fn is_possible(&self) -> bool {
        self.requests.len() <= usize::from(EVENT_LIMIT) + 1 && self.untold < 1 << 2
    }

    /// Keeps a request.
    pub(crate) fn request(&mut self, command: u16) -> Result<(), Status> {
        if self.requests.len() > usize::from(EVENT_LIMIT) {
            return Err(Status::TOO_MANY_EVENT_REQUESTS);
        }
        self.requests.push(command);
        Ok(())
    }

    /// Something happened.
    pub(crate) fn raise(&mut self, event: Event) {
        self.untold |= 1 << event as u8;
    }

    /// The driver has looked at the log.
    pub(crate) fn acknowledge(&mut self) {
        self.told = false;
    }

    /// The request to complete next, and its dword 0, if there is an event to tell.
    pub(crate) fn tell(&mut self) -> Option<(u16, u32)> {
        let event = self.untold.trailing_zeros();
        if self.told || self.untold == 0 || self.requests.is_empty() {
            return None;
        }
        self.told = true;
        self.untold &= self.untold - 1;
        // Type 0: an error.
        Some((self.requests.remove(0), ERROR_LOG << 16 | event << 8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_at_a_time_until_the_log_is_read() {
        let mut events = Events::default();
        events.raise(Event::DoorbellValue);
        assert_eq!(events.tell(), None, "nobody asked");
        for command in 5..9 {
            events.request(command).unwrap();
        }
        assert_eq!(events.request(9), Err(Status::TOO_MANY_EVENT_REQUESTS));
        events.raise(Event::DoorbellRegister);
        events.raise(Event::DoorbellRegister);
        assert_eq!(events.tell(), Some((5, 0x1_0000)));
        assert_eq!(events.tell(), None);
        events.acknowledge();
        assert_eq!(events.tell(), Some((6, 0x1_0100)));
        events.acknowledge();
        assert_eq!(events.tell(), None);
        assert!(events.is_possible());
    }
}
