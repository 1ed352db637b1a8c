//! Lockstep: translated code beside the interpreter, compared after every block. A debugging aid, for one vCPU or many.
//!
//! # The scheme
//! A turn begins with the state S at RIP. The translation runs *first, as a trial*: every page that it opens for writing
//! misses the TLB, because what was opened is closed again after each trial, and is copied before it is written. When
//! the code leaves, its state B is noted, the pages are put back and S is restored. Then the interpreter executes from S,
//! for good, instruction by instruction, until it arrives at B's RIP with B's registers; the pages that were opened must
//! hold what the trial made of them, and the interpreter must not have written any other. So every effect outside the vCPU
//! (devices, faults, changes of translation) happens once, by the interpreter's hand, and whatever the translation left
//! to it needs no comparison.
//!
//! # The second trial
//! Where pages are closed for writing, no group of writes passes its check: its block is left for the plain translation
//! ([`Exit::Plain`]). So when a trial has gone that way another follows from S, before the pages are closed, and now the
//! groups pass. The interpreter has to meet both outcomes, in whichever order they come: the plain translation of a block's
//! rest may go on farther than the block.
//!
//! # Where a trial ends
//! *Precise* (the default): jumps are never linked, no jump finds its target, and returns are unforeseen, so a trial is one
//! block. A block that ends in a jump out of the page or to a computed target is cut before it; the next turn begins at
//! the jump itself, works out where it leads ([`target`]) and plants an exit there in the jump cache. *Chained*:
//! jumps are linked and found as always, and a call for attention stands all the time, so that a trial goes on to the next
//! backward or indirect jump, which the interpreter then executes. Between them they see all that translated code does.
//!
//! # What is not compared
//! The shadow of STI and the x87 unit's last operand. Flags that an instruction leaves undefined, and blocks that differ after having read such flags ([`undefined`]).
//! Clocks and random numbers are left to the interpreter ([`Options::repeatable`]).
//!
//! Several vCPUs take turns, so that none sees another's trial.

mod judge;
mod ledger;
mod pages;
mod report;
mod target;
mod undefined;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::{Counter, Engine, EngineError, Exit as VcpuExit, Kick, Vcpu, VcpuSetup, VcpuStats};
use host::HostError;
use interp::Watch;
use mmu::{Access, PageSize, Resolved, Target};
use translate::context::Table;
use translate::{Exit, Mode, UNFORESEEN};
use x86::{CpuState, Gva, PAGE_MASK, PAGE_SIZE};

use super::{BtVcpu, Next};
use crate::modes::translatable;
use crate::sites::PlacedSite;
use crate::views::Stale;
use crate::{Direct, Options, x87};

pub use ledger::{Counts, Ledger};
use pages::Pages;

/// The name that `--engine` knows.
const NAME: &str = "lockstep";
/// The environment variable with the options, such as `chained,every=16`.
const VARIABLE: &str = "UMBRA_LOCKSTEP";

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closeness {
    /// Compare every so-many-eth turn; the others run as in the translating engine. More than one implies `chained`.
    pub every: u32,
    /// Compare chains of linked blocks instead of single ones.
    pub chained: bool,
    /// All blocks check themselves, as in [`crate::Bt::checking`].
    pub checking: bool,
}

impl Default for Closeness {
    fn default() -> Self {
        Self { every: 1, chained: false, checking: false }
    }
}

impl Closeness {
    /// From a list such as `chained,every=16`; what it does not understand it leaves out.
    fn parse(text: &str) -> Self {
        let mut closeness = Self::default();
        for word in text.split(',') {
            match word.split_once('=') {
                Some(("every", number)) => closeness.every = number.parse().unwrap_or(1).max(1),
                _ => {
                    closeness.chained |= word == "chained";
                    closeness.checking |= word == "checking";
                }
            }
        }
        closeness.chained |= closeness.every > 1;
        closeness
    }
}

/// The engine.
#[derive(Clone, Debug, Default)]
pub struct Lockstep {
    closeness: Closeness,
    ledger: Arc<Ledger>,
    /// Held during a turn.
    turn: Arc<Mutex<()>>,
}

impl Lockstep {
    /// An engine that looks as closely as told.
    pub fn new(closeness: Closeness) -> Self {
        Self { closeness, ..Self::default() }
    }

