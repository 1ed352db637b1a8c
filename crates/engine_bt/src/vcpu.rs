//! The vCPU: translated code where there is some, the interpreter for the rest.
//!
//! [`BtVcpu::run`](engine::Vcpu::run) goes round a loop: events first; then the block at RIP, if it has been translated,
//! runs until it leaves; otherwise the interpreter runs one of its own, and code that has come by often enough is
//! translated. While translated code runs the registers are in the processor, between whiles in the interpreter's state,
//! which is the vCPU's.
//!
//! # Why nothing stale runs
//! Before translated code is entered, all changes of memory and all invalidations that have happened have been acted on
//! ([`BtVcpu::catch_up`]). While it runs, this vCPU changes no mapping and writes no code that has been translated: such a
//! write misses the TLB and leaves. Others call this vCPU when they change something; a call ends the run of translated
//! code at its next backward or indirect jump. What the interpreter executes, every serializing instruction among it,
//! is followed by a look at changes without being called ([`memory::shootdown`]).

mod changes;
mod direct;
mod links;
mod lockstep;
mod registers;
mod revise;
mod sampling;

use std::sync::{Arc, OnceLock};

use engine::{Counter, EngineError, Exit as VcpuExit, Kick, VcpuSetup, VcpuStats};
use host::HostError;
use host::stub::Caller;
use iced_x86::{Instruction, Mnemonic};
use interp::{InterpVcpu, Regime};
use memory::Seat;
use mmu::{Access, Privilege, Resolved, Target};
use translate::context::Table;
use translate::{Exit, HostFeatures, Mode, SelfCheck, Source, Translator};
use x86::bits::{low16, low32};
use x86::exception::Exception;
use x86::{CpuState, Gva, Mfn, PAGE_MASK, PAGE_SIZE};

use crate::cache::{Cache, Key, Placed};
use crate::direct::{Direct, Policy, Space, Verdicts};
use crate::enter::{Gate, set_gs};
use crate::fluid::Fluid;
use crate::heat::Heat;
use crate::left::{self, Left};
use crate::modes::{supervisor_mode, translatable, user_mode};
use crate::names::Names;
use crate::sample::Sampler;
use crate::shadow::Shadows;
use crate::sites::PlacedSite;
use crate::views::{Go, Stale, Views};
use crate::{BtStats, Options, x87};

pub use lockstep::{Closeness, Counts, Ledger, Lockstep, LockstepVcpu};

/// A vCPU that translates.
pub struct BtVcpu {
    slow: InterpVcpu,
    views: Views,
    cache: Cache,
    shadows: Shadows,
    heat: Heat,
    fluid: Fluid,
    translator: Translator,
    gate: Gate,
    go: Go,
    kick: Kick,
    seat: Arc<Seat>,
    host: HostFeatures,
    /// The mode of the code that runs.
    mode: Mode,
    /// The mode that 64-bit code has, or would have, at CPL 3.
    user_mode: Mode,
    /// The epoch of memory that everything here is as good as.
    seen: u64,
    stats: BtStats,
    left: Left,
    sampler: Sampler,
    names: Names,
    /// As in [`Options`].
    repeatable: bool,
    checking: bool,
    goes_on: bool,
    direct: Direct,
    /// Where user code is executed directly, if it can be.
    space: Option<Space>,
    policy: Policy,
    verdicts: Verdicts,
    /// Who kicks calls the stub by this.
    line: Arc<OnceLock<Caller>>,
    /// User code is not executed directly until the next return to it.
    aside: bool,
    /// What the host refused, which ends the vCPU.
    failure: Option<HostError>,
}

/// The bytes that the longest instruction may have in its second page.
const LONGEST: usize = 14;

/// The last page that 32-bit addresses reach.
const LAST_PAGE: u64 = 0xffff_f000;

/// What an exit leads to.
enum Next {
    /// Whatever the state says.
    Dispatch,
    /// Translated code at a host address, the registers where they are.
    Resume(u64),
    /// The instruction at RIP is interpreted.
    Interpret,
    /// An exception that it raises.
    Raise(Exception),
}

