//! The vCPU: events between instructions, blocks of instructions, and what interrupts them.
//!
//! [`Vcpu::run`](engine::Vcpu::run) alternates two steps. *Attend*: if somebody kicked, or an instruction changed what
//! may be let in, take the most urgent deliverable event (SDM vol. 3, table 6-2). *Execute*: one block at full speed, or, while
//! single-stepping, breakpoints or an interrupt shadow are in force, one instruction with every check.
//!
//! An interrupt is seen at the next block boundary after its kick: within 32 instructions, or 1024 elements of a
//! string instruction.

use engine::{Counter, Event, Exit, Kick, VcpuSetup, VcpuStats};
use x86::exception::vector;
use x86::rflags::{IF, RF, TF};
use x86::state::Activity;
use x86::{CpuState, SegmentIndex, Selector};

use crate::block::{Block, Blocks, MAX_OPS};
use crate::cpu::Cpu;
use crate::op::Break;

/// A vCPU that interprets.
pub struct InterpVcpu {
    pub(crate) cpu: Cpu,
    pub(crate) blocks: Blocks,
}

impl InterpVcpu {
    /// A vCPU in the reset state.
    ///
    /// # Errors
    /// If the host refuses memory for the arithmetic unit's code.
    pub(crate) fn new(setup: VcpuSetup) -> Result<Self, native::NativeError> {
        Ok(Self { cpu: Cpu::new(setup)?, blocks: Blocks::new() })
    }

    /// Runs as [`Vcpu::run`](engine::Vcpu::run) does, but for at most `blocks` blocks, of which each turn of a repeated string
    /// instruction is one; `None` if it could go on. Where it stops depends on nothing but the guest, as a kick's place
    /// does not: for what has to be repeatable.
    pub fn run_for(&mut self, blocks: u64) -> Option<Exit> {
        self.cpu.enter();
        let mut exit = None;
        for _ in 0..blocks {
            exit = self.attend();
            if exit.is_some() {
                break;
            }
            // String instructions look at nothing else.
            self.cpu.kick.kick();
            self.execute();
        }
        self.cpu.leave();
        exit
    }

    /// Looks at kicks and pending events; returns an exit if there is one.
    #[cold]
    #[inline(never)]
    pub(crate) fn attend(&mut self) -> Option<Exit> {
        let cpu = &mut self.cpu;
        if cpu.kick.is_raised() && cpu.kick.take() {
            cpu.look = true;
            return Some(Exit::Kicked);
        }
        cpu.look = false;
        if let Some(exception) = cpu.pending.exception.take() {
            cpu.deliver_exception(exception);
        }
        let mut event = cpu.platform.pending(cpu.id);
        if event == Some(Event::Init) {
            cpu.admit(Event::Init);
            // Nobody announces again what came behind it: a start-up IPI, most of the time.
            event = cpu.platform.pending(cpu.id);
        }
        // Only INIT ends a shutdown.
        if let Some(event) = event
            && cpu.activity != Activity::Shutdown
        {
            cpu.admit(event);
        }
        if cpu.activity == Activity::Halted && cpu.platform.take_wakeup(cpu.id) {
            cpu.activity = Activity::Running;
        }
        match cpu.activity {
            Activity::Running => {
                cpu.slow = cpu.stepping();
                if !cpu.slow {
                    // Without breakpoints RF only shows in images that are pushed, one instruction later at most.
                    cpu.flags &= !RF;
                }
                None
            }
            // Whatever wakes it kicks; but look again at the next run in any case.
            idle => {
                cpu.look = true;
                Some(match idle {
                    Activity::Halted => Exit::Halted,
                    Activity::WaitForSipi => Exit::WaitForSipi,
                    _ => Exit::Shutdown,
                })
            }
        }
    }

    /// Executes one block.
    #[inline]
    pub(crate) fn execute(&mut self) {
        let cpu = &mut self.cpu;
        cpu.sync_memory();
        if cpu.slow {
            return self.single_step();
        }
        let result = match self.blocks.at_rip(cpu, MAX_OPS) {
            Ok(block) if cpu.flat || cpu.code_limit_holds(block.len) => cpu.run_ops(block, block.ops.len()),
            Ok(block) => cpu.run_checked(block),
            Err(reason) => Err(reason),
        };
        cpu.finish(result);
    }

    /// Executes one instruction with breakpoints, shadows and single step.
    #[cold]
    pub(crate) fn single_step(&mut self) {
        let cpu = &mut self.cpu;
        let shadowed = std::mem::take(&mut cpu.pending.mov_ss_shadow);
        cpu.pending.sti_shadow = false;
        cpu.look = true;
        if !shadowed && let Some(hit) = cpu.instruction_breakpoint() {
            return cpu.deliver_exception(hit);
        }
        cpu.flags &= !RF;
        cpu.step_suppressed = false;
        let stepping = cpu.flags & TF != 0;
        let result = match self.blocks.at_rip(cpu, MAX_OPS) {
            Ok(block) => cpu.run_checked(block),
            Err(reason) => Err(reason),
        };
        let faulted = cpu.fault.is_some();
        cpu.finish(result);
        if faulted {
            cpu.watch_hits = 0;
            return;
        }
        if let Some(trap) = cpu.debug_trap(stepping && !cpu.step_suppressed) {
            if cpu.activity == Activity::Halted {
                cpu.activity = Activity::Running;
            }
            cpu.deliver_exception(trap);
        }
    }
}

