//! Oracle (b): system behaviour as the manual has it, in text.
//!
//! Faults and their error codes, privilege, paging, gates, tasks, debugging: what a processor does there follows from no
//! arithmetic, only from the manual. So each case here is a few instructions, a citation, and what must become of
//! them, and runs on any [`engine::Engine`]. The cases are in `cases/system/*.txt`, a subject per file.
//!
//! # A case
//!
//! ```text
//! == POP SS with a selector of another privilege level
//! cite   SDM vol. 2, POP; vol. 3, 5.7
//! start  paged0
//! set    dword[STACK - 4] = UDATA32, esp = STACK - 4
//! code
//!        17                    pop ss
//! raises #GP(UDATA32)
//! check  ss = KDATA, esp = STACK - 4
//! ```
//!
//! - `start`: a preset. `real`, `v86`, `flat0 flat3` (32-bit, no paging), `paged0 paged3` (32-bit paging), `pae0 pae3`,
//!   `long0 long3`, `compat0 compat3`; the number is the privilege level. What is where in memory, and the names
//!   of places and selectors: [`layout`]. Names of bits: [`symbols`].
//! - `cpu`: features asked of or taken from the CPU model, as after `--cpu`. A case that needs what the host cannot
//!   offer is skipped.
//! - `set`: changes to the preset, in order; `=`, `|=`, `&=`, `^=`. Targets: registers by name; `cs` and its kin (loads
//!   the descriptor, with no check) and `cs.base`; `gdtr.base`, `idtr.limit`; `blocking.nmi` and `blocking.mov_ss` (1: NMIs wait,
//!   the shadow of MOV SS is there); `byte[…]` to `qword[…]` (physical);
//!   `gdt[selector]`, `ldt[selector]`, `idt[vector]`; `pte[va]`, `pde[va]`, `pdpte[va]`, `pml4e[va]`. Descriptors and gates
//!   can be written out: [`descriptor`].
//! - `vcpu`: which processor of the machine this is; 0, the boot processor, if not given.
//! - `event`: `nmi`, `interrupt N`, `init` or `startup N` is pending from the start; `later`: it arrives once the processor
//!   has stopped. Ports that raise them: [`machine`].
//! - `code`, `code at X`, `code 64 at X`: instructions, as bytes and as assembly (NASM's way, as the decoder
//!   prints it; it is checked that the two agree), with labels between them. A line whose text is `data` is not looked at. Execution
//!   begins at the first one. A HLT follows all code. `start`, `last` and `end` are the addresses of the first section's
//!   first and last instruction and of what is behind it.
//! - The outcome, with the address that the frame holds, or its default: `ends [at end]`; `raises #PF(W | U) cr2 X
//!   [at last]`; `takes vector at X`, for what has no error code because it is no exception; `halts at X`; `shuts down`;
//!   `waits` (for a start-up IPI).
//! - `check`: what must hold then; `=`, `!=`, `has` and `lacks` (bits). Targets as in `set`, and `cpl`, `frame.ip`, `frame.cs`,
//!   `frame.flags`, `frame.sp`, `frame.ss`, `frame.es` to `frame.gs`, `frame.error`.
//!
//! Expectations come from the manual, not from running an engine. Where processors differ, or the manual leaves
//! something open, there is no case.

mod case;
mod descriptor;
mod expr;
mod layout;
mod machine;
mod outcome;
mod place;
mod symbols;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use engine::{Engine, EngineError};
use mmu::{Mmu, Technique};
use x86::cpuid::{CpuModel, CpuRequest, CpuidTable, HostCpuid};
use x86::descriptor::attr;
use x86::rflags::RF;
use x86::state::gpr;
use x86::{Mode, Segment, SegmentIndex, Selector};

use case::{Case, Mistake, Outcome, Statement};
use outcome::{Frame, Stop, Stopped};
use place::Guest;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$((concat!($name, ".txt"), include_str!(concat!("../../cases/system/", $name, ".txt")))),*]
    };
}