impl BtVcpu {
    /// A vCPU in the reset state.
    pub(crate) fn new(setup: VcpuSetup, options: &Options) -> Result<Self, EngineError> {
        let refused =
            |error: HostError| EngineError::Unavailable { engine: crate::NAME, reason: error.to_string() };
        let views = Views::new().map_err(refused)?;
        let host = HostFeatures { bmi2: host::cpu::has_bmi2() };
        let cache = Cache::new(options.code_cache, host.bmi2, options.goes_on).map_err(refused)?;
        let shadows = Shadows::new(cache.unforeseen()).map_err(refused)?;
        let names = Names::new(options.perf_map, &cache).map_err(refused)?;
        let go = views.go();
        go.reset();
        let caller = go.clone();
        let line = Arc::new(OnceLock::<Caller>::new());
        let stub = line.clone();
        let kick = Kick::with_interrupt(move || {
            caller.call();
            stub.get().inspect(|stub| stub.call());
        });
        let seen = setup.mmu.memory().epoch();
        let slow = InterpVcpu::with_kick(setup, kick.clone())?;
        let seat = slow.seat();
        let mut vcpu = Self {
            slow,
            views,
            cache,
            shadows,
            heat: Heat::new(),
            fluid: Fluid::new(),
            translator: Translator::default(),
            gate: Gate::new(),
            go,
            kick,
            seat,
            host,
            mode: Mode::new(),
            user_mode: Mode::USER,
            seen,
            stats: BtStats::default(),
            left: Left::new(),
            sampler: Sampler::new(),
            names,
            repeatable: options.repeatable,
            checking: options.checking,
            goes_on: options.goes_on,
            direct: options.direct,
            space: None,
            policy: Policy::default(),
            verdicts: Verdicts::default(),
            line,
            aside: false,
            failure: None,
        };
        vcpu.prepare_context();
        Ok(vcpu)
    }

    /// Before the first turn of a run: both may have moved since the last, the vCPU in memory, its thread to another.
    fn begin_run(&mut self) {
        self.views.context().vector = self.slow.vector().ymm.as_mut_ptr() as u64;
        self.use_gs();
        self.seat.enter(self.seen);
    }

    /// After the last turn of a run.
    fn end_run(&mut self) {
        self.seat.leave();
        self.part_from_stub();
        x87::take_back(&mut self.slow);
    }

    fn prepare_context(&mut self) {
        let (exit, tops, routines) = (self.gate.exit(), self.shadows.tops(), self.cache.look_ups());
        let (entrances, code) = (self.cache.entrances(), self.cache.base());
        let context = self.views.context();
        context.exit = exit;
        context.routines = routines;
        context.callers = self.cache.callers();
        context.entrances = entrances;
        context.code = code;
        context.shadow_top = tops;
        context.shadow = tops;
    }

    /// Goes round the loop until there is an exit.
    fn go_round(&mut self) -> Result<VcpuExit, HostError> {
        self.catch_up()?;
        loop {
            if let Some(exit) = self.turn()? {
                self.catch_up()?;
                return Ok(exit);
            }
        }
    }

    /// Goes round the loop once; an exit if there is one.
    fn turn(&mut self) -> Result<Option<VcpuExit>, HostError> {
        let user = self.slow.cpl() == 3;
        if let Some(exit) = self.slow.look() {
            return Ok(Some(exit));
        }
        if user && self.slow.cpl() != 3 {
            self.policy.interrupted(self.address_space());
        }
        self.catch_up()?;
        if self.fluid.is_over(self.stats.entries) {
            self.end_spells()?;
        }
        let regime = self.slow.regime();
        let Some(mode) = translatable(&regime) else {
            self.slow.execute_block();
            return Ok(None);
        };
        // The returns to code that is executed directly are interpreted, and all come by here.
        self.aside &= self.mode.has(Mode::USER);
        self.set_mode(mode, &regime);
        if self.goes_direct() {
            self.run_directly()?;
            return Ok(None);
        }
        if self.take_sample() {
            return Ok(None);
        }
        match self.code_at_rip()? {
            Some(code) => self.execute(code)?,
            None => {
                self.stats.interpreted += 1;
                self.slow.execute_block();
            }
        }
        Ok(None)
    }

    // ---- keeping up with changes ---------------------------------------------------------------------------------

