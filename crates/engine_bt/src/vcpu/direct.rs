//! What a vCPU does about direct execution: puts user code into the stub, has pages mapped that it meets, and takes it back.

use std::os::fd::AsFd;
use std::time::Duration;

use host::stub::{Registers, Rights, Stop, Stub};
use host::{HostError, time};
use interp::{InterpVcpu, Registers as Own};
use mmu::{Access, Privilege, Resolved, Target};
use translate::Mode;
use x86::exception::Exception;
use x86::{Gpa, Mfn, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, rflags};

use super::{BtVcpu, LONGEST};
use crate::direct::{AHEAD, Code, Direct, Identity, Met, Space, Verdict, View, is_ordinary_seam};
use crate::x87;

/// Pages around one that is met that are mapped with it: of data, of a large page, and of code.
const DATA_AHEAD: u64 = 16;
const LARGE: u64 = 512;
const CODE_AHEAD: u64 = 16;
/// Instructions of pages that cannot be executed directly that are interpreted in a row.
const MOST_FOREIGN: usize = 2000;
/// RSP's number.
const RSP: usize = 4;
/// INT1's opcode.
const INT1: u8 = 0xf1;
/// The null selectors that programs may have.
const NULL: [u16; 2] = [0, 3];

impl BtVcpu {
    /// Makes the stub, if the host lets us have one.
    pub(super) fn make_stub(&mut self) {
        if self.direct == Direct::Never || !host::cpu::has_avx() {
            return;
        }
        if let Ok(stub) = Stub::new(self.slow.memory().frames().as_fd()) {
            // The first one's, if there should be two.
            if self.line.set(stub.caller()).is_ok() {
                self.space = Some(Space::new(stub));
            }
        }
    }

    /// Whether the user code of the current address space is to be executed directly.
    pub(super) fn is_direct(&self) -> bool {
        self.space.is_some()
            && match self.direct {
                Direct::Never => false,
                Direct::LongRuns => self.policy.wants(self.root()),
                Direct::Always => true,
            }
    }

    /// Whether the code at RIP can be, and is to be.
    pub(super) fn goes_direct(&self) -> bool {
        self.mode.has(Mode::USER) && !self.aside && self.is_direct() && self.is_suitable()
    }

    /// Whether a process of the host would execute it alike.
    fn is_suitable(&self) -> bool {
        self.slow.is_ordinary() && self.fits(&self.own_registers())
    }

    /// Whether a process of the host can have these registers, and has the guest's segments with them.
    fn fits(&self, registers: &Registers) -> bool {
        use x86::SegmentIndex::{Cs, Ds, Es, Fs, Gs, Ss};
        let Some(space) = &self.space else { return false };
        let ours = space.stub.selectors();
        let selector = |index: x86::SegmentIndex| registers.selectors[index as usize];
        let data = |index| NULL.contains(&selector(index)) || selector(index) == ours[Ss as usize];
        [Cs, Ss].into_iter().all(|index| selector(index) == ours[index as usize])
            && [Ds, Es, Fs, Gs].into_iter().all(data)
            && [registers.fs_base, registers.gs_base, registers.rip]
                .into_iter()
                .all(|address| address < Stub::END)
    }

    fn own_registers(&self) -> Registers {
        let own = self.slow.registers();
        let system = self.slow.system_registers();
        Registers {
            gpr: own.gpr,
            rip: own.rip,
            rflags: own.rflags,
            fs_base: system.fs_base,
            gs_base: system.gs_base,
            selectors: system.selectors,
        }
    }

    /// Executes user code directly until something has to be done that the loop does, or the policy says that it is not worth while.
    pub(super) fn run_directly(&mut self) -> Result<(), HostError> {
        let (begin, owner) = (time::monotonic_ns(), self.address_space());
        if self.direct == Direct::LongRuns && !self.policy.has_open(owner) {
            self.part_from_stub();
            return Ok(());
        }
        let (before, counted) = (self.stub_ran(), self.stats.direct);
        self.prepare_space(self.views.pcid());
        let result = self.run_stub();
        self.stats.direct_runs += 1;
        let ran = self.stub_ran().saturating_sub(before);
        let taken = Duration::from_nanos(time::monotonic_ns().saturating_sub(begin));
        self.policy.has_run(owner, ran, taken.saturating_sub(ran), self.stats.direct.since(&counted));
        if !self.is_direct() {
            self.part_from_stub();
        }
        result
    }

    /// Where the tables of the current address space begin.
    fn root(&self) -> u64 {
        let [_, _, _, cr3, _] = self.slow.control_registers();
        cr3 & !PAGE_MASK
    }

