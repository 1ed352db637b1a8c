//! A virtio device in a slot of its own, with nothing else around it.

use std::sync::{Arc, Mutex};

use bus::pci::Slot;
use memory::GuestMemory;
use virtio::service::Service;
use virtio::transport::{VirtioPci, Worker};

use super::board::lock;

/// The device of a service, and its workers.
pub(super) fn plug(
    service: Box<dyn Service>,
    memory: &Arc<GuestMemory>,
) -> (Arc<Mutex<VirtioPci>>, Vec<Worker>) {
    let device = Slot::new().socket(memory).plug(|socket| VirtioPci::new(service, socket));
    let workers = lock(&device).workers();
    (device, workers)
}
