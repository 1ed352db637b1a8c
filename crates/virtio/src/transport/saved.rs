//! The device's saved form. Requests are never part of it: a paused device has none out, and what a driver has made
//! available and nobody has taken is in guest memory.

use bus::pci::EndpointState;
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};

use super::QUEUE_SIZE;
use super::function::{QueueState, Registers, Setup, State, status};
use crate::queue::{Areas, Progress, Queue};
use crate::service::Service;

#[derive(Serialize, Deserialize)]
struct VirtioState {
    /// The device type: a record of another device in this place is refused.
    kind: u16,
    endpoint: EndpointState,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: u8,
    queue_select: u16,
    isr: u8,
    generation: u8,
    queues: Vec<SavedQueue>,
    /// What the device remembers, apart from how it is reached.
    service: Option<Record>,
}

#[derive(Serialize, Deserialize)]
struct SavedQueue {
    size: u16,
    vector: u16,
    areas: Areas,
    /// Of an enabled queue.
    progress: Option<Progress>,
}

impl Saved for VirtioState {
    const NAME: &'static str = "virtio-pci";
    const VERSION: u16 = 3;
}

fn damaged(name: &'static str, reason: &str) -> StateError {
    StateError::Damaged { name, reason: reason.to_owned() }
}

impl State {
    pub(super) fn save(&self, service: &dyn Service) -> Record {
        let queue = |queue: &QueueState| SavedQueue {
            size: queue.setup.size,
            vector: queue.setup.vector,
            areas: queue.setup.areas,
            progress: queue.ring.as_ref().map(Queue::progress),
        };
        let registers = self.registers;
        Record::encode(&VirtioState {
            kind: self.kind,
            endpoint: self.endpoint.save(),
            device_feature_select: registers.device_feature_select,
            driver_feature_select: registers.driver_feature_select,
            driver_features: registers.driver_features,
            config_vector: registers.config_vector,
            status: registers.status,
            queue_select: registers.queue_select,
            isr: registers.isr,
            generation: registers.generation,
            queues: self.queues.iter().map(queue).collect(),
            service: service.save(),
        })
    }

    pub(super) fn restore(
        &mut self,
        name: &'static str,
        service: &dyn Service,
        record: &Record,
    ) -> Result<(), StateError> {
        let saved: VirtioState = record.decode()?;
        if (saved.kind, saved.queues.len()) != (self.kind, self.queues.len()) {
            return Err(damaged(name, "it is another device's"));
        }
        let registers = self.checked_registers(name, &saved)?;
        let queues = self.checked_queues(name, &saved, &registers)?;
        self.endpoint.check(name, &saved.endpoint)?;
        service.restore(saved.service.as_ref())?;
        self.endpoint.restore(name, saved.endpoint, registers.isr != 0)?;
        (self.registers, self.queues, self.resetting) = (registers, queues, false);
        Ok(())
    }

    fn checked_registers(&self, name: &'static str, saved: &VirtioState) -> Result<Registers, StateError> {
        let agreed = saved.status & status::FEATURES_OK != 0;
        if agreed && saved.driver_features & !self.offered != 0 {
            return Err(damaged(name, "it has features that this device has not"));
        }
        if saved.isr & !3 != 0 || saved.status & status::DRIVER_OK != 0 && !agreed {
            return Err(damaged(name, "a bit that cannot be set"));
        }
        if self.vector(saved.config_vector) != saved.config_vector {
            return Err(damaged(name, "an interrupt that does not exist"));
        }
        Ok(Registers {
            device_feature_select: saved.device_feature_select,
            driver_feature_select: saved.driver_feature_select,
            driver_features: saved.driver_features,
            config_vector: saved.config_vector,
            status: saved.status,
            queue_select: saved.queue_select,
            isr: saved.isr,
            generation: saved.generation,
        })
    }

    fn checked_queues(
        &self,
        name: &'static str,
        saved: &VirtioState,
        registers: &Registers,
    ) -> Result<Vec<QueueState>, StateError> {
        let features = Self::ring_features_of(registers);
        let queue = |queue: &SavedQueue| {
            let SavedQueue { size, vector, areas, progress } = *queue;
            if size > QUEUE_SIZE || self.vector(vector) != vector {
                return Err(damaged(name, "a queue that cannot be"));
            }
            let ring = match progress {
                None => None,
                Some(_) if registers.status & status::FEATURES_OK == 0 => {
                    return Err(damaged(name, "a queue without features"));
                }
                Some(progress) => {
                    let mut ring = Queue::new(size, &areas, features)
                        .map_err(|error| damaged(name, &error.to_string()))?;
                    if !ring.resume_at(progress) {
                        return Err(damaged(name, "a queue that is nowhere"));
                    }
                    Some(ring)
                }
            };
            let setup = Setup { size, vector, enabled: ring.is_some(), areas };
            Ok(QueueState { setup, ring, kicked: true, out: 0 })
        };
        saved.queues.iter().map(queue).collect()
    }
}
