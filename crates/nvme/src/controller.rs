//! The controller's state and what changes it, all under one lock.

use std::sync::Arc;

use bus::pci::{Endpoint, Identity, Layout, Socket};
use memory::GuestMemory;

use crate::command::Command;
use crate::events::{Event, Events};
use crate::features::Features;
use crate::identify::{DEVICE, Disk, VENDOR};
use crate::log::{Failed, Logs, Moved};
use crate::queue::{Completion, Entry, Ring, Submission};
use crate::registers::{BAR, BAR_BYTES, PENDING, Registers, TABLE};
use crate::status::Status;

/// Mass storage, non-volatile memory, NVM Express.
const CLASS: u32 = 0x01_0802;

/// The admin queues.
pub(crate) const ADMIN: u16 = 0;

/// Whether commands are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    Paused,
    Ended,
}

/// How a command ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) command: u16,
    pub(crate) status: Status,
    /// Dword 0 of the completion.
    pub(crate) result: u32,
    pub(crate) moved: Moved,
    /// Where on the disk, for the error log.
    pub(crate) sector: u64,
    pub(crate) namespace: u32,
}

/// The state.
pub(crate) struct Controller {
    // Static.
    pub(crate) disk: Disk,
    /// How many I/O queues of either kind there are at most.
    pub(crate) queues: u16,
    // Glue.
    pub(crate) memory: Arc<GuestMemory>,
    // Volatile.
    pub(crate) endpoint: Endpoint,
    pub(crate) registers: Registers,
    /// By identifier; the first is the admin queue.
    pub(crate) submissions: Vec<Option<Submission>>,
    pub(crate) completions: Vec<Option<Completion>>,
    pub(crate) features: Features,
    pub(crate) events: Events,
    pub(crate) logs: Logs,
    pub(crate) phase: Phase,
    /// The driver's reset waits for commands to come back.
    pub(crate) resetting: bool,
    /// What is written is being made durable, because of a shutdown.
    pub(crate) flushing: bool,
}

impl Controller {
    /// In the power-on state.
    pub(crate) fn new(disk: Disk, queues: u16, socket: Socket) -> Self {
        let identity = Identity {
            vendor: VENDOR,
            device: DEVICE,
            revision: 1,
            class: CLASS,
            subsystem_vendor: VENDOR,
            subsystem: DEVICE,
        };
        // A vector for each completion queue.
        let layout =
            Layout { bar: BAR, bytes: BAR_BYTES, vectors: queues + 1, table: TABLE, pending: PENDING };
        let memory = socket.memory.clone();
        let endpoint = Endpoint::new(&identity, &layout, socket, |_| {});
        let count = usize::from(queues) + 1;
        Self {
            disk,
            queues,
            memory,
            endpoint,
            registers: Registers::RESET,
            submissions: vec![None; count],
            completions: vec![None; count],
            features: Features::new(),
            events: Events::default(),
            logs: Logs::default(),
            phase: Phase::Running,
            resetting: false,
            flushing: false,
        }
    }

    pub(crate) fn submission(&mut self, queue: u16) -> Option<&mut Submission> {
        self.submissions.get_mut(usize::from(queue))?.as_mut()
    }

    pub(crate) fn completion(&mut self, queue: u16) -> Option<&mut Completion> {
        self.completions.get_mut(usize::from(queue))?.as_mut()
    }

    // ---- life ----------------------------------------------------------------------------------------------------

    /// Makes the admin queues and is ready, or fails: what the driver has set cannot be.
    pub(crate) fn enable(&mut self) {
        let (submission, completion) = self.registers.admin_rings();
        let (Some(submission), Some(completion), true) =
            (submission, completion, self.registers.can_be_enabled())
        else {
            self.fail();
            return;
        };
        self.submissions[usize::from(ADMIN)] = Some(Submission::new(submission, ADMIN));
        self.completions[usize::from(ADMIN)] = Some(Completion::new(completion, Some(0)));
        self.registers.set_ready();
    }

    /// The driver has done what leaves the controller unable to go on: it needs a reset.
    pub(crate) fn fail(&mut self) {
        self.registers.set_failed();
    }

