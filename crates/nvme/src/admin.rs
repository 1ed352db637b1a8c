//! Admin commands (NVM Express 1.4, 5). They are served under the lock: they change the controller's state, and do nothing
//! that takes longer than some memory accesses.

use x86::bits::{index, low8, low16};

use crate::MOST_TRANSFER_BYTES;
use crate::command::{ALL_NAMESPACES, Command, NAMESPACE};
use crate::controller::{ADMIN, Answer, Controller};
use crate::features;
use crate::identify::active_namespaces;
use crate::log::{Logs, Moved};
use crate::prp;
use crate::queue::{Completion, Submission};
use crate::status::Status;

// Opcodes.
const DELETE_SUBMISSION: u8 = 0x00;
const CREATE_SUBMISSION: u8 = 0x01;
const GET_LOG_PAGE: u8 = 0x02;
const DELETE_COMPLETION: u8 = 0x04;
const CREATE_COMPLETION: u8 = 0x05;
const IDENTIFY: u8 = 0x06;
const ABORT: u8 = 0x08;
const SET_FEATURES: u8 = 0x09;
const GET_FEATURES: u8 = 0x0a;
const ASYNC_EVENT: u8 = 0x0c;

/// The queue lies in one piece, the only way there is (`CAP.CQR`).
const CONTIGUOUS: u32 = 1;
const INTERRUPTS: u32 = 1 << 1;
/// Get Log Page leaves events as they are.
const RETAIN_EVENTS: u32 = 1 << 15;
/// Set Features keeps the value over power cycles.
const SAVE: u32 = 1 << 31;
/// An aborted command would have bit 0 clear.
const NOT_ABORTED: u32 = 1;

/// The most commands that are taken at once.
const BATCH: u16 = 32;

/// What becomes of a command: it is completed with this dword 0, or something else will complete it.
enum Outcome {
    Done(u32),
    Waits,
}

impl Controller {
    /// Serves admin commands; false if there are none.
    pub(crate) fn serve_admin(&mut self) -> bool {
        let commands = self.take(ADMIN, BATCH);
        let mut answers = Vec::new();
        for command in &commands {
            let (status, result) = match self.perform(command) {
                Ok(Outcome::Waits) => continue,
                Ok(Outcome::Done(result)) => (Status::SUCCESS, result),
                Err(status) => (status, 0),
            };
            answers.push(Answer {
                command: command.id,
                status,
                result,
                moved: Moved::default(),
                sector: 0,
                namespace: command.namespace,
            });
        }
        self.give(ADMIN, &answers, 0);
        self.tell_events();
        !commands.is_empty()
    }

    fn perform(&mut self, command: &Command) -> Result<Outcome, Status> {
        if !command.is_plain() {
            return Err(Status::INVALID_FIELD);
        }
        match command.opcode {
            IDENTIFY => self.identify(command)?,
            GET_LOG_PAGE => self.log_page(command)?,
            SET_FEATURES => return self.set_features(command).map(Outcome::Done),
            GET_FEATURES => return self.get_features(command).map(Outcome::Done),
            CREATE_COMPLETION => self.create_completion(command)?,
            CREATE_SUBMISSION => self.create_submission(command)?,
            DELETE_COMPLETION => self.delete_completion(command)?,
            DELETE_SUBMISSION => return self.delete_submission(command),
            // What has been taken comes to its end soon.
            ABORT => return Ok(Outcome::Done(NOT_ABORTED)),
            ASYNC_EVENT => {
                self.events.request(command.id)?;
                self.set_aside(false);
                return Ok(Outcome::Waits);
            }
            _ => return Err(Status::INVALID_OPCODE),
        }
        Ok(Outcome::Done(0))
    }

    /// An admin command is not out any more, though it has not been completed: nobody waits for it. The completion queue owes
    /// an entry for it still, or finds room when the time has come.
    fn set_aside(&mut self, owed: bool) {
        if let Some(queue) = self.submission(ADMIN) {
            queue.out = queue.out.saturating_sub(1);
        }
        if let Some(queue) = self.completion(ADMIN).filter(|_| !owed) {
            queue.owed = queue.owed.saturating_sub(1);
        }
    }

    /// Writes data to where a command wants it.
    fn transfer(&self, command: &Command, data: &[u8]) -> Result<(), Status> {
        let mut rest = data;
        for range in prp::ranges(&self.memory, command.prp, data.len() as u64)? {
            let (now, later) = rest.split_at(index(range.len).min(rest.len()));
            self.memory.write(range.gpa, now)?;
            rest = later;
        }
        Ok(())
    }

    fn identify(&self, command: &Command) -> Result<(), Status> {
        let known = |namespace| if namespace == NAMESPACE { Ok(()) } else { Err(Status::INVALID_NAMESPACE) };
        let page = match low8(command.word(10).into()) {
            0 => known(command.namespace).map(|()| self.disk.namespace())?,
            1 => self.disk.controller(),
            2 if command.namespace < ALL_NAMESPACES - 1 => active_namespaces(command.namespace),
            2 => return Err(Status::INVALID_NAMESPACE),
            3 => known(command.namespace).map(|()| self.disk.descriptors())?,
            _ => return Err(Status::INVALID_FIELD),
        };
        self.transfer(command, &page)
    }

