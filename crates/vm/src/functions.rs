//! What is on the PCI bus, and the threads that serve it.
//!
//! Order matters to guests: the entropy source is device 1, disks follow in the order of the description, then shared
//! directories.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use backend::share::{Access, Share};
use backend::{Disk, RawDisk};
use bus::Lifecycle;
use spec::{DiskSpec, ShareSpec, VmSpec};
use virtio::blk::Blk;
use virtio::fs::{Fs, Validity};
use virtio::rng::Rng;
use virtio::service::Service;
use virtio::transport::VirtioPci;

use crate::VmError;
use crate::events::{EventSink, Watch};

/// The most devices of a description: device 0 is the bridge, device 1 the entropy source.
const MOST: usize = 30;

/// The devices of a description. Images and directories are opened here, once for the life of the machine.
///
/// # Errors
/// If an image cannot be a disk or a directory cannot be shared, or there are too many.
pub(crate) fn of(spec: &VmSpec) -> Result<Vec<Box<dyn Service>>, VmError> {
    if spec.disks.len() > DiskSpec::MOST {
        return Err(VmError::TooManyDisks { count: spec.disks.len(), most: DiskSpec::MOST });
    }
    if spec.shares.len() > ShareSpec::MOST {
        return Err(VmError::TooManyShares { count: spec.shares.len(), most: ShareSpec::MOST });
    }
    let count = spec.disks.len() + spec.shares.len();
    if count > MOST {
        return Err(VmError::TooManyDevices { count, most: MOST });
    }
    let mut services: Vec<Box<dyn Service>> = vec![Box::new(Rng)];
    // A queue for each processor, so that none waits for another's requests.
    let queues = u16::try_from(spec.cpus.get()).unwrap_or(u16::MAX);
    for (number, DiskSpec { file, read_only }) in spec.disks.iter().enumerate() {
        let disk: Arc<dyn Disk> = Arc::new(RawDisk::open(file, *read_only)?);
        services.push(Box::new(Blk::new(disk, &format!("disk{number}"), queues)));
    }
    for ShareSpec { tag, directory, read_only, settled } in &spec.shares {
        let access = if *read_only { Access::ReadOnly } else { Access::ReadWrite };
        let validity = if *settled { Validity::Settled } else { Validity::Changing };
        services.push(Box::new(Fs::new(Share::open(directory, access)?, tag, validity, queues)));
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