    /// Acts on everything that has happened to memory and to translations.
    fn catch_up(&mut self) -> Result<(), HostError> {
        while self.slow.memory().epoch() != self.seen {
            self.hear_changes()?;
        }
        if self.slow.tlb().has_invalidations() {
            self.hear_invalidations()?;
        }
        Ok(())
    }

    #[cold]
    fn hear_invalidations(&mut self) -> Result<(), HostError> {
        let (mut stale, mut result) = (Stale::default(), Ok(()));
        let before = self.views.base();
        let views = &mut self.views;
        let space = &mut self.space;
        self.slow.tlb().take_invalidations(|what| {
            space.iter_mut().for_each(|space| space.invalidate(what));
            match views.invalidate(what) {
                Ok(now) => {
                    stale.supervisor |= now.supervisor;
                    stale.user |= now.user;
                }
                Err(error) => result = Err(error),
            }
        });
        if self.views.base() != before {
            self.use_gs();
        }
        self.empty_shadows(stale);
        result
    }

    fn use_gs(&self) {
        // SAFETY: the engine is only made on hosts that allow it, and nothing else in the process uses GS.
        unsafe { set_gs(self.views.base() as u64) };
    }

    fn empty_shadows(&mut self, stale: Stale) {
        let context = self.views.context();
        if stale.supervisor {
            context.shadow[0] = context.shadow_top[0];
        }
        if stale.user {
            context.shadow[1] = context.shadow_top[1];
        }
    }

    /// Code of one mode never leads to code of another. Each privilege has a jump cache of its own, the user's in each
    /// address space; when the mode of a privilege's code is no longer that of its cache, the cache is emptied. While the
    /// supervisor runs, the user's may be that of another kind of code than SYSRET goes to: then that way is closed.
    fn set_mode(&mut self, mode: Mode, regime: &Regime) {
        self.mode = mode;
        let common = supervisor_mode(mode);
        self.user_mode = user_mode(mode, regime);
        if self.views.set_code_mode(Table::Supervisor, common)
            | self.views.set_code_mode(Table::SupervisorAc, common.with(Mode::AC, true))
        {
            self.empty_shadows(Stale { supervisor: true, user: true });
        }
        if mode.has(Mode::USER) && self.views.set_code_mode(Table::User, mode) {
            self.empty_shadows(Stale { supervisor: false, user: true });
        }
        if mode.has(Mode::COMPAT) {
            self.slow.clear_upper_halves();
        }
    }

    // ---- finding code --------------------------------------------------------------------------------------------

    /// The host address of the code at RIP, translated if it is time.
    fn code_at_rip(&mut self) -> Result<Option<u64>, HostError> {
        let rip = self.slow.rip();
        let table = self.mode.table();
        if let Some(code) = self.views.code_at(table, rip) {
            return Ok(Some(code));
        }
        self.find_code(rip)
    }

    /// Puts the code at a linear address into the jump cache, translated if it is time; its host address.
    fn find_code(&mut self, rip: u64) -> Result<Option<u64>, HostError> {
        let number = self.find_block(rip)?;
        Ok(number.and_then(|number| self.cache.block(number)).map(|block| self.cache.jump_entry(block)))
    }

    /// The same; its block.
    fn find_block(&mut self, rip: u64) -> Result<Option<u32>, HostError> {
        let table = self.mode.table();
        let Some(first) = self.resolve_code(rip) else { return Ok(None) };
        let Some(mfn) = first.frame() else { return Ok(None) };
        let drops = self.views.drops();
        let Some(number) = self.block_at(mfn, rip)? else { return Ok(None) };
        self.catch_up()?;
        // To translate may have changed what was resolved.
        let resolved = if drops == self.views.drops() { Some(first) } else { self.resolve_code(rip) };
        let (Some(resolved), Some(block)) = (resolved, self.cache.block(number).copied()) else {
            return Ok(None);
        };
        if block.stale || resolved.frame() != Some(block.key.mfn) {
            return Ok(None);
        }
        if let Some(second) = self.cache.second(number).filter(|_| block.is_across) {
            let next = (rip | PAGE_MASK).wrapping_add(1);
            let there = self.resolve_code(next);
            let Some(there) = there.filter(|there| there.frame() == Some(second)) else {
                self.cache.forget(number);
                return Ok(None);
            };
            self.views.note_code_page(table, next, None, &there);
        }
        let code = self.cache.jump_entry(&block);
        if rip != 0 {
            self.views.insert_code(table, rip, code, Some(block.key.page().number()), &resolved);
        }
        Ok(Some(number))
    }

