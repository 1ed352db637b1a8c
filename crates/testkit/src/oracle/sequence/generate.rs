//! From a random generator to a program.
//!
//! Shape: a *head* that sets the stack pointer, up to sixteen items, a *tail* that counts turns and goes back to the head,
//! a breakpoint, then subroutines. An item is a straight step, a branch forward, an inner loop, a call, an indirect jump, or a
//! store into the code. Control goes backwards only at ends of loops, which count, and loops are entered only at
//! their beginning, where the count is set: so every program ends.

use iced_x86::{Code, FlowControl, Instruction, MemoryOperand, OpCodeOperandKind, Register};

use super::super::build::{self, RSP, World};
use super::super::case::{CODE, CODE_BYTES, STACK};
use super::super::forms::Form;
use super::super::random::Random;
use super::ledger::{Ledger, load};
use super::plain::{STACK_TOP, fits};
use super::program::{Body, Counter, Encoded, Fix, Group, Label, Op, Place, Program, Step};

/// Where turns are counted, if that is in memory.
const TURNS: u64 = STACK + 8;

/// The forms that sequences are made of.
pub(super) struct Forms {
    pub(super) all: Vec<Form>,
    /// Conditional branches, by mode.
    branches: [Vec<Code>; 2],
    /// The rest, by mode, as indices of `all`.
    plain: [Vec<usize>; 2],
}

impl Forms {
    pub(super) fn new(all: &[Form], only: Option<&String>) -> Self {
        let wanted = |form: &Form| only.is_none_or(|only| form.to_string().contains(only));
        let straight: Vec<Form> = all.iter().copied().filter(|form| fits(form) && wanted(form)).collect();
        let plain = [64, 32].map(|bits| {
            straight
                .iter()
                .enumerate()
                .filter(|(_, form)| form.bits == bits)
                .map(|(index, _)| index)
                .collect()
        });
        let branches = [64, 32].map(|bits| {
            all.iter().filter(|form| form.bits == bits && is_branch(form)).map(|form| form.code).collect()
        });
        Self { all: straight, branches, plain }
    }

    /// Whether there is anything in this mode.
    fn has(&self, bits: u32) -> bool {
        !self.plain[usize::from(bits == 32)].is_empty()
    }

    pub(super) fn plain_index(&self, bits: u32, random: &mut Random) -> usize {
        random.pick(&self.plain[usize::from(bits == 32)])
    }

    pub(super) fn branch(&self, bits: u32, random: &mut Random) -> Code {
        random.pick(&self.branches[usize::from(bits == 32)])
    }
}

/// A conditional branch that goes anywhere: not one that cuts addresses to 16 bits.
fn is_branch(form: &Form) -> bool {
    use OpCodeOperandKind as K;
    form.code.flow_control() == FlowControl::ConditionalBranch
        && matches!(form.code.op_code().op_kind(0), K::br64_1 | K::br64_4 | K::br32_1 | K::br32_4)
}

/// A sequence in the making.
pub(super) struct Maker<'a> {
    pub(super) random: Random,
    pub(super) world: &'a World,
    pub(super) forms: &'a Forms,
    pub(super) ledger: Ledger,
    /// Whether operands are mostly where nothing faults.
    pub(super) calm: bool,
    pub(super) resumes: u32,
    pub(super) start: u64,
    pub(super) memory: Vec<(u64, Vec<u8>)>,
    /// Entries of subroutines.
    pub(super) routines: Vec<Label>,
    /// Forms that were used, by index.
    pub(super) used: Vec<usize>,
    /// Where the next pointer in memory goes.
    pub(super) next_pointer: u64,
    labels: usize,
    groups: Group,
    regions: u32,
}

/// A program, its bytes and the forms in it.
pub(super) struct Made {
    pub(super) program: Program,
    pub(super) encoded: Encoded,
    pub(super) used: Vec<usize>,
}

/// Makes the sequence of that number.
pub(super) fn make(seed: u64, number: u64, forms: &Forms, world: &World) -> Option<Made> {
    let mut random = Random::new(seed ^ 0x5e90_e4ce, number);
    // What does not fit together is made anew.
    (0..32).find_map(|_| {
        let bits = if random.one_in(4) { 32 } else { 64 };
        if !forms.has(bits) {
            return None;
        }
        let again = Random::new(random.bits(), number);
        let mut maker = Maker::new(again, bits, forms, world);
        let mut program = maker.program()?;
        program.wash_flags();
        let mut encoded = program.encode()?;
        // A fault after the last turn would begin one too many.
        let end = program.steps.iter().position(|step| !step.falls && step.group == 0);
        let beyond = |(address, step, _): &(u64, usize, usize)| {
            Some(*step) == end && *address >= CODE + CODE_BYTES as u64
        };
        if program.resumes > 0 && encoded.addresses.iter().any(beyond) {
            program.resumes = 0;
            encoded = program.encode()?;
        }
        Some(Made { program, encoded, used: maker.used })
    })
}

