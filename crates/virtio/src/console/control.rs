//! What device and driver say about ports (VIRTIO 1.2, 5.3.6.2).

use std::sync::Arc;

use backend::Port;
use serde::{Deserialize, Serialize};

/// The bytes of a message before a port's name.
pub(super) const HEADER: usize = 8;

// Events.
const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    port: u32,
    event: u16,
    value: u16,
}

impl Message {
    /// Of the driver's bytes.
    pub(super) fn parse(&[a, b, c, d, e, f, g, h]: &[u8; HEADER]) -> Self {
        Self {
            port: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
        }
    }

    /// For the driver, with a port's name if that is what it is about.
    pub(super) fn bytes(self, ports: &[Arc<Port>]) -> Vec<u8> {
        let mut bytes = self.port.to_le_bytes().to_vec();
        bytes.extend(self.event.to_le_bytes());
        bytes.extend(self.value.to_le_bytes());
        if let (PORT_NAME, Some(port)) = (self.event, ports.get(self.port as usize)) {
            bytes.extend(port.name().as_bytes());
        }
        bytes
    }
}

/// What the two know of the ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Control {
    /// The driver listens.
    ready: bool,
    pub(super) ports: Vec<Known>,
}

/// What the two know of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    /// The driver knows that it is there.
    added: bool,
    /// The driver is ready for it.
    ready: bool,
    /// The driver knows its name.
    named: bool,
    /// What the driver knows of whether the host has it open.
    host_open: bool,
    /// Whether the guest has.
    guest_open: bool,
}

impl Control {
    /// Nothing is known.
    pub(super) fn new(ports: usize) -> Self {
        Self { ready: false, ports: vec![Known::default(); ports] }
    }

    /// Nothing is known any more.
    pub(super) fn forget(&mut self) {
        self.ready = false;
        self.ports.fill(Known::default());
    }

    /// Whether the guest has a port open.
    pub(super) fn has_open(&self, port: usize) -> bool {
        self.ports.get(port).is_some_and(|known| known.guest_open)
    }

    /// The driver says something. What makes no sense is ignored.
    pub(super) fn hear(&mut self, message: Message) {
        if message.event == DEVICE_READY {
            self.forget();
            self.ready = message.value == 1;
            return;
        }
        let Some(known) = self.ports.get_mut(message.port as usize).filter(|known| known.added) else {
            return;
        };
        match message.event {
            PORT_READY => known.ready = message.value == 1,
            PORT_OPEN => known.guest_open = message.value == 1,
            _ => {}
        }
    }

    /// What the driver is to be told next, if anything.
    pub(super) fn next(&self, ports: &[Arc<Port>]) -> Option<Message> {
        if !self.ready {
            return None;
        }
        self.ports.iter().zip(ports).zip(0..).find_map(|((known, port), number)| {
            let open = port.is_open();
            let (event, value) = if !known.added {
                (DEVICE_ADD, 1)
            } else if !known.ready {
                return None;
            } else if !known.named {
                (PORT_NAME, 1)
            // An end comes after everything before it.
            } else if known.host_open != open && (open || !port.has_bytes() || !known.guest_open) {
                (PORT_OPEN, u16::from(open))
            } else {
                return None;
            };
            Some(Message { port: number, event, value })
        })
    }

    /// The driver has been told.
    pub(super) fn told(&mut self, message: Message) {
        let Some(known) = self.ports.get_mut(message.port as usize) else { return };
        match message.event {
            DEVICE_ADD => known.added = true,
            PORT_NAME => known.named = true,
            _ => known.host_open = message.value == 1,
        }
    }
}
