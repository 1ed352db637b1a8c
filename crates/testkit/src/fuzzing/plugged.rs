//! A virtio device in a slot of its own, with nothing else around it.

use std::sync::{Arc, Mutex};

use bus::pci::{FunctionId, Socket};
use bus::{Latch, NoIrq, Region, SharedDevice, Window};
use memory::GuestMemory;
use virtio::service::Service;
use virtio::transport::{VirtioPci, Worker};

use super::board::lock;

/// Where the device's registers are.
const HOME: u64 = 0xc000_0000;

/// A slot with nothing around it.
pub(super) fn socket(memory: &Arc<GuestMemory>) -> Socket {
    let window = Window::new(Region::mmio(HOME, 0x10_0000));
    Socket {
        id: FunctionId::on_root(1),
        opening: window.opening(),
        home: HOME,
        line: Arc::new(Latch::default()),
        messages: Arc::new(NoIrq),
        memory: memory.clone(),
    }
}

/// The device of a service, and its workers.
pub(super) fn plug(
    service: Box<dyn Service>,
    memory: &Arc<GuestMemory>,
) -> (Arc<Mutex<VirtioPci>>, Vec<Worker>) {
    let device = VirtioPci::new(service, socket(memory));
    let workers = device.workers();
    let device = Arc::new(Mutex::new(device));
    let shared: SharedDevice = device.clone();
    lock(&device).connect(&shared);
    (device, workers)
}