impl Cpu {
    /// Whether `bytes` of code from RIP on lie within the CS limit.
    pub(crate) fn code_limit_holds(&self, bytes: u64) -> bool {
        // A state from elsewhere may have any RIP.
        self.rip().saturating_add(bytes.max(1) - 1) <= u64::from(self.segment(SegmentIndex::Cs).limit)
    }

    /// Runs the first instruction of a block, if it lies within the CS limit.
    #[cold]
    pub(crate) fn run_checked(&mut self, block: &Block) -> Result<(), Break> {
        let first = block.ops.first().map_or(1, |op| u64::from(op.len));
        if self.flat || self.code_limit_holds(first) { self.run_ops(block, 1) } else { Err(self.gp0()) }
    }

    /// Runs the first `count` operations of a block.
    #[inline]
    fn run_ops(&mut self, block: &Block, count: usize) -> Result<(), Break> {
        self.budget = count;
        let mut done = 0;
        let mut result = Ok(());
        for op in &block.ops {
            if done >= self.budget {
                break;
            }
            done += 1;
            self.set_rip(self.rip().wrapping_add(u64::from(op.len)));
            if let Err(reason) = (op.run)(self, op) {
                if reason != Break::Trap {
                    self.set_rip(self.rip().wrapping_sub(u64::from(op.len)));
                }
                result = Err(reason);
                break;
            }
        }
        self.instructions += done as u64;
        result
    }

    /// Delivers what an instruction raised.
    #[inline]
    pub(crate) fn finish(&mut self, result: Result<(), Break>) {
        if let Err(reason) = result {
            self.break_off(reason);
        }
    }

    #[cold]
    fn break_off(&mut self, reason: Break) {
        self.look = true;
        if reason == Break::Again {
            // Whatever comes between two iterations saves an image with RF set (SDM vol. 3, 17.3.1.1).
            self.flags |= RF;
        } else if let Some(exception) = self.fault.take() {
            self.deliver_exception(exception);
        }
    }

    /// Acts on the most urgent event, if it may be let in now.
    fn admit(&mut self, event: Event) {
        let shadowed = self.pending.mov_ss_shadow || self.pending.sti_shadow;
        match event {
            Event::Init => {
                self.platform.take(self.id, event);
                let boot = self.id.0 == 0;
                self.native.take_back(&mut self.fpu);
                let activity = if boot { Activity::Running } else { Activity::WaitForSipi };
                let state = self.state().after_init(activity);
                self.set_state(&state);
            }
            Event::Startup(page) => {
                self.platform.take(self.id, event);
                if self.activity == Activity::WaitForSipi {
                    self.start_up(page);
                }
            }
            _ if self.activity == Activity::WaitForSipi => {}
            Event::Nmi if !self.pending.nmi_blocked && !shadowed => {
                self.platform.take(self.id, event);
                self.pending.nmi_blocked = true;
                self.activity = Activity::Running;
                self.stats.interrupts += 1;
                self.deliver_interrupt(vector::NMI);
                // An interrupt may wait behind it, and a handler behind a trap gate lets it in.
                self.look = true;
            }
            Event::Nmi | Event::Interrupt if self.flags & IF != 0 && !shadowed => {
                if let Some(vector) = self.platform.acknowledge(self.id) {
                    self.activity = Activity::Running;
                    self.stats.interrupts += 1;
                    self.deliver_interrupt(vector);
                    // Another one may wait behind it, should the handler let it in.
                    self.look = true;
                }
            }
            Event::Nmi | Event::Interrupt => {}
        }
    }

    /// A start-up IPI: real mode at page `page`.
    fn start_up(&mut self, page: u8) {
        let cs = &mut self.seg[SegmentIndex::Cs as usize];
        cs.selector = Selector(u16::from(page) << 8);
        cs.base = u64::from(page) << 12;
        self.set_rip(0);
        self.activity = Activity::Running;
        self.refresh();
    }
}

impl engine::Vcpu for InterpVcpu {
    fn run(&mut self) -> Exit {
        self.cpu.enter();
        let exit = loop {
            if (self.cpu.look || self.cpu.kick.is_raised())
                && let Some(exit) = self.attend()
            {
                break exit;
            }
            self.execute();
        };
        self.cpu.leave();
        exit
    }

    fn kick_handle(&self) -> Kick {
        self.cpu.kick.clone()
    }

    fn state(&self) -> CpuState {
        self.cpu.state()
    }

    fn set_state(&mut self, state: &CpuState) {
        self.cpu.set_state(state);
    }

    fn flush_tlb(&mut self) {
        self.cpu.tlb.flush_all();
        self.cpu.forget_fetch();
    }

    fn stats(&self) -> VcpuStats {
        VcpuStats { instructions: Some(self.cpu.instructions), ..self.cpu.stats }
    }

    fn counters(&self) -> Vec<Counter> {
        let counted = self.cpu.tlb.stats().list();
        counted.into_iter().map(|(name, value, help)| Counter::new(name, value, help)).collect()
    }
}