    /// Where code is fetched from.
    fn resolve_code(&mut self, rip: u64) -> Option<Resolved> {
        // 32-bit code does not go on past 4 GiB.
        let last = self.mode.has(Mode::COMPAT) && rip >= LAST_PAGE;
        let privilege = self.code_privilege();
        if last || !Gva(rip).is_canonical() { None } else { self.slow.resolve_code(rip, privilege) }
    }

    /// The machine frame that code is fetched from.
    fn code_frame(&mut self, rip: u64) -> Option<Mfn> {
        self.resolve_code(rip)?.frame()
    }

    /// The privilege of instruction fetches in the mode.
    fn code_privilege(&self) -> Privilege {
        if self.mode.has(Mode::USER) { Privilege::User } else { Privilege::Supervisor }
    }

    /// The block of a place in a frame, translated if it is time.
    fn block_at(&mut self, mfn: Mfn, rip: u64) -> Result<Option<u32>, HostError> {
        let key = Key { mfn, offset: low16(rip & PAGE_MASK), mode: self.mode };
        if let Some(number) = self.cache.find(key) {
            return Ok(Some(number));
        }
        if self.heat.is_cold(key) {
            return Ok(None);
        }
        self.translate(key, rip)
    }

    /// The version of a frame's code, from now on watched. `None` if somebody could still write it unnoticed.
    fn watch(&mut self, mfn: Mfn) -> Result<Option<u32>, HostError> {
        // Once everything that could still write the frame unnoticed has been dropped, its bytes are what they are until
        // somebody says otherwise. To drop it counts as a write, which ends the watch: hence the attempts.
        let mut watch = self.slow.memory().watch_code(mfn);
        for _ in 0..2 {
            self.catch_up()?;
            if !watch.settled {
                watch = self.slow.memory().watch_code(mfn);
            }
        }
        let current = self.slow.memory().code_version(mfn) == watch.version;
        Ok((watch.settled && current).then_some(watch.version))
    }

    fn translate(&mut self, key: Key, rip: u64) -> Result<Option<u32>, HostError> {
        if self.checking {
            self.slow.memory().make_fluid(key.mfn);
        }
        let Some(version) = self.watch(key.mfn)? else { return self.translate_fluid(key, rip) };
        let mut bytes = [0; PAGE_SIZE as usize + LONGEST];
        let code = bytes.get_mut(usize::from(key.offset)..).unwrap_or_default();
        let left = PAGE_SIZE as usize - usize::from(key.offset);
        let (page, beyond) = code.split_at_mut(left);
        self.slow.memory().frames().copy_out(key.mfn, key.offset.into(), page);
        let mut second = None;
        let mut block = self.translation(key, page, rip, None);
        if block.is_none() {
            let next = (rip | PAGE_MASK).wrapping_add(1);
            second = self.second_frame(next)?;
            let Some((mfn, _)) = second else { return Ok(None) };
            self.slow.memory().frames().copy_out(mfn, 0, beyond);
            block = self.translation(key, code, rip, None);
        }
        let Some(block) = block else { return Ok(None) };
        let length = usize::from(block.guest_bytes);
        let (page, beyond) = code.split_at(left);
        let there =
            self.still_there(key.mfn, key.offset.into(), page.get(..length.min(left)).unwrap_or_default())
                && second.is_none_or(|(mfn, _)| {
                    self.still_there(mfn, 0, beyond.get(..length.saturating_sub(left)).unwrap_or_default())
                });
        // A watch that has ended since would leave what was marked unnoticed.
        let watched = |(mfn, version)| self.slow.memory().code_version(mfn) == version;
        if !there || !watched((key.mfn, version)) || !second.is_none_or(watched) {
            return Ok(None);
        }
        self.place(key, second.map(|(mfn, _)| mfn), block, rip).map(Some)
    }

    /// Puts a translation in place, if need be instead of all others.
    fn place(
        &mut self,
        key: Key,
        second: Option<Mfn>,
        block: translate::Block,
        rip: u64,
    ) -> Result<u32, HostError> {
        if !self.cache.has_room(block.code.len()) {
            self.drop_code();
        }
        let number = self.cache.place(key, second, block)?;
        self.names.placed(&self.cache, number, rip);
        Ok(number)
    }