    /// The current address space.
    pub(super) fn address_space(&self) -> Identity {
        let root = self.root();
        // The lower half of the first table is user code's (SDM vol. 3A, 5.5.4).
        let mut entries = [0; PAGE_SIZE as usize / 2];
        if self.slow.memory().read(Gpa(root), &mut entries).is_err() {
            return Identity { root, tables: 0 };
        }
        let frames = entries.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry) >> PAGE_SHIFT);
        let tables = frames.fold(0, |sum: u64, frame| sum.rotate_left(5) ^ frame);
        Identity { root, tables }
    }

    fn stub_ran(&self) -> Duration {
        self.space.as_ref().map(|space| space.stub.ran()).unwrap_or_default()
    }

    /// The vCPU's thread may run wherever it may.
    pub(super) fn part_from_stub(&mut self) {
        self.space.iter_mut().for_each(|space| space.stub.part());
    }

    /// The stub's address space becomes the current one, as far as it is known.
    fn prepare_space(&mut self, pcid: u16) {
        let Some(space) = &mut self.space else { return };
        space.stub.keep_together();
        let slow = &mut self.slow;
        space.choose(pcid, |va, rights| match rights.execute {
            true => slow.resolve_code(va, Privilege::User),
            false => slow.resolve_ahead(va),
        });
    }

    fn run_stub(&mut self) -> Result<(), HostError> {
        let own = self.space.as_ref().map(|space| space.stub.own_pages()).unwrap_or_default();
        // Where the guest has something there it would not be found.
        if [own.start, own.end - 1].into_iter().any(|va| self.slow.resolve_ahead(va).is_some()) {
            self.aside = true;
            return Ok(());
        }
        if self.enter_stub().is_err() {
            self.space = None;
            return Ok(());
        }
        let mut registers = self.own_registers();
        self.admit_awaited(registers.rip)?;
        let turns = self.take_turns(&mut registers)?;
        let stop = turns.unwrap_or(Stop::Called);
        let foreign = self.space.as_ref().is_some_and(|space| space.is_foreign(registers.rip));
        match stop {
            Stop::Called => {}
            Stop::SystemCall => self.stats.direct.system_calls += 1,
            Stop::PageFault(_) if !foreign => self.stats.direct.faults += 1,
            _ => self.stats.direct.others += 1,
        }
        self.leave_stub(&registers, stop)?;
        if turns.is_none() {
            self.space = None;
        }
        self.cross_foreign();
        Ok(())
    }

    /// Lets the stub run until it stops for more than a page; why. `None` if the host refuses, and has changed nothing: user code is translated
    /// from now on.
    fn take_turns(&mut self, registers: &mut Registers) -> Result<Option<Stop>, HostError> {
        loop {
            // What it has given itself it may not be able to be given again.
            if self.is_wanted() || !self.fits(registers) {
                return Ok(Some(Stop::Called));
            }
            self.catch_up()?;
            let (Some(space), go) = (&mut self.space, &self.go) else { return Ok(None) };
            let stop = match space.stub.run(registers, || go.is_called()) {
                Ok(stop) => stop,
                Err(error) if space.stub.is_lost() => return Err(error),
                Err(_) => return Ok(None),
            };
            self.catch_up()?;
            match stop {
                Stop::Called => self.stats.direct.calls += 1,
                Stop::PageFault(va) => match self.admit(va, registers.rip)? {
                    Some(met) => *self.stats.direct.of(met) += 1,
                    None => {
                        self.space.iter_mut().for_each(|space| space.awaited = Some((registers.rip, va)));
                        return Ok(Some(stop));
                    }
                },
                _ => return Ok(Some(stop)),
            }
        }
    }

    /// Maps what the instruction at RIP has faulted for before: the guest's kernel is likely to have provided it.
    fn admit_awaited(&mut self, rip: u64) -> Result<(), HostError> {
        let awaited = self.space.as_mut().and_then(|space| space.awaited.take());
        if let Some((_, va)) = awaited.filter(|&(at, _)| at == rip) {
            self.admit(va, rip)?;
        }
        Ok(())
    }

    /// Interprets code of pages that cannot be executed directly. It is seldom much; if it is, it is translated until the next return to
    /// user code.
    fn cross_foreign(&mut self) {
        let foreign = |vcpu: &Self| {
            let rip = vcpu.slow.rip();
            vcpu.slow.cpl() == 3 && vcpu.space.as_ref().is_some_and(|space| space.is_foreign(rip))
        };
        for _ in 0..MOST_FOREIGN {
            if !foreign(self) || self.slow.looks() || self.go.is_called() {
                return;
            }
            self.slow.execute_one();
        }
        self.aside = true;
    }

    /// The registers of the units go to the stub.
    fn enter_stub(&mut self) -> Result<(), HostError> {
        x87::take_back(&mut self.slow);
        let Some(space) = &mut self.space else { return Ok(()) };
        let (fpu, vector) = self.slow.units();
        if space.units.as_ref().is_some_and(|there| (&there.0, &there.1) == (fpu, vector)) {
            return Ok(());
        }
        self.slow.put_units(space.stub.extended());
        space.stub.load_extended()
    }

    /// All registers come back; then the instruction that stopped it is executed.
    fn leave_stub(&mut self, registers: &Registers, stop: Stop) -> Result<(), HostError> {
        if let Some(space) = &mut self.space {
            space.stub.save_extended()?;
            self.slow.get_units(space.stub.extended());
            let (fpu, vector) = self.slow.units();
            space.units = Some((fpu.clone(), vector.clone()));
        }
        // What a program can change without being stopped.
        const CHANGED: u64 = rflags::STATUS | rflags::DF | rflags::TF | rflags::AC | rflags::NT | rflags::ID;
        let kept = self.slow.registers().rflags & !(CHANGED | rflags::RF);
        let back = match stop {
            Stop::SystemCall => 2,
            Stop::Breakpoint if self.code_byte(registers.rip.wrapping_sub(1)) == 3 => 2,
            Stop::Breakpoint => 1,
            // Processors disagree about which address this saves.
            Stop::Debug => u64::from(self.code_byte(registers.rip) != INT1),
            _ => 0,
        };
        let mut own = Own {
            gpr: registers.gpr,
            rip: registers.rip.wrapping_sub(back),
            rflags: registers.rflags & CHANGED | kept,
        };
        if let Stop::Vsyscall(address) = stop {
            // The return address is still there.
            own.gpr[RSP] = own.gpr[RSP].wrapping_sub(8);
            own.rip = address;
        }
        self.slow.set_registers(&own);
        let kernel_gs = self.slow.system_registers().kernel_gs_base;
        let set_bases =
            |slow: &mut InterpVcpu| slow.set_bases(registers.fs_base, registers.gs_base, kernel_gs);
        // Before selectors, whose loads may raise something; and behind, since they bring bases of their own.
        set_bases(&mut self.slow);
        if !self.slow.load_selectors(registers.selectors) {
            return Ok(());
        }
        set_bases(&mut self.slow);
        match stop {
            Stop::Called => {}
            // The step that the program has asked for itself has been made.
            Stop::Step => {
                self.slow.deliver(Exception::debug(x86::control::dr6::BS));
            }
            _ => self.slow.execute_one(),
        }
        Ok(())
    }

    /// A byte of the code that is executed.
    fn code_byte(&self, va: u64) -> u8 {
        self.view(va).map_or(0, |view| self.slow.memory().frames().read(view.mfn, va & PAGE_MASK))
    }

    // ---- pages that are met --------------------------------------------------------------------------------------

    fn view(&self, va: u64) -> Option<View> {
        self.space.as_ref().and_then(|space| space.view(va)).copied()
    }

    /// Maps what an access to `va` by the instruction at RIP needs; what that is, if it can be made there.
    fn admit(&mut self, va: u64, rip: u64) -> Result<Option<Met>, HostError> {
        if !self.space.as_ref().is_some_and(|space| space.has_place_for(va)) {
            return Ok(None);
        }
        let page = va & !PAGE_MASK;
        let at_rip = page == rip & !PAGE_MASK;
        // An instruction may reach into the next page; what it has there is fetched from the beginning.
        let fetched = at_rip || va == page && page == rip.wrapping_add(LONGEST as u64) & !PAGE_MASK;
        let view = self.view(va);
        if fetched && view.is_none_or(|view| !view.rights.execute) {
            // If it is the guest's fault it is raised by interpreting the instruction.
            return Ok(self.admit_code(page)?.then_some(Met::Code));
        }
        Ok(match view {
            None => self.admit_data(page).then_some(Met::Data),
            Some(view) if view.rights.write => None,
            Some(_) => self.admit_write(page).then_some(Met::Write),
        })
    }

    fn map(&mut self, va: u64, resolved: &Resolved, rights: Rights, met: bool) -> bool {
        self.space.as_mut().is_some_and(|space| space.map(va, resolved, rights, met))
    }

    /// Maps a page that is read, and those around it.
    fn admit_data(&mut self, page: u64) -> bool {
        if !self.map_data(page, true) {
            return false;
        }
        let pages =
            if self.space.as_ref().is_some_and(|space| space.is_large(page)) { LARGE } else { DATA_AHEAD };
        let first = page & !(pages * PAGE_SIZE - 1);
        for other in (0..pages).map(|number| first + number * PAGE_SIZE) {
            if self.view(other).is_none() {
                self.map_data(other, false);
            }
        }
        true
    }

    fn map_data(&mut self, page: u64, met: bool) -> bool {
        let Some(resolved) = self.slow.resolve_ahead(page) else { return false };
        let Target::Ram { mfn, gfn, cached: true } = resolved.target else { return false };
        let write = resolved.writable && self.slow.memory().may_cache_writes(gfn, mfn);
        self.map(page, &resolved, Rights { write, execute: false }, met)
    }

    /// Maps a page that is written.
    fn admit_write(&mut self, page: u64) -> bool {
        match self.slow.resolve(page, Access::Write) {
            Ok(resolved) if matches!(resolved.target, Target::Ram { cached: true, .. }) => {
                self.map(page, &resolved, Rights { write: true, execute: false }, true)
            }
            _ => false,
        }
    }

    /// Maps a page whose code is fetched, and those around it; false if it cannot be.
    fn admit_code(&mut self, page: u64) -> Result<bool, HostError> {
        let foreign = self.space.as_mut().is_some_and(|space| space.refuses(page));
        if foreign || !self.map_code(page, true)? {
            return Ok(false);
        }
        let first = page & !(CODE_AHEAD * PAGE_SIZE - 1);
        for other in (0..CODE_AHEAD).map(|number| first + number * PAGE_SIZE) {
            if self.view(other).is_none() {
                self.map_code(other, false)?;
            }
        }
        Ok(self.view(page).is_some_and(|view| view.rights.execute))
    }

    /// Maps a page of code that is met, or one near it, which then gets no breakpoints.
    fn map_code(&mut self, page: u64, met: bool) -> Result<bool, HostError> {
        // To watch a frame for the first time may drop what was resolved.
        for _ in 0..2 {
            let drops = self.views.drops();
            let Some(resolved) = self.slow.resolve_code(page, Privilege::User) else { return Ok(false) };
            let Some(mfn) = resolved.frame() else { return Ok(false) };
            let verdict = self.examine(page, mfn)?;
            self.catch_up()?;
            let (Some(verdict), Some(space)) = (verdict, &mut self.space) else { continue };
            let Some(offsets) = verdict.offsets() else {
                space.note_foreign(page);
                return Ok(false);
            };
            if drops == self.views.drops() {
                let watched = offsets.is_empty() || met && space.watch(page, offsets);
                return Ok(watched && self.map(page, &resolved, Rights { write: false, execute: true }, met));
            }
        }
        Ok(false)
    }

    /// What the code of a page in this frame does that tells host and guest apart, as long as the frame is watched. `None` if it cannot be
    /// watched.
    fn examine(&mut self, page: u64, mfn: Mfn) -> Result<Option<Verdict>, HostError> {
        let Some(version) = self.watch(mfn)? else { return Ok(None) };
        let verdict = match self.verdicts.find(mfn, version) {
            Some(known) => known,
            None => {
                let bytes: [u8; PAGE_SIZE as usize] = self.bytes_of(mfn, 0);
                let verdict = Code::new(self.tail(page), &bytes).verdict();
                let there = self.still_there(mfn, 0, &bytes);
                if !there || self.slow.memory().code_version(mfn) != version {
                    return Ok(None);
                }
                self.verdicts.note(mfn, version, verdict);
                verdict
            }
        };
        let executed = |page| self.view(page).filter(|view| view.rights.execute).map(|view| view.mfn);
        let seam =
            |before: Mfn, behind: Mfn| is_ordinary_seam(&self.tail_of(before), &self.bytes_of(behind, 0));
        let before = executed(page.wrapping_sub(PAGE_SIZE)).is_none_or(|before| seam(before, mfn));
        let behind = executed(page.wrapping_add(PAGE_SIZE)).is_none_or(|behind| seam(mfn, behind));
        Ok(Some(if before && behind { verdict } else { Verdict::FOREIGN }))
    }

    /// The last bytes of the page before a page, if there is one.
    fn tail(&mut self, page: u64) -> Option<[u8; AHEAD]> {
        let mfn = self.slow.resolve_ahead(page.wrapping_sub(PAGE_SIZE))?.frame()?;
        Some(self.tail_of(mfn))
    }

    fn tail_of(&self, mfn: Mfn) -> [u8; AHEAD] {
        self.bytes_of(mfn, PAGE_SIZE - AHEAD as u64)
    }

    fn bytes_of<const COUNT: usize>(&self, mfn: Mfn, from: u64) -> [u8; COUNT] {
        let mut bytes = [0; COUNT];
        self.slow.memory().frames().copy_out(mfn, from, &mut bytes);
        bytes
    }
}