    /// How much is out: commands that are being served, and a shutdown's flush.
    pub(crate) fn out(&self) -> u32 {
        let commands = self.submissions.iter().flatten().map(|queue| u32::from(queue.out)).sum::<u32>();
        commands + u32::from(self.flushing)
    }

    pub(crate) fn enter(&mut self, phase: Phase) {
        // What has ended stays so.
        if self.phase != Phase::Ended {
            self.phase = phase;
        }
    }

    /// Takes nothing any more, and is reset as soon as nothing is out.
    pub(crate) fn begin_reset(&mut self) {
        self.resetting = true;
        self.finish_reset();
    }

    /// Ends the driver's reset, unless commands are out still.
    pub(crate) fn finish_reset(&mut self) {
        if self.resetting && self.out() == 0 {
            self.resetting = false;
            self.registers.reset_controller();
            self.submissions.fill(None);
            self.completions.fill(None);
            self.features = Features::new();
            self.events = Events::default();
            self.update_pin();
        }
    }

    /// The power-on state. Nothing is out.
    pub(crate) fn power_on(&mut self) {
        self.begin_reset();
        self.registers = Registers::RESET;
        self.logs = Logs::default();
        self.endpoint.reset();
    }

    /// Whether anything is done for the driver at the moment.
    fn is_serving(&self) -> bool {
        self.phase == Phase::Running
            && !self.resetting
            && self.registers.is_working()
            && self.endpoint.command().bus_master()
    }

    /// Whether commands are taken from a queue at the moment.
    pub(crate) fn serves(&self, queue: u16) -> bool {
        let exists = |queue: &Submission| queue.deleting.is_none();
        self.is_serving()
            && !self.registers.is_shut_down()
            && self.submissions.get(usize::from(queue)).and_then(Option::as_ref).is_some_and(exists)
    }

    /// Whether a queue's worker has something to do.
    pub(crate) fn has_work(&self, queue: u16) -> bool {
        let flush = queue == ADMIN && self.wants_flush();
        flush || self.serves(queue) && self.takeable(queue) != 0
    }

    /// Whether a shutdown waits for what is written to be made durable.
    pub(crate) fn wants_flush(&self) -> bool {
        self.phase == Phase::Running
            && !self.resetting
            && self.registers.is_shutting_down()
            && self.out() == 0
    }

    // ---- queues --------------------------------------------------------------------------------------------------

    /// How many commands of a queue can be taken: those that are there and whose completions there is room for.
    fn takeable(&self, queue: u16) -> u16 {
        let Some(Some(queue)) = self.submissions.get(usize::from(queue)) else { return 0 };
        let Some(Some(completion)) = self.completions.get(usize::from(queue.completion)) else { return 0 };
        queue.waiting().min(completion.room())
    }

    /// Takes commands, `most` at most.
    pub(crate) fn take(&mut self, number: u16, most: u16) -> Vec<Command> {
        if !self.serves(number) {
            return Vec::new();
        }
        let count = self.takeable(number).min(most);
        let memory = self.memory.clone();
        let Some(queue) = self.submission(number) else { return Vec::new() };
        let completion = queue.completion;
        let commands: Result<Vec<_>, _> = (0..count).map(|_| queue.take(&memory)).collect();
        let Ok(commands) = commands else {
            // Some were taken perhaps, and none are served.
            queue.out = 0;
            self.fail();
            return Vec::new();
        };
        if let Some(completion) = self.completion(completion) {
            completion.owed += count;
        }
        commands
    }

