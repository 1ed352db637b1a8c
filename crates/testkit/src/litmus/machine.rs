//! Several vCPUs of one engine on one memory, each on a thread of its own, and a watch over them.
//!
//! A batch of rounds ends when all have halted. Nobody says how long that takes; but a batch in which the barrier does not
//! move for [`PATIENCE`] has hung. Then all are asked to leave, and it is said where each of them was. One that does not even
//! leave keeps its thread, and the test fails with that.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use engine::{Engine, Exit, Kick, Vcpu, VcpuId, VcpuSetup};
use memory::GuestMemory;
use mmu::{Mmu, Technique};
use x86::cpuid::CpuidTable;
use x86::state::gpr;
use x86::{CpuState, Gpa};

use super::LitmusError;
use super::program::{ROW, WORDS, barrier, code_of, records_of, stack_of};
use crate::flat::{NoMachine, long_mode, memory};
use crate::oracle::random::Random;

/// A round takes microseconds; on a host that is busy with other things, milliseconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait for a vCPU that was asked to leave.
const GRACE: Duration = Duration::from_secs(10);
/// How often to look at the barrier.
const LOOK: Duration = Duration::from_millis(500);

/// A row of a processor: its registers, or the final values.
pub(super) type Row = [u64; WORDS];

/// The vCPUs of a test.
pub(super) struct Machine {
    memory: Arc<GuestMemory>,
    vcpus: Vec<Box<dyn Vcpu>>,
    random: Random,
    patience: Duration,
}

/// A vCPU that has stopped.
struct Stopped {
    index: usize,
    vcpu: Box<dyn Vcpu>,
    exit: Exit,
}

impl Machine {
    /// vCPUs that will run these programs.
    ///
    /// # Errors
    /// If the host refuses.
    pub(super) fn new(
        engine: &dyn Engine,
        cpuid: &Arc<CpuidTable>,
        programs: &[Vec<u8>],
        patience: Duration,
    ) -> Result<Self, LitmusError> {
        let memory = Arc::new(memory()?);
        let mmu = Mmu::new(memory.clone(), Technique::default());
        let mut vcpus = Vec::new();
        for (index, program) in programs.iter().enumerate() {
            memory.write(Gpa(code_of(index)), program)?;
            let id = VcpuId(u32::try_from(index).unwrap_or(u32::MAX));
            let platform = Arc::new(NoMachine);
            vcpus.push(engine.create_vcpu(VcpuSetup {
                id,
                mmu: mmu.clone(),
                platform,
                cpuid: cpuid.clone(),
            })?);
        }
        Ok(Self { memory, vcpus, random: Random::new(1, 0), patience })
    }

    /// The guest's memory.
    pub(super) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Runs this many rounds, and the one more that records the last one's final values.
    ///
    /// # Errors
    /// If a vCPU hangs or stops elsewhere than at its program's end. The machine is of no use then.
    pub(super) fn batch(&mut self, rounds: u64) -> Result<(), LitmusError> {
        self.memory.write_word(Gpa(barrier()), 0u64)?;
        let count = self.vcpus.len();
        let (send, stopped) = mpsc::channel();
        let mut kicks = Vec::new();
        for (index, mut vcpu) in self.vcpus.drain(..).enumerate() {
            vcpu.set_state(&start(index, rounds + 1, self.random.bits()));
            kicks.push(vcpu.kick_handle());
            let send = send.clone();
            std::thread::spawn(move || {
                // Left alone, the scheduler likes to put threads that wake each other on one processor. Where it does
                // not let itself be told, the tests only see less.
                host::thread::pin(index);
                let exit = vcpu.run();
                // Nobody listens any more if the others were given up.
                let _ = send.send(Stopped { index, vcpu, exit });
            });
        }
        drop(send);
        let (mut all, in_time) = self.wait(count, &kicks, &stopped);
        all.sort_by_key(|stopped| stopped.index);
        if in_time && all.len() == count && all.iter().all(|stopped| stopped.exit == Exit::Halted) {
            self.vcpus.extend(all.into_iter().map(|stopped| stopped.vcpu));
            return Ok(());
        }
        Err(LitmusError::Stuck { progress: self.progress(), vcpus: describe(&all, count) })
    }

    /// Waits until all have stopped; `false` if they had to be asked to.
    fn wait(&self, count: usize, kicks: &[Kick], stopped: &Receiver<Stopped>) -> (Vec<Stopped>, bool) {
        let mut all = Vec::new();
        let mut last = (self.progress(), Instant::now());
        while all.len() < count {
            match stopped.recv_timeout(LOOK) {
                Ok(one) => all.push(one),
                Err(RecvTimeoutError::Disconnected) => return (all, true),
                Err(RecvTimeoutError::Timeout) => {
                    let progress = self.progress();
                    if progress != last.0 {
                        last = (progress, Instant::now());
                    } else if last.1.elapsed() > self.patience {
                        break;
                    }
                }
            }
        }
        let in_time = all.len() == count;
        if !in_time {
            kicks.iter().for_each(Kick::leave);
            let end = Instant::now() + GRACE;
            while let Ok(one) = stopped.recv_timeout(end.saturating_duration_since(Instant::now())) {
                all.push(one);
            }
        }
        (all, in_time)
    }

    /// How often a barrier was reached.
    fn progress(&self) -> u64 {
        self.memory.read_word(Gpa(barrier())).unwrap_or(0)
    }

    /// What a processor recorded in a round; for the number after the last processor's, the final values of the
    /// round *before*.
    ///
    /// # Errors
    /// If it is not in memory, which would be a mistake of the layout.
    pub(super) fn row(&self, processor: usize, round: u64) -> Result<Row, LitmusError> {
        let at = records_of(processor) + round * ROW;
        let mut row = [0; WORDS];
        for (offset, word) in (0..).step_by(8).zip(&mut row) {
            *word = self.memory.read_word(Gpa(at + offset))?;
        }
        Ok(row)
    }
}

/// The registers that a program expects.
fn start(index: usize, rounds: u64, seed: u64) -> CpuState {
    let mut state = long_mode();
    state.rip = code_of(index);
    state.gpr[gpr::RSP] = stack_of(index);
    state.gpr[gpr::RBP] = rounds;
    state.gpr[gpr::R12] = index as u64;
    state.gpr[gpr::R13] = seed;
    state.gpr[gpr::R15] = records_of(index);
    state
}

fn describe(all: &[Stopped], count: usize) -> String {
    let one = |index: usize| match all.iter().find(|stopped| stopped.index == index) {
        Some(Stopped { vcpu, exit, .. }) => {
            let state = vcpu.state();
            let rounds = state.gpr[gpr::RBP];
            format!("vCPU {index}: {exit:?} at {:#x} with {rounds} rounds to go", state.rip)
        }
        None => format!("vCPU {index}: cannot be stopped, or panicked"),
    };
    (0..count).map(one).collect::<Vec<_>>().join("; ")
}
