//! A console device with several ports (VIRTIO 1.2, 5.3): streams of bytes with names, which a guest opens as files.
//!
//! One thread moves bytes in both directions, between rings and [`Port`]s. It takes a chain only when it can answer it at once:
//! one with output when the port has room, one for input when there is input and the guest has the port open. A driver that
//! knows nothing of several ports has port 0, always open.
//!
//! What the guest is told about ports ([`control`]) follows from what it has been told and what is so, and is not a list of
//! messages: a driver that takes none of them makes nothing grow.
//!
//! No port is a console of the guest's (`hvc`), so none has a size: there is no agreement between the specification and Linux
//! about the order of height and width in that message.

mod control;
mod saved;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backend::Port;
use host::jail::Role;
use host::poll::{Bell, Poller, Trigger};
use state::{Record, StateError};
use x86::bits::{index, low16, low32};

use self::control::{Control, Message};
use crate::queue::Chain;
use crate::service::{self, Kind, Malformed, Pump, Service};
use crate::transport::Queues;

// Features (5.3.3).
const MULTIPORT: u64 = 1 << 1;

/// The control queues, to the driver and from it.
const CONTROL_IN: u16 = 2;
const CONTROL_OUT: u16 = 3;
/// The most chains taken at once.
const BATCH: usize = 16;
/// The longest output of one chain. Linux's driver sends 32 KiB, and what fits in a pipe when it splices.
const LONGEST_OUTPUT: u64 = 1 << 20;
/// The most input in one chain.
const LONGEST_INPUT: usize = 64 << 10;

/// The device.
pub struct Console {
    // Static.
    config: [u8; 12],
    ports: Vec<Arc<Port>>,
    bell: Bell,
    // Glue: used by the device's thread only.
    poller: Mutex<Poller>,
    // Volatile.
    control: Mutex<Control>,
}

impl Console {
    /// The most ports: each has two of a device's vectors, beside those of control and configuration.
    pub const MOST_PORTS: usize = 16;

    /// A device with these ports, of which [`Console::MOST_PORTS`] are used, and the bell that they ring.
    ///
    /// # Errors
    /// If the host has no descriptors left.
    pub fn new(mut ports: Vec<Arc<Port>>, bell: Bell) -> io::Result<Self> {
        ports.truncate(Self::MOST_PORTS);
        let poller = Poller::new()?;
        poller.add(bell.as_fd(), 0, Trigger::Edge)?;
        // Columns and rows, which are not offered, then the number of ports (5.3.4).
        let mut config = [0; 12];
        if let Some(place) = config.get_mut(4..8) {
            place.copy_from_slice(&low32(ports.len() as u64).to_le_bytes());
        }
        let control = Mutex::new(Control::new(ports.len()));
        Ok(Self { config, ports, bell, poller: Mutex::new(poller), control })
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queues of a port, to the driver and from it (5.3.2).
fn queues_of(port: usize) -> (u16, u16) {
    let first = if port == 0 { 0 } else { 2 + 2 * low16(port as u64) };
    (first, first + 1)
}

impl Service for Console {
    fn kind(&self) -> Kind {
        Kind { name: "virtio-console", id: 3, class: 0x07_8000 }
    }

    fn role(&self) -> Role {
        Role::Ports
    }

    fn features(&self) -> u64 {
        MULTIPORT
    }

    fn queues(&self) -> u16 {
        4 + 2 * low16(self.ports.len().saturating_sub(1) as u64)
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.config)
    }

    fn pump(&self) -> Option<&dyn Pump> {
        Some(self)
    }

    fn save(&self) -> Option<Record> {
        Some(saved::save(&self.control()))
    }

    fn restore(&self, record: Option<&Record>) -> Result<(), StateError> {
        saved::restore(&mut self.control(), record)
    }
}

impl Pump for Console {
    fn wake(&self) {
        self.bell.ring();
    }

    fn wait(&self) {
        let poller = self.poller.lock().unwrap_or_else(PoisonError::into_inner);
        // It fails for want of memory only; then the device's thread looks again at once.
        let _ = poller.wait(&mut Vec::new(), None);
    }

    fn turn(&self, queues: &Queues<'_>) -> bool {
        let mut control = self.control();
        let mut more = false;
        if queues.take(CONTROL_OUT, 0).features() & MULTIPORT == 0 {
            // It has been reset, or its driver knows one port.
            control.forget();
            if let Some(port) = self.ports.first() {
                more |= send(port, queues, 0) | receive(port, queues, 0);
            }
            return more;
        }
        more |= hear(&mut control, queues);
        more |= tell(&mut control, &self.ports, queues);
        for (number, port) in self.ports.iter().enumerate() {
            more |= send(port, queues, number);
            if control.has_open(number) {
                more |= receive(port, queues, number);
            }
        }
        more
    }
}

/// Takes what the driver says of ports; true if there may be more.
fn hear(control: &mut Control, queues: &Queues<'_>) -> bool {
    queues.drain(
        CONTROL_OUT,
        BATCH,
        control,
        |_| true,
        |control, chain| {
            let (bytes, _) = service::header(queues.memory(), chain)?;
            control.hear(Message::parse(&bytes));
            Ok(())
        },
    )
}

/// Tells the driver what it has not been told of ports, as far as it has room; true if it may have more by now.
fn tell(control: &mut Control, ports: &[Arc<Port>], queues: &Queues<'_>) -> bool {
    if control.next(ports).is_none() {
        return false;
    }
    let mut batch = queues.take(CONTROL_IN, BATCH);
    while let Some(message) = control.next(ports)
        && let Some(chain) = batch.next()
    {
        let bytes = message.bytes(ports);
        let has_room = chain.writable.bytes() >= bytes.len() as u64;
        let told = if has_room {
            chain.writable.write(queues.memory(), &bytes).map_err(|_| Malformed)
        } else {
            Err(Malformed)
        };
        batch.answer(chain.ticket, told.map(|written| low32(written as u64)));
        control.told(message);
    }
    control.next(ports).is_some() && batch.has_more()
}

/// Takes output, as long as the port has room; true if there may be more that it has room for.
fn send(port: &Port, queues: &Queues<'_>, number: usize) -> bool {
    let (_, queue) = queues_of(number);
    queues.drain(
        queue,
        BATCH,
        &mut (),
        |()| port.has_room(),
        |(), chain| {
            port.put(&output(chain, queues)?);
            Ok(())
        },
    )
}

fn output(chain: &Chain, queues: &Queues<'_>) -> Result<Vec<u8>, Malformed> {
    let len = chain.readable.bytes();
    if len > LONGEST_OUTPUT {
        return Err(Malformed);
    }
    let mut bytes = vec![0; index(len)];
    chain.readable.read(queues.memory(), &mut bytes).map_err(|_| Malformed)?;
    Ok(bytes)
}

/// Gives input, as long as there is some and the driver has room; true if it may have more by now.
fn receive(port: &Port, queues: &Queues<'_>, number: usize) -> bool {
    if !port.has_bytes() {
        return false;
    }
    let (queue, _) = queues_of(number);
    let mut batch = queues.take(queue, BATCH);
    while port.has_bytes()
        && let Some(chain) = batch.next()
    {
        let bytes = port.take(index(chain.writable.bytes()).min(LONGEST_INPUT));
        let given = chain.writable.write(queues.memory(), &bytes).map_err(|_| Malformed);
        batch.answer(chain.ticket, given.map(|written| low32(written as u64)));
    }
    port.has_bytes() && batch.has_more()
}