    /// As the environment variable `UMBRA_LOCKSTEP` says; its vCPUs print what they counted when they go.
    pub fn from_environment() -> Self {
        let text = std::env::var(VARIABLE).unwrap_or_default();
        let ledger = Arc::new(Ledger::announcing());
        Self { closeness: Closeness::parse(&text), ledger, ..Self::default() }
    }

    /// What was compared, and what differed.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// A vCPU in the reset state, as what it is.
    ///
    /// # Errors
    /// As for [`crate::Bt::vcpu`].
    pub fn vcpu(&self, setup: VcpuSetup) -> Result<LockstepVcpu, EngineError> {
        crate::Bt::check_host()?;
        let options = Options {
            repeatable: true,
            // A single block ends where it leaves.
            goes_on: self.closeness.chained,
            checking: self.closeness.checking,
            direct: Direct::Never,
            ..Options::default()
        };
        Ok(LockstepVcpu {
            bt: BtVcpu::new(setup, &options)?,
            engine: self.clone(),
            watch: Watch::new(),
            pages: Pages::default(),
            trace: Vec::new(),
            turns: 0,
            stopped: false,
        })
    }
}

impl Engine for Lockstep {
    fn name(&self) -> &'static str {
        NAME
    }

    fn create_vcpu(&self, setup: VcpuSetup) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(self.vcpu(setup)?))
    }
}

/// A vCPU that compares.
pub struct LockstepVcpu {
    bt: BtVcpu,
    engine: Lockstep,
    watch: Watch,
    pages: Pages,
    /// RIP of each instruction that the interpreter executed this turn.
    trace: Vec<u64>,
    turns: u32,
    /// Something differed; the vCPU does not go on.
    stopped: bool,
}

/// The most trials that a turn has.
const TRIALS: usize = 2;

/// How a trial ended.
struct End {
    exit: Exit,
    /// The block that left.
    block: u32,
    rip: u64,
}

/// What a trial came to.
struct Outcome {
    end: End,
    /// The state at the end.
    goal: CpuState,
    /// A group did not pass its check.
    plain: bool,
}

impl LockstepVcpu {
    /// The book that it shares with the engine's others.
    pub fn ledger(&self) -> &Ledger {
        &self.engine.ledger
    }

    /// Goes round the loop at most `turns` times; an exit if there is one.
    pub fn run_for(&mut self, turns: u64) -> Option<VcpuExit> {
        self.bt.begin_run();
        let exit = self.go_round(turns);
        self.bt.end_run();
        exit.unwrap_or_else(|error| {
            self.bt.failure = Some(error);
            Some(VcpuExit::Shutdown)
        })
    }

    fn go_round(&mut self, turns: u64) -> Result<Option<VcpuExit>, HostError> {
        let engine = self.engine.clone();
        self.bt.catch_up()?;
        for _ in 0..turns {
            let _turn = self.take_turn(&engine.turn);
            let exit = if self.stopped { Some(VcpuExit::Shutdown) } else { self.turn()? };
            if exit.is_some() {
                self.bt.catch_up()?;
                return Ok(exit);
            }
        }
        self.bt.catch_up()?;
        Ok(None)
    }

