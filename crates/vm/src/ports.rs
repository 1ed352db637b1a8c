//! The host ends of the guest's ports ([`virtio::console`]).
//!
//! What a guest sends through a port goes to its [`SerialSink`] on a thread of the port's own, so that a slow reader delays
//! that port only. The guest then waits when the port's room is full, as at a pipe.

use std::sync::Arc;

use backend::Port;
use host::jail::Role;
use host::poll::Bell;
use virtio::console::Console;
use virtio::service::Service;

use crate::VmError;
use crate::events::{EventSink, Watch};
use crate::serial::SerialSink;

/// A port that is to be there: its name, and where the guest's bytes go.
pub(crate) type Wanted = (String, Box<dyn SerialSink>);

/// Where bytes for the guest are put. Clones are the same port.
#[derive(Clone)]
pub struct PortInput(Arc<Port>);

impl PortInput {
    /// Sends bytes to the guest, waiting while too many are on their way. False once the VM has stopped.
    pub fn send(&self, bytes: &[u8]) -> bool {
        self.0.write(bytes)
    }
}

/// The ports of a machine, closed when it goes.
#[derive(Default)]
pub(crate) struct Ports(Vec<Arc<Port>>);

impl Ports {
    /// Makes the ports and the device that has them; none if there are none.
    ///
    /// # Errors
    /// If the host has no threads or descriptors for them.
    pub(crate) fn start(
        wanted: Vec<Wanted>,
        events: &EventSink,
    ) -> Result<(Self, Option<Box<dyn Service>>), VmError> {
        if wanted.is_empty() {
            return Ok((Self::default(), None));
        }
        let bell = Bell::new().map_err(VmError::Ports)?;
        let mut ports = Self::default();
        for (name, mut sink) in wanted {
            let port = Arc::new(Port::new(&name, bell.clone()));
            ports.0.push(port.clone());
            let watch = Watch { thread: "a port", events: events.clone() };
            let live = move || {
                let _watch = watch;
                let mut bytes = Vec::new();
                while port.read(&mut bytes) {
                    sink.write(&bytes);
                }
            };
            // It ends when the port is closed and its sink lets it, which nobody waits for.
            host::thread::spawn("port", Role::Console, live).map_err(VmError::Thread)?;
        }
        let console = Console::new(ports.0.clone(), bell).map_err(VmError::Ports)?;
        Ok((ports, Some(Box::new(console))))
    }

    /// Their far ends, in order.
    pub(crate) fn inputs(&self) -> Vec<PortInput> {
        self.0.iter().cloned().map(PortInput).collect()
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        self.0.iter().for_each(|port| port.close());
    }
}