    /// Ends that commands are out: some are answered, and the last ones put back. The driver may have reset the controller
    /// meanwhile, and then hears of none.
    pub(crate) fn give(&mut self, number: u16, answers: &[Answer], unserved: u16) {
        let count = u16::try_from(answers.len()).unwrap_or(u16::MAX);
        let Some(queue) = self.submission(number) else { return };
        queue.put_back(unserved);
        queue.out = queue.out.saturating_sub(count);
        let (head, completion) = (queue.head, queue.completion);
        if let Some(completion) = self.completion(completion) {
            completion.owed = completion.owed.saturating_sub(count + unserved);
        }
        if self.resetting {
            self.finish_reset();
            return;
        }
        for answer in answers {
            self.logs.count(answer.moved);
            let status = answer.status.field();
            if answer.status != Status::SUCCESS {
                self.logs.fail(Failed {
                    queue: number,
                    command: answer.command,
                    status,
                    sector: answer.sector,
                    namespace: answer.namespace,
                });
            }
            let (submission, command, result) = ((head, number), answer.command, answer.result);
            self.post(completion, &Entry { result, submission, command, status });
        }
        if !answers.is_empty() {
            self.interrupt(completion);
        }
        self.finish_deletion(number);
    }

    fn post(&mut self, queue: u16, entry: &Entry) {
        let memory = self.memory.clone();
        let posted = self.completion(queue).map(|queue| queue.post(&memory, entry));
        if let Some(Err(_)) = posted {
            self.fail();
        }
    }

    /// Deletes a queue that is to be deleted and has nothing out, and says so to whoever asked for it.
    pub(crate) fn finish_deletion(&mut self, number: u16) {
        let Some(queue) = self.submission(number) else { return };
        let Some(command) = queue.deleting.filter(|_| queue.out == 0) else { return };
        self.submissions[usize::from(number)] = None;
        if let Some(completion) = self.completion(ADMIN) {
            completion.owed = completion.owed.saturating_sub(1);
        }
        self.answer_admin(command, 0);
    }

    /// Completes an admin command that has waited.
    fn answer_admin(&mut self, command: u16, result: u32) {
        let head = self.submission(ADMIN).map_or(0, |queue| queue.head);
        self.post(ADMIN, &Entry { result, submission: (head, ADMIN), command, status: 0 });
        self.interrupt(ADMIN);
    }

    /// Tells events that can be told.
    pub(crate) fn tell_events(&mut self) {
        while self.is_serving()
            && self.completion(ADMIN).is_some_and(|queue| queue.room() > 0)
            && let Some((command, result)) = self.events.tell()
        {
            self.answer_admin(command, result);
        }
    }

    /// A doorbell: of a submission queue its tail, of a completion queue its head.
    pub(crate) fn ring_doorbell(&mut self, number: u64, value: u32) {
        let queue = x86::bits::low16(number / 2);
        let rung = if number.is_multiple_of(2) {
            self.submission(queue).map(|queue| queue.ring_doorbell(value))
        } else {
            self.completion(queue).map(|queue| queue.ring_doorbell(value))
        };
        match rung {
            Some(true) if number.is_multiple_of(2) => {}
            Some(true) => self.update_pin(),
            Some(false) => self.events.raise(Event::DoorbellValue),
            None => self.events.raise(Event::DoorbellRegister),
        }
        // There may be room now.
        self.tell_events();
    }

    // ---- interrupts ----------------------------------------------------------------------------------------------

    /// Interrupts for new entries of a completion queue.
    fn interrupt(&mut self, queue: u16) {
        let Some(vector) = self.completion(queue).and_then(|queue| queue.vector) else { return };
        if self.endpoint.uses_messages() {
            self.endpoint.send(vector);
        } else {
            self.update_pin();
        }
    }

    /// Whether any queue has entries that the driver has not consumed and wants an interrupt for.
    pub(crate) fn waits(&self) -> bool {
        let calls = |queue: &Completion| {
            let wanted = queue.vector.is_some_and(|vector| !self.registers.masks(vector));
            wanted && queue.waiting() != 0
        };
        self.completions.iter().flatten().any(calls)
    }

    /// The pin is high while that is so.
    pub(crate) fn update_pin(&mut self) {
        self.endpoint.set_pin(self.waits());
    }

    /// A ring that a driver describes by its base and its size, if it can be and does not have more entries than said.
    pub(crate) fn ring(base: u64, size: u32) -> Result<Ring, Status> {
        if !base.is_multiple_of(x86::PAGE_SIZE) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        let ring = (size <= crate::registers::MOST_ENTRIES).then(|| Ring::new(base, size)).flatten();
        ring.ok_or(Status::QUEUE_SIZE_INVALID)
    }
}
