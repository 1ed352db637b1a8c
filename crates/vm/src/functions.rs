//! What is on the PCI bus, and the threads that serve it.
//!
//! Order matters to guests: the entropy source is device 1, disks follow in the order of the description.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use backend::{Disk, RawDisk};
use bus::Lifecycle;
use spec::{DiskSpec, VmSpec};
use virtio::blk::Blk;
use virtio::rng::Rng;
use virtio::service::Service;
use virtio::transport::VirtioPci;

use crate::VmError;
use crate::events::{EventSink, Watch};

/// The devices of a description. Images are opened here, once for the life of the machine.
///
/// # Errors
/// If an image cannot be a disk, or there are too many.
pub(crate) fn of(spec: &VmSpec) -> Result<Vec<Box<dyn Service>>, VmError> {
    if spec.disks.len() > DiskSpec::MOST {
        return Err(VmError::TooManyDisks { count: spec.disks.len(), most: DiskSpec::MOST });
    }
    let mut services: Vec<Box<dyn Service>> = vec![Box::new(Rng)];
    // A queue for each processor, so that none waits for another's requests.
    let queues = u16::try_from(spec.cpus.get()).unwrap_or(u16::MAX);
    for (number, DiskSpec { file, read_only }) in spec.disks.iter().enumerate() {
        let disk: Arc<dyn Disk> = Arc::new(RawDisk::open(file, *read_only)?);
        services.push(Box::new(Blk::new(disk, &format!("disk{number}"), queues)));
    }
    Ok(services)
}

/// The threads that serve one device's queues.
pub(crate) struct Workers {
    function: Arc<Mutex<VirtioPci>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts them.
    ///
    /// # Errors
    /// If the host has no threads for us.
    pub(crate) fn start(function: Arc<Mutex<VirtioPci>>, events: &EventSink) -> Result<Self, VmError> {
        let (name, lives) = {
            let function = function.lock().unwrap_or_else(PoisonError::into_inner);
            (function.name(), function.workers())
        };
        let mut workers = Self { function, threads: Vec::new() };
        for worker in lives {
            let watch = Watch { thread: "a device's worker", events: events.clone() };
            let live = move || {
                let _watch = watch;
                worker.live();
            };
            let thread = std::thread::Builder::new().name(name.into()).spawn(live);
            workers.threads.push(thread.map_err(VmError::Thread)?);
        }
        Ok(workers)
    }
}

impl Drop for Workers {
    /// Waits for what they are doing: a disk's last request.
    fn drop(&mut self) {
        self.function.lock().unwrap_or_else(PoisonError::into_inner).end();
        for thread in self.threads.drain(..) {
            // A panic has been reported by the panic hook, and to the driver by an event.
            let _ = thread.join();
        }
    }
}