    /// The frame of the page at `va`, watched, for an instruction that reaches into it, and its version.
    fn second_frame(&mut self, va: u64) -> Result<Option<(Mfn, u32)>, HostError> {
        let Some(mfn) = self.code_frame(va) else { return Ok(None) };
        Ok(self.watch(mfn)?.map(|version| (mfn, version)))
    }

    fn translation(
        &mut self,
        key: Key,
        code: &[u8],
        rip: u64,
        check: Option<&SelfCheck>,
    ) -> Option<translate::Block> {
        let features = *self.slow.features();
        let repeatable = self.repeatable;
        let offered = move |insn: &Instruction| {
            interp::offers(insn, &features) && !(repeatable && left::varies(insn.mnemonic()))
        };
        let seed = low32(self.cache.stats.blocks);
        let (offset, mode) = (key.offset, key.mode);
        let source = Source {
            code,
            offset,
            mode,
            offered: &offered,
            host: self.host,
            linear: rip,
            seed,
            check,
            lodgers: self.goes_on,
        };
        self.translator.translate(&source)
    }

    /// Marks code as translated. False if it is no longer what it was when it was read.
    fn still_there(&self, mfn: Mfn, offset: u64, code: &[u8]) -> bool {
        let memory = self.slow.memory();
        memory.mark_code(mfn, offset, code.len() as u64);
        let mut now = [0; PAGE_SIZE as usize];
        let Some(now) = now.get_mut(..code.len()) else { return false };
        memory.frames().copy_out(mfn, offset, now);
        now == code
    }

    // ---- running it ----------------------------------------------------------------------------------------------

    /// Runs translated code until something has to be done that the loop does.
    fn execute(&mut self, code: u64) -> Result<(), HostError> {
        if self.is_wanted() {
            return Ok(());
        }
        self.registers_in();
        let mut next = Some(code);
        while let Some(code) = next {
            self.run_at(code);
            next = self.left()?;
        }
        Ok(())
    }

    /// Whether somebody wants attention. Who does is heard from now on.
    fn is_wanted(&self) -> bool {
        self.go.is_called() && {
            self.go.reset();
            self.kick.is_raised()
        }
    }

    fn run_at(&mut self, code: u64) {
        self.stats.entries += 1;
        let user = usize::from(self.mode.has(Mode::USER));
        let lent = self.slow.x87().0.is_lent();
        let context = self.views.context();
        context.x87 = lent.into();
        context.target = code;
        context.stack = context.shadow[user];
        // SAFETY: `code` is an entry or a resumption point of a block that is in the cache and not stale, for the mode and
        // the mapping in force; `prepare_context` and `run` have done the rest. TLB entries are made from frames of
        // the guest's memory, which lives as long as the interpreter's state.
        unsafe { self.gate.enter() };
    }

    /// Acts on an exit; where translated code goes on, if it does at once.
    ///
    /// What most exits need is something found, not the registers: these stay in the context, unless the mode is another
    /// than when they came in, or somebody wants attention.
    fn left(&mut self) -> Result<Option<u64>, HostError> {
        let context = self.views.context();
        let (from, page, rax) = (context.site, context.page, context.scratch[0]);
        let Some(site) = self.cache.site(from) else { return Ok(None) };
        let rip = match site.exit {
            Exit::Lookup => rax,
            _ => page.wrapping_add(site.guest.into()),
        };
        let out = site.mode != self.mode || self.go.is_called();
        if out {
            self.registers_out(rip);
        }
        // Before anything is done that may empty it.
        self.keep_shadow();
        if from == translate::UNFORESEEN {
            let user = self.mode.has(Mode::USER);
            self.empty_shadows(Stale { supervisor: !user, user });
        }
        // Between STI and HLT nobody may be let in: who wakes the guest has to find it asleep.
        let halts = || site.exit == Exit::Interpret && self.mnemonic(&site) == Mnemonic::Hlt;
        if out && !halts() && self.is_wanted() {
            self.stats.attentions += 1;
            return Ok(None);
        }
        let next = self.follow(site, rax, rip)?;
        if let Next::Resume(code) = next {
            return Ok(Some(code));
        }
        if !out {
            self.registers_out(rip);
        }
        match next {
            Next::Interpret => self.slow.execute_one(),
            Next::Raise(exception) => self.slow.deliver(exception),
            Next::Dispatch | Next::Resume(_) => {}
        }
        Ok(None)
    }