impl<'a> Maker<'a> {
    fn new(mut random: Random, bits: u32, forms: &'a Forms, world: &'a World) -> Self {
        let registers = build::random_registers(&mut random, bits, world);
        let start = CODE
            + match random.below(16) {
                // Across the page boundary, or against the end.
                0..3 => 0x1000 - random.below(200),
                3 if random.one_in(4) => CODE_BYTES as u64 - random.below(200),
                _ => 0x200 + random.below(0x1800),
            };
        Self {
            calm: !random.one_in(4),
            resumes: if random.one_in(2) { 1 + random.below(60) as u32 } else { 0 },
            random,
            world,
            forms,
            ledger: Ledger::new(bits, registers),
            start,
            memory: Vec::new(),
            routines: Vec::new(),
            used: Vec::new(),
            next_pointer: STACK + 0x40,
            labels: 0,
            groups: 0,
            regions: 0,
        }
    }

    pub(super) fn label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels)
    }

    pub(super) fn group(&mut self) -> Group {
        self.groups += 1;
        self.groups
    }

    pub(super) fn region(&mut self) -> u32 {
        self.regions += 1;
        self.regions
    }

    fn program(&mut self) -> Option<Program> {
        let turns = self.random.pick(&[1, 1, 2, 2, 3, 40]);
        let bits = self.ledger.bits;
        let counter = if bits == 64 && self.random.one_in(2) {
            Counter::Register(8 + self.random.below(8) as usize)
        } else {
            Counter::Memory(TURNS)
        };
        let reserved = match counter {
            Counter::Register(n) => 1 << n,
            Counter::Memory(_) => 0,
        };
        let routines = self.routines(reserved)?;
        let head = Step::new(self.label(), Body::Ops(vec![load(bits, RSP, STACK_TOP).into()]));
        let (tail, end) = self.ending(counter, head.label)?;
        let mut items = self.items(reserved, tail.label)?;
        let tail_label = tail.label;
        let mut steps = vec![head];
        steps.append(&mut items);
        steps.push(tail);
        steps.push(end);
        steps.extend(routines);
        self.rewrites(&mut steps, reserved)?;
        self.aim(&mut steps);
        let resumes = self.resumes;
        let (registers, memory) = (self.ledger.registers, std::mem::take(&mut self.memory));
        let start = self.start;
        Some(Program { bits, start, registers, steps, memory, turns, counter, resumes, tail: tail_label })
    }

    /// The items of the main part.
    fn items(&mut self, reserved: u32, tail: Label) -> Option<Vec<Step>> {
        let count = 1 + self.random.below(16);
        let mut steps = Vec::new();
        for _ in 0..count {
            let made = match self.random.below(16) {
                0 | 1 => vec![self.branch(reserved)?],
                2 => self.inner_loop(reserved)?,
                3 if !self.routines.is_empty() => vec![self.call(reserved)?],
                4 if self.random.one_in(2) => vec![self.indirect_jump(reserved)?],
                _ => vec![self.plain(reserved)?],
            };
            steps.extend(self.grouped(made));
        }
        // Whatever aims beyond the last item aims at the tail.
        debug_assert!(steps.iter().all(|step: &Step| step.label != tail));
        Some(steps)
    }

    /// Steps that are dropped one by one, unless they have a group already.
    pub(super) fn grouped(&mut self, mut steps: Vec<Step>) -> Vec<Step> {
        for step in &mut steps {
            if step.group == 0 {
                step.group = self.group();
            }
        }
        steps
    }

    /// The tail, and the breakpoint that ends everything.
    fn ending(&mut self, counter: Counter, head: Label) -> Option<(Step, Step)> {
        let bits = self.ledger.bits;
        let count = match counter {
            Counter::Register(n) => Instruction::with1(Code::Dec_rm64, Register::RAX + n as u32).ok()?,
            Counter::Memory(address) => {
                let operand = MemoryOperand::with_displ(address, bits / 8);
                Instruction::with1(Code::Dec_rm32, operand).ok()?
            }
        };
        let code = if bits == 64 { Code::Jne_rel32_64 } else { Code::Jne_rel32_32 };
        let back = Op {
            instruction: Instruction::with_branch(code, self.start).ok()?,
            fix: Fix::Branch(Place::Lead(0)),
        };
        let mut tail = Step::new(self.label(), Body::Ops(vec![count.into(), back]));
        tail.leads = vec![head];
        let mut end = Step::new(self.label(), Body::Ops(vec![Instruction::with(Code::Int3).into()]));
        end.falls = false;
        Some((tail, end))
    }
}