/// The files of cases, by name.
pub const FILES: &[(&str, &str)] = &files![
    "alignment",
    "bridges",
    "canonical",
    "compatibility",
    "control-registers",
    "debug",
    "faults",
    "flags",
    "fpu-traps",
    "gates",
    "init",
    "interrupts",
    "io",
    "iret",
    "loops",
    "msr",
    "paging-32",
    "paging-4level",
    "paging-pae",
    "privileged",
    "real-mode",
    "segments",
    "shadows",
    "smc",
    "strings",
    "syscall",
    "tables",
    "tasks",
    "v86",
];

/// What came of running cases.
#[derive(Debug, Default)]
pub struct Report {
    /// How many were run.
    pub run: usize,
    /// Those that this host cannot offer the processor for.
    pub skipped: Vec<String>,
    /// What is wrong, one line each.
    pub failures: Vec<String>,
    /// What all vCPUs have counted together.
    pub counters: HashMap<Cow<'static, str>, u64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for failure in &self.failures {
            writeln!(f, "{failure}")?;
        }
        let (run, failed, skipped) = (self.run, self.failures.len(), self.skipped.len());
        write!(f, "{run} cases, {failed} failures, {skipped} skipped")
    }
}

/// Runs the cases of these files, [`FILES`] for all.
///
/// # Errors
/// If the engine cannot make a vCPU.
pub fn run(engine: &dyn Engine, technique: Technique, files: &[(&str, &str)]) -> Result<Report, EngineError> {
    run_from(engine, technique, |_| {}, files)
}

/// The same, with the state that presets give changed by `begin`, before a case changes it.
///
/// # Errors
/// If the engine cannot make a vCPU.
pub(crate) fn run_from(
    engine: &dyn Engine,
    technique: Technique,
    begin: fn(&mut x86::CpuState),
    files: &[(&str, &str)],
) -> Result<Report, EngineError> {
    let mut suite = Suite { engine, technique, begin, models: HashMap::new(), report: Report::default() };
    for (file, text) in files {
        suite.file(file, text)?;
    }
    Ok(suite.report)
}

struct Suite<'a> {
    engine: &'a dyn Engine,
    technique: Technique,
    begin: fn(&mut x86::CpuState),
    /// The CPU models that were asked for, `None` where the host cannot carry one.
    models: HashMap<String, Option<Arc<CpuidTable>>>,
    report: Report,
}

impl Suite<'_> {
    fn file(&mut self, file: &str, text: &str) -> Result<(), EngineError> {
        let cases = match case::parse(text) {
            Ok(cases) => cases,
            Err(mistake) => {
                self.report.failures.push(format!("{file}:{}: {}", mistake.line, mistake.message));
                return Ok(());
            }
        };
        for case in cases {
            let Some(cpuid) = self.model(&case.cpu) else {
                self.report.skipped.push(format!("{file}:{}: {}", case.line, case.name));
                continue;
            };
            self.report.run += 1;
            for mistake in self.case(&case, &cpuid)? {
                let (line, name) = (mistake.line, &case.name);
                self.report.failures.push(format!("{file}:{line}: {name}: {}", mistake.message));
            }
        }
        Ok(())
    }

    /// Runs one case; returns what is wrong with it.
    fn case(&mut self, case: &Case, cpuid: &Arc<CpuidTable>) -> Result<Vec<Mistake>, EngineError> {
        let memory = Arc::new(layout::memory(case.preset));
        let mut state = layout::state(case.preset, cpuid);
        (self.begin)(&mut state);
        let mut guest = Guest { state: &mut state, memory: &memory, labels: &case.labels, frame: None };
        for Statement { line, target, operator, value } in &case.assignments {
            if let Err(message) = guest.assign(target, operator, value) {
                return Ok(vec![Mistake::new(*line, message)]);
            }
        }
        if let Err(mistake) = place_code(case, &memory, &mut state) {
            return Ok(vec![mistake]);
        }
        let (exit, mut after, counters) = {
            let mmu = Mmu::new(memory.clone(), self.technique);
            machine::run(self.engine, case, mmu, cpuid.clone(), &state)?
        };
        for counter in counters {
            *self.report.counters.entry(counter.name).or_default() += counter.value;
        }
        let features = (&**cpuid).into();
        let guest = Stopped { state: &after, memory: &memory, features: &features };
        let stop = Stop::of(exit, guest, &case.outcome);
        if let Err(message) = stop.compare(&case.outcome, &after) {
            return Ok(vec![Mistake::new(case.line, message)]);
        }
        let frame = stop.frame().cloned();
        if let (Outcome::Ends { .. }, Some(frame)) = (&case.outcome, &frame) {
            step_back(&mut after, frame);
        }
        let mut guest = Guest { state: &mut after, memory: &memory, labels: &case.labels, frame };
        Ok(case.checks.iter().filter_map(|check| holds(&mut guest, check).err()).collect())
    }

    fn model(&mut self, wishes: &[String]) -> Option<Arc<CpuidTable>> {
        let key = wishes.join(",");
        self.models.entry(key).or_insert_with_key(|key| model(key).map(Arc::new)).clone()
    }
}