    /// What an exit at `rip` leads to.
    fn follow(&mut self, site: PlacedSite, rax: u64, rip: u64) -> Result<Next, HostError> {
        match site.exit {
            Exit::Miss { write, resume } => {
                self.stats.misses += 1;
                self.miss(rax, write, site.block, resume)
            }
            Exit::Transfer { mode } => {
                self.stats.lookups += 1;
                let code = self.transfer_code(rax, mode, &site)?;
                Ok(code.map_or_else(|| self.leave(&site), Next::Resume))
            }
            Exit::Lend { resume } => Ok(self.lend(&site, resume)),
            Exit::Interpret => Ok(self.leave(&site)),
            Exit::Link { jump, form } => {
                self.stats.unlinked += 1;
                let target = self.link(site.block, jump, form, rip)?;
                Ok(self.resume_at(target, Next::Dispatch))
            }
            Exit::Bridge { jump } => {
                self.stats.unlinked += 1;
                self.bridge(&site, jump, rax)
            }
            Exit::Lookup => {
                self.stats.lookups += 1;
                self.look_up(rax)
            }
            Exit::Attention => Ok(Next::Dispatch),
            Exit::Plain => {
                self.stats.plain += 1;
                let plain = self.plain_block(site.block, rip)?;
                if let Some(plain) = plain {
                    self.cache.lead(&site, plain)?;
                }
                Ok(self.resume_at(plain, Next::Interpret))
            }
            Exit::Stale => {
                self.stats.stale_entries += 1;
                self.views.forget_code(self.mode.table(), rip);
                self.stale(site.block, rip)
            }
            Exit::Changed => {
                self.stats.changed += 1;
                let revised = self.revise(&site, rip)?;
                Ok(self.resume_at(revised, Next::Interpret))
            }
            Exit::Onward => Ok(Next::Dispatch),
        }
    }

    /// A block is stale. A plain one may be that alone, and what leads to it would do so again and again.
    fn stale(&mut self, block: u32, rip: u64) -> Result<Next, HostError> {
        let key = self.cache.block(block).map(|block| block.key);
        let Some(key) = key.filter(|key| key.mode.has(Mode::PLAIN)) else { return Ok(Next::Dispatch) };
        self.catch_up()?;
        let plain = self.find_or_translate(key, rip)?;
        Ok(self.resume_at(plain, Next::Interpret))
    }

    /// An instruction that is left to the interpreter.
    fn leave(&mut self, site: &PlacedSite) -> Next {
        self.left.count(self.mnemonic(site));
        self.stats.callouts += 1;
        Next::Interpret
    }

    /// The instruction that leaves at a site. One across two pages is not looked at.
    fn mnemonic(&self, site: &PlacedSite) -> Mnemonic {
        let Some(Placed { key, .. }) = self.cache.block(site.block) else { return Mnemonic::INVALID };
        let mut bytes = [0; LONGEST];
        let left = usize::from(x86::bits::low16(PAGE_SIZE).saturating_sub(site.guest));
        let code = bytes.get_mut(..left.min(LONGEST)).unwrap_or_default();
        self.slow.memory().frames().copy_out(key.mfn, site.guest.into(), code);
        left::mnemonic(key.mode, code)
    }

    /// The beginning of a block, entered with the flags in memory, if there is one.
    fn resume_at(&self, block: Option<u32>, or: Next) -> Next {
        block.and_then(|number| self.cache.entry_of(number)).map_or(or, Next::Resume)
    }

    fn lend(&mut self, site: &PlacedSite, resume: u32) -> Next {
        if x87::lend(&mut self.slow, self.views.context())
            && let Some(code) = self.cache.resumption(site.block, resume)
        {
            self.stats.loans += 1;
            return Next::Resume(code);
        }
        Next::Interpret
    }

    /// The current shadow stack is what translated code has left it.
    fn keep_shadow(&mut self) {
        let user = usize::from(self.mode.has(Mode::USER));
        let context = self.views.context();
        context.shadow[user] = context.stack;
    }

