//! Flags that the manual leaves undefined must not become anything that is compared.
//!
//! A forward analysis over the steps, along every way that control may take (faults that are gone on after included), finds
//! what may be undefined before each instruction. Where an instruction would read such a flag, its step is *washed*: a
//! comparison in front defines all flags. So nothing but flags is ever undefined, and only at the end, where they
//! are masked ([`Program::undefined_at`]).

use iced_x86::{Instruction, Mnemonic};
use instruction::status_flags;

use super::super::case::Registers;
use super::super::undefined;
use super::program::{Encoded, Program, Step};

/// What an instruction does to knowledge about flags.
struct Effect {
    reads: u64,
    /// Flags that have a defined value afterwards.
    defines: u64,
    /// Flags that may be undefined afterwards.
    spoils: u64,
}

impl Effect {
    fn of(instruction: &Instruction) -> Self {
        let spoils = spoiled(instruction);
        // What may do nothing, by its count, defines nothing.
        let idle = is_counted(instruction);
        let all = instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set();
        let defines = if idle { 0 } else { status_flags(all) & !spoils };
        Self { reads: status_flags(instruction.rflags_read()), defines, spoils }
    }

    const fn after(&self, undefined: u64) -> u64 {
        undefined & !self.defines | self.spoils
    }
}

/// Flags that may be undefined after the instruction, whatever its operands are.
fn spoiled(instruction: &Instruction) -> u64 {
    // Counts only matter to shifts.
    let counts = if is_counted(instruction) { 64 } else { 1 };
    (0..counts).fold(0, |all, count| {
        let mut before = Registers::ZERO;
        before.gpr[1] = count;
        all | undefined::flags(instruction, &before)
    })
}

fn is_counted(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Shl | M::Shr | M::Sar | M::Sal | M::Shld | M::Shrd | M::Rcl | M::Rcr | M::Rol | M::Ror
    ) || instruction.has_rep_prefix()
        || instruction.has_repne_prefix()
}

/// The effects of each instruction: by step, by form that the step's code may have.
type Effects = Vec<Vec<Vec<Effect>>>;

impl Program {
    /// Washes steps until nothing reads an undefined flag.
    pub(super) fn wash_flags(&mut self) {
        let effects = self.effects();
        loop {
            let before = self.undefined_before(&effects);
            let mut changed = false;
            for (index, step) in self.steps.iter_mut().enumerate() {
                let reads = effects[index].iter().any(|form| reads_any(form, before[index]));
                if reads && !step.washed {
                    step.washed = true;
                    changed = true;
                }
            }
            if !changed {
                return;
            }
        }
    }

    /// Flags that may be undefined when the instruction at `rip` raises an exception or the code ends there. Of places that
    /// are none of the program's: whatever may be undefined anywhere.
    pub(super) fn undefined_at(&self, encoded: &Encoded, rip: u64) -> u64 {
        let effects = self.effects();
        let before = self.undefined_before(&effects);
        let Some(&(_, step, number)) = encoded.addresses.iter().find(|(address, ..)| *address == rip) else {
            let known = before.iter().fold(0, |all, flags| all | flags);
            return effects.iter().flatten().flatten().fold(known, |all, effect| all | effect.spoils);
        };
        let entering = if self.steps[step].washed { 0 } else { before[step] };
        // A slot is any of its forms, and only its beginning is known.
        let first = effects[step].first().into_iter().flatten();
        first.take(number).fold(entering, |flags, effect| effect.after(flags))
    }

    fn effects(&self) -> Effects {
        let of_form = |form: Vec<Instruction>| form.iter().map(Effect::of).collect();
        self.steps.iter().map(|step| step.variants(self.bits).into_iter().map(of_form).collect()).collect()
    }

    /// Flags that may be undefined where each step begins.
    fn undefined_before(&self, effects: &Effects) -> Vec<u64> {
        let mut before = vec![0; self.steps.len()];
        let ways: Vec<Vec<usize>> = (0..self.steps.len()).map(|index| self.ways_from(index)).collect();
        let tail = self.steps.iter().position(|step| step.label == self.tail).filter(|_| self.resumes > 0);
        loop {
            let mut changed = false;
            let mut join = |before: &mut Vec<u64>, to: usize, flags: u64| {
                changed |= flags & !before[to] != 0;
                before[to] |= flags;
            };
            for (index, step) in self.steps.iter().enumerate() {
                let [during, after] = through(step, &effects[index], before[index]);
                for &to in &ways[index] {
                    join(&mut before, to, after);
                }
                if let Some(tail) = tail {
                    join(&mut before, tail, during);
                }
            }
            if !changed {
                return before;
            }
        }
    }

    /// The steps that may be executed after this one.
    fn ways_from(&self, index: usize) -> Vec<usize> {
        let step = &self.steps[index];
        let next = (index + 1 < self.steps.len()).then_some(index + 1);
        if step.dropped {
            return next.into_iter().collect();
        }
        let mut ways: Vec<usize> = step
            .leads
            .iter()
            .filter_map(|label| self.steps.iter().position(|step| step.label == *label))
            .collect();
        if step.falls {
            ways.extend(next);
        }
        if step.returns {
            let calls = self.steps.iter().enumerate().filter(|(_, step)| step.calls && !step.dropped);
            ways.extend(calls.map(|(index, _)| index + 1).filter(|index| *index < self.steps.len()));
        }
        ways
    }
}

fn reads_any(form: &[Effect], entering: u64) -> bool {
    let mut flags = entering;
    form.iter().any(|effect| {
        let reads = effect.reads & flags != 0;
        flags = effect.after(flags);
        reads
    })
}

/// What may be undefined at any instruction of the step, and after it.
fn through(step: &Step, forms: &[Vec<Effect>], entering: u64) -> [u64; 2] {
    if step.dropped {
        return [0, entering];
    }
    let entering = if step.washed { 0 } else { entering };
    forms.iter().fold([entering, 0], |[during, after], form| {
        let mut flags = entering;
        let mut met = during;
        for effect in form {
            flags = effect.after(flags);
            met |= flags;
        }
        [met, after | flags]
    })
}