    fn log_page(&mut self, command: &Command) -> Result<(), Status> {
        let word = command.word(10);
        let number = low8(word.into());
        let words = u64::from(command.word(11) & 0xffff) << 16 | u64::from(word >> 16);
        let bytes = (words + 1) * 4;
        let page = self.logs.page(number).ok_or(Status::LOG_PAGE_INVALID)?;
        let rest = usize::try_from(command.long(12)).ok().and_then(|offset| page.get(offset..));
        // All are the controller's, so that no namespace or all of them are meant.
        let (Some(rest), 0 | ALL_NAMESPACES) = (rest, command.namespace) else {
            return Err(Status::INVALID_FIELD);
        };
        if bytes > MOST_TRANSFER_BYTES || !command.long(12).is_multiple_of(4) {
            return Err(Status::INVALID_FIELD);
        }
        let mut data = rest.to_vec();
        data.resize(index(bytes), 0);
        self.transfer(command, &data)?;
        if word & RETAIN_EVENTS == 0 && Logs::tells_of_errors(number) {
            self.events.acknowledge();
        }
        Ok(())
    }

    fn set_features(&mut self, command: &Command) -> Result<u32, Status> {
        let (feature, value) = (low8(command.word(10).into()), command.word(11));
        if command.word(10) & SAVE != 0 {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        if feature == features::QUEUES {
            return self.set_queues(value);
        }
        self.features.set(feature, value, self.endpoint.vectors()).map(|()| 0)
    }

    fn get_features(&self, command: &Command) -> Result<u32, Status> {
        match low8(command.word(10).into()) {
            features::QUEUES => Ok(self.queue_counts()),
            feature => self.features.get(feature, command.word(11), self.endpoint.vectors()),
        }
    }

    /// A driver asks for numbers of queues, and gets what there is.
    fn set_queues(&self, value: u32) -> Result<u32, Status> {
        if value & 0xffff == 0xffff || value >> 16 == 0xffff {
            return Err(Status::INVALID_FIELD);
        }
        let made = |queues: usize| queues > 1;
        let count = self.submissions.iter().flatten().count().max(self.completions.iter().flatten().count());
        if made(count) { Err(Status::SEQUENCE_ERROR) } else { Ok(self.queue_counts()) }
    }

    /// How many I/O queues there are of each kind, less one.
    fn queue_counts(&self) -> u32 {
        let count = u32::from(self.queues) - 1;
        count << 16 | count
    }

    /// The identifier of a queue that a command is to make, and of which there is none yet.
    fn new_queue(&self, command: &Command, is_there: bool) -> Result<u16, Status> {
        let queue = low16(command.word(10).into());
        if queue == ADMIN || queue > self.queues || is_there {
            return Err(Status::QUEUE_IDENTIFIER_INVALID);
        }
        if command.word(11) & CONTIGUOUS == 0 {
            return Err(Status::INVALID_FIELD);
        }
        Ok(queue)
    }

    fn create_completion(&mut self, command: &Command) -> Result<(), Status> {
        let exists = self.completion(low16(command.word(10).into())).is_some();
        let queue = self.new_queue(command, exists)?;
        let ring = Self::ring(command.prp[0], (command.word(10) >> 16) + 1)?;
        let vector = low16(u64::from(command.word(11) >> 16));
        if vector >= self.endpoint.vectors() {
            return Err(Status::INTERRUPT_VECTOR_INVALID);
        }
        if !self.registers.has_entry_sizes() {
            return Err(Status::QUEUE_SIZE_INVALID);
        }
        let vector = (command.word(11) & INTERRUPTS != 0).then_some(vector);
        self.completions[usize::from(queue)] = Some(Completion::new(ring, vector));
        Ok(())
    }

    fn create_submission(&mut self, command: &Command) -> Result<(), Status> {
        let exists = self.submission(low16(command.word(10).into())).is_some();
        let queue = self.new_queue(command, exists)?;
        let ring = Self::ring(command.prp[0], (command.word(10) >> 16) + 1)?;
        let completion = low16(u64::from(command.word(11) >> 16));
        if completion == ADMIN || completion > self.queues {
            return Err(Status::QUEUE_IDENTIFIER_INVALID);
        }
        if self.completion(completion).is_none() {
            return Err(Status::COMPLETION_QUEUE_INVALID);
        }
        if !self.registers.has_entry_sizes() {
            return Err(Status::QUEUE_SIZE_INVALID);
        }
        self.submissions[usize::from(queue)] = Some(Submission::new(ring, completion));
        Ok(())
    }

    fn delete_completion(&mut self, command: &Command) -> Result<(), Status> {
        let queue = low16(command.word(10).into());
        if queue == ADMIN || self.completion(queue).is_none() {
            return Err(Status::QUEUE_IDENTIFIER_INVALID);
        }
        if self.submissions.iter().flatten().any(|submission| submission.completion == queue) {
            return Err(Status::QUEUE_DELETION_INVALID);
        }
        self.completions[usize::from(queue)] = None;
        self.update_pin();
        Ok(())
    }

    /// The queue goes when nothing of it is out. What it has and nobody has taken is forgotten.
    fn delete_submission(&mut self, command: &Command) -> Result<Outcome, Status> {
        let number = low16(command.word(10).into());
        let queue = self.submission(number).filter(|queue| number != ADMIN && queue.deleting.is_none());
        queue.ok_or(Status::QUEUE_IDENTIFIER_INVALID)?.deleting = Some(command.id);
        self.set_aside(true);
        self.finish_deletion(number);
        Ok(Outcome::Waits)
    }
}