    /// Waits until no other vCPU has a turn; whoever has it may in turn wait for all others to be away from guest code.
    fn take_turn<'a>(&self, turn: &'a Mutex<()>) -> MutexGuard<'a, ()> {
        if let Ok(guard) = turn.try_lock() {
            return guard;
        }
        self.bt.seat.leave();
        let guard = turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.bt.seat.enter(self.bt.seen);
        guard
    }

    fn turn(&mut self) -> Result<Option<VcpuExit>, HostError> {
        self.turns = self.turns.wrapping_add(1);
        if !self.turns.is_multiple_of(self.engine.closeness.every) {
            return self.bt.turn();
        }
        if let Some(exit) = self.bt.slow.look() {
            return Ok(Some(exit));
        }
        self.bt.catch_up()?;
        let regime = self.bt.slow.regime();
        let Some(mode) = translatable(&regime) else {
            self.bt.slow.execute_block();
            return Ok(None);
        };
        self.bt.set_mode(mode, &regime);
        match self.bt.code_at_rip()? {
            Some(code) => self.compare(code)?,
            None => self.bt.slow.execute_one(),
        }
        Ok(None)
    }

    /// One turn whose translation begins at the host address `code`.
    fn compare(&mut self, code: u64) -> Result<(), HostError> {
        // A turn that was not compared may have left it with the processor.
        x87::take_back(&mut self.bt.slow);
        let (before, mode) = (engine::Vcpu::state(&self.bt.slow), self.bt.mode);
        let mut outcomes = vec![self.attempt(code, &before)?];
        if outcomes.iter().any(|first| first.plain) {
            let regime = self.bt.slow.regime();
            self.bt.set_mode(mode, &regime);
            if let Some(code) = self.bt.code_at_rip()? {
                outcomes.push(self.attempt(code, &before)?);
                self.engine.ledger.repeat();
            }
        }
        self.close_pages();
        if let Err(difference) = self.follow(&outcomes) {
            self.stopped = true;
            let text = self.describe(&before, &outcomes, &difference);
            self.engine.ledger.differ(text);
            return Ok(());
        }
        self.engine.ledger.count(self.trace.len());
        self.go_on(&outcomes)
    }

    /// A trial; memory and state are then as before.
    fn attempt(&mut self, code: u64, before: &CpuState) -> Result<Outcome, HostError> {
        let planted = self.set_bounds(before.rip);
        let (end, plain) = self.trial(code, planted)?;
        if let Some((table, target)) = planted {
            self.bt.views.forget_code(table, target);
        }
        x87::take_back(&mut self.bt.slow);
        let goal = engine::Vcpu::state(&self.bt.slow);
        self.pages.take_back(self.bt.slow.memory());
        self.bt.slow.put_back(before);
        Ok(Outcome { end, goal, plain })
    }

    /// Sees to it that the trial ends where it should; the target that an exit was planted at, if any.
    fn set_bounds(&mut self, rip: u64) -> Option<(Table, u64)> {
        if self.engine.closeness.chained {
            if self.engine.closeness.every > 1 {
                self.bt.views.drop_writable(self.bt.slow.memory(), None);
            }
            self.bt.go.call();
            return None;
        }
        self.bt.go.reset();
        self.bt.views.forget_code(self.bt.mode.table(), rip);
        self.bt.empty_shadows(Stale { supervisor: true, user: true });
        let (table, target) = target::predict(&mut self.bt, rip).filter(|&(_, target)| target != 0)?;
        // It is forgotten before anybody asks whether its page is still there.
        let page =
            Resolved { target: Target::Ignore, page_size: PageSize::Kib4, global: true, writable: false };
        self.bt.views.insert_code(table, target, self.bt.cache.unforeseen(), None, &page);
        Some((table, target))
    }

    /// Runs translated code until it leaves for good, and has the registers as they are then. True beside it if it
    /// went through a plain translation.
    fn trial(&mut self, mut code: u64, planted: Option<(Table, u64)>) -> Result<(End, bool), HostError> {
        let mut plain = false;
        self.bt.registers_in();
        loop {
            self.bt.run_at(code);
            let context = self.bt.views.context();
            let (from, page, rax) = (context.site, context.page, context.scratch[0]);
            let Some(site) = self.bt.cache.site(from) else {
                // There is no exit of this number; whatever the registers are will be compared.
                return Ok((End { exit: Exit::Lookup, block: u32::MAX, rip: rax }, plain));
            };
            let rip = match (site.exit, planted) {
                (Exit::Lookup, Some((_, target))) if from == UNFORESEEN => page + (target & PAGE_MASK),
                (Exit::Lookup, _) => rax,
                _ => page.wrapping_add(site.guest.into()),
            };
            self.bt.registers_out(rip);
            self.bt.keep_shadow();
            if from == UNFORESEEN {
                self.bt.empty_shadows(Stale { supervisor: true, user: true });
            }
            // Turns that are not compared may have linked the two.
            let block = self.bt.cache.block(site.block);
            plain |= matches!(site.exit, Exit::Plain)
                || block.is_some_and(|block| block.key.mode.has(Mode::PLAIN));
            if let Some(next) = self.resumption(site, rax, rip)? {
                code = next;
                continue;
            }
            return Ok((End { exit: site.exit, block: site.block, rip }, plain));
        }
    }

    /// Where the trial goes on after an exit, if it does.
    fn resumption(&mut self, site: PlacedSite, va: u64, rip: u64) -> Result<Option<u64>, HostError> {
        match site.exit {
            Exit::Miss { write, resume } => {
                let drops = self.bt.views.drops();
                if !self.open(va, write)? || drops != self.bt.views.drops() {
                    return Ok(None);
                }
                Ok(self.bt.cache.resumption(site.block, resume))
            }
            Exit::Plain => {
                let plain = self.bt.plain_block(site.block, rip)?;
                Ok(plain.and_then(|number| self.bt.cache.entry_of(number)))
            }
            Exit::Changed => {
                let revised = self.bt.revise(&site, rip)?;
                Ok(revised.and_then(|number| self.bt.cache.entry_of(number)))
            }
            Exit::Transfer { mode } if self.engine.closeness.chained => {
                self.bt.transfer_code(va, mode, &site)
            }
            Exit::Bridge { jump } if self.engine.closeness.chained => {
                match self.bt.bridge(&site, jump, va)? {
                    Next::Resume(code) => Ok(Some(code)),
                    _ => Ok(None),
                }
            }
            Exit::Bridge { .. } => Ok(Some(self.bt.cache.way_round(&site))),
            Exit::Lend { resume } if x87::lend(&mut self.bt.slow, self.bt.views.context()) => {
                Ok(self.bt.cache.resumption(site.block, resume))
            }
            _ => Ok(None),
        }
    }

    /// Fills the TLB after a miss, having copied what may be written. False if the access must not be made through it.
    fn open(&mut self, va: u64, write: bool) -> Result<bool, HostError> {
        let access = if write { Access::Write } else { Access::Read };
        if !Gva(va).is_canonical() || !Gva(va.wrapping_add(PAGE_SIZE)).is_canonical() {
            return Ok(false);
        }
        self.bt.catch_up()?;
        let Ok(resolved) = self.bt.slow.resolve(va, access) else { return Ok(false) };
        self.bt.catch_up()?;
        if let Target::Ram { mfn, gfn, .. } = resolved.target
            && write
        {
            self.pages.open(self.bt.slow.memory(), mfn, gfn, (self.bt.mode.table(), va));
        }
        Ok(self.bt.fill(va, write, &resolved))
    }

    /// Lets the next write to the pages miss.
    fn close_pages(&mut self) {
        for (table, va) in self.pages.openings() {
            self.bt.views.forget(table, va);
        }
    }

    /// Does what the exits want done, now that all is compared.
    fn go_on(&mut self, outcomes: &[Outcome]) -> Result<(), HostError> {
        let moved = !self.trace.is_empty();
        let mut stuck = !moved;
        self.pages.clear();
        for Outcome { end, .. } in outcomes {
            match end.exit {
                Exit::Link { jump, form } if self.engine.closeness.chained => {
                    self.bt.link(end.block, jump, form, end.rip)?;
                    stuck = false;
                }
                Exit::Stale => {
                    self.bt.views.forget_code(self.bt.mode.table(), end.rip);
                    stuck = false;
                }
                Exit::Attention if !self.engine.closeness.chained => stuck = false,
                Exit::Link { .. } | Exit::Lookup => stuck = false,
                _ => {}
            }
        }
        if stuck {
            self.leave_one();
        }
        Ok(())
    }

    /// The interpreter executes what the translation did not.
    fn leave_one(&mut self) {
        self.engine.ledger.leave();
        self.bt.slow.execute_one();
    }
}

impl Vcpu for LockstepVcpu {
    fn run(&mut self) -> VcpuExit {
        loop {
            if let Some(exit) = self.run_for(u64::MAX) {
                return exit;
            }
        }
    }

    fn kick_handle(&self) -> Kick {
        self.bt.kick_handle()
    }

    fn state(&self) -> CpuState {
        self.bt.state()
    }

    fn set_state(&mut self, state: &CpuState) {
        self.bt.set_state(state);
    }

    fn flush_tlb(&mut self) {
        self.bt.flush_tlb();
    }

    fn stats(&self) -> VcpuStats {
        self.bt.stats()
    }

    fn counters(&self) -> Vec<Counter> {
        self.bt.counters()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_from_text() {
        assert_eq!(Closeness::parse(""), Closeness::default());
        assert_eq!(Closeness::parse("chained"), Closeness { chained: true, ..Closeness::default() });
        let every = Closeness { every: 16, chained: true, checking: false };
        assert_eq!(Closeness::parse("every=16"), every);
        assert_eq!(Closeness::parse("checking,every=16"), Closeness { checking: true, ..every });
        assert_eq!(Closeness::parse("every=0,what"), Closeness::default());
    }
}