/// An Intel processor of a named model, with what the case wishes.
fn model(wishes: &str) -> Option<CpuidTable> {
    let words = ["v2", "vendor=intel", wishes];
    let text = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(",");
    let request: CpuRequest = text.parse().ok()?;
    let query = |leaf, subleaf| host::cpu::cpuid(leaf, subleaf);
    let model = CpuModel::resolve(&request, &HostCpuid::new(&query, host::cpu::xgetbv0())).ok()?;
    Some(CpuidTable::new(model, host::time::tsc_khz(), 1))
}

/// The HLT at the end of code in ring 3 went to a handler: puts back what that changed.
fn step_back(state: &mut x86::CpuState, frame: &Frame) {
    (state.rip, state.rflags) = (frame.ip, frame.flags & !RF);
    let user = |selector: u64| Segment {
        attr: 3 << attr::DPL_SHIFT,
        ..Segment::null(Selector(x86::bits::low16(selector)))
    };
    state.seg[SegmentIndex::Cs as usize] = user(frame.cs);
    if let Some((sp, ss)) = frame.stack {
        state.gpr[gpr::RSP] = sp;
        state.seg[SegmentIndex::Ss as usize] = user(ss);
    }
}

/// Writes a case's code to memory, bytes and text compared, and points RIP at it.
fn place_code(case: &Case, memory: &memory::GuestMemory, state: &mut x86::CpuState) -> Result<(), Mistake> {
    let (natural, base) = match state.mode() {
        Mode::Long => (64, 0),
        Mode::Protected32 => (32, state.cs().base),
        Mode::Protected16 | Mode::Real | Mode::V86 => (16, state.cs().base),
    };
    state.rip = case.labels["start"].wrapping_sub(base);
    for section in &case.sections {
        let (bits, base) = match section.bits {
            Some(bits) => (bits, 0),
            None => (natural, base),
        };
        section.verify(bits, base, &case.labels)?;
        memory
            .write(x86::Gpa(section.at), &section.bytes())
            .map_err(|error| Mistake::new(section.line, error.to_string()))?;
    }
    Ok(())
}

fn holds(guest: &mut Guest<'_>, check: &Statement) -> Result<(), Mistake> {
    let Statement { line, target, operator, value } = check;
    let mistake = |message: String| Mistake::new(*line, message);
    let wanted = expr::evaluate(value, guest.labels).map_err(mistake)?;
    let found = guest.get(target).map_err(mistake)?;
    let fits = match operator.as_str() {
        "has" => found & wanted == wanted,
        "lacks" => found & wanted == 0,
        "!=" => found != wanted,
        _ => found == wanted,
    };
    if fits { Ok(()) } else { Err(mistake(format!("{target} is {found:#x}; wanted {operator} {wanted:#x}"))) }
}