    /// A jump to a linear address that is not in the jump cache.
    fn look_up(&mut self, va: u64) -> Result<Next, HostError> {
        self.catch_up()?;
        let Some(code) = self.find_code(va)? else { return Ok(Next::Dispatch) };
        self.views.context().page = va & !PAGE_MASK;
        Ok(Next::Resume(code))
    }

    /// A miss: fills the TLB, or has the instruction interpreted if it cannot be.
    fn miss(&mut self, va: u64, write: bool, block: u32, resume: u32) -> Result<Next, HostError> {
        let access = if write { Access::Write } else { Access::Read };
        // Near the edge of canonical addresses, and beyond, faults come in another order; in 32-bit code those of
        // segmentation come first.
        let edge = self.mode.has(Mode::COMPAT) && va >= LAST_PAGE;
        if edge || !Gva(va).is_canonical() || !Gva(va.wrapping_add(PAGE_SIZE)).is_canonical() {
            return Ok(Next::Interpret);
        }
        let drops = self.views.drops();
        self.catch_up()?;
        let resolved = match self.slow.resolve(va, access) {
            Ok(resolved) => resolved,
            Err(fault) => return Ok(Next::Raise(fault)),
        };
        self.catch_up()?;
        // What the block has checked before, and what was resolved, holds only as long as nothing has been dropped.
        if drops == self.views.drops()
            && self.fill(va, write, &resolved)
            && drops == self.views.drops()
            && let Some(code) = self.cache.resumption(block, resume)
        {
            return Ok(Next::Resume(code));
        }
        if drops != self.views.drops() {
            return Ok(Next::Dispatch);
        }
        self.stats.slow_accesses += 1;
        if write
            && let Some(mfn) = resolved.frame()
            && self.data_beside_code(mfn)
        {
            return Ok(Next::Dispatch);
        }
        Ok(Next::Interpret)
    }

    /// Caches a translation. False if the access that asked for it must not be made through the TLB: a device, code, or
    /// an operand across two pages, whose first page is cached already.
    fn fill(&mut self, va: u64, write: bool, resolved: &Resolved) -> bool {
        match resolved.target {
            Target::Ram { cached, .. } if cached || !write => {}
            _ => return false,
        }
        let table: Table = self.mode.table();
        // Translated 32-bit code relies on that: no address near one that it has checked wraps.
        if table == Table::User && matches!(va & !PAGE_MASK, 0 | LAST_PAGE) {
            return false;
        }
        self.views.insert(self.slow.memory(), table, va, write, resolved)
    }

    /// What was counted.
    pub fn bt_stats(&self) -> BtStats {
        let (sampled_hits, sampled_misses) = self.sampler.counts();
        BtStats { cache: self.cache.stats, sampled_hits, sampled_misses, ..self.stats }
    }
}

impl engine::Vcpu for BtVcpu {
    fn run(&mut self) -> VcpuExit {
        self.begin_run();
        let exit = self.go_round();
        self.end_run();
        exit.unwrap_or_else(|error| {
            self.failure = Some(error);
            VcpuExit::Shutdown
        })
    }

    fn kick_handle(&self) -> Kick {
        self.kick.clone()
    }

    fn settle(&mut self) {
        self.make_stub();
    }

    fn state(&self) -> CpuState {
        engine::Vcpu::state(&self.slow)
    }

    fn set_state(&mut self, state: &CpuState) {
        engine::Vcpu::set_state(&mut self.slow, state);
    }

    fn flush_tlb(&mut self) {
        engine::Vcpu::flush_tlb(&mut self.slow);
    }

    fn stats(&self) -> VcpuStats {
        // Those of translated code are not counted.
        VcpuStats { instructions: None, ..engine::Vcpu::stats(&self.slow) }
    }

    fn counters(&self) -> Vec<Counter> {
        let mut counters = self.bt_stats().counters();
        let interpreted = engine::Vcpu::stats(&self.slow).instructions.unwrap_or(0);
        counters.push(Counter::new("interpreted", interpreted, "instructions interpreted"));
        counters.extend(engine::Vcpu::counters(&self.slow));
        counters.extend(self.left.counters());
        counters
    }
}
