//! Processor against engine: what differs, in words.

use std::fmt::Write;

use iced_x86::Instruction;
use x86::exception::{pf, vector};
use x86::rflags;

use super::case::{CHUNK, CHUNKS, CODE_BYTES, Input, LOGGED, Output, Registers, address_of};
use super::undefined;
use super::vendor::Host;

pub(super) const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// A case, as far as comparing its results needs it.
pub(super) struct Ending<'a> {
    /// The processor.
    pub(super) host: Host,
    /// 64, 32 or 16.
    pub(super) bits: u32,
    /// The only instruction of the case, or the one that ended it.
    pub(super) instruction: &'a Instruction,
    /// Whether that one completed, and what came after it ended the case.
    pub(super) completed: bool,
    /// Flags that are undefined.
    pub(super) undefined: u64,
    /// Whether the instruction's destination is undefined.
    pub(super) loose: bool,
    /// Whether it is the case's only instruction.
    pub(super) alone: bool,
    /// Where the memory operand is.
    pub(super) target: Option<u64>,
}

impl<'a> Ending<'a> {
    /// How a case of one instruction ended.
    pub(super) fn of(host: Host, instruction: &'a Instruction, input: &Input, cpu: &Output) -> Self {
        let completed = cpu.registers.rip != input.registers.rip;
        let before = &input.registers;
        let undefined = if completed { undefined::flags(instruction, before) } else { 0 };
        // Whether RF is set for code beyond its segment's limit is not told.
        let beyond = input.bits == 16
            && cpu.vector == u32::from(vector::GP)
            && cpu.registers.rip.saturating_add(16) > CODE_BYTES as u64;
        Self {
            host,
            bits: input.bits,
            instruction,
            completed,
            undefined: if beyond { undefined | rflags::RF } else { undefined },
            loose: completed && undefined::destination(instruction, before),
            alone: true,
            target: input.pieces().next().map(|(at, _)| address_of(at)),
        }
    }
}

/// What differs between the processor's and the engine's result; nothing if they agree.
pub(super) fn differences(ending: &Ending<'_>, cpu: &Output, engine: &Output) -> Option<String> {
    let Ending { host, instruction, completed, .. } = *ending;
    let told = host.agrees(instruction) && (completed || host.agrees_in_fault(instruction));
    if !told || host.is_beyond(&cpu.registers) {
        return None;
    }
    let mut text = String::new();
    let mut note = |name: &str, a: u128, b: u128| {
        if a != b {
            // Writing to a string does not fail.
            let _ = write!(text, " {name}: {a:#x} is {b:#x};");
        }
    };
    let (a, b) = (&cpu.registers, &engine.registers);
    // Whether a bad image or an address comes first is not told.
    let either = !completed
        && undefined::restores_in_parts(instruction)
        && [cpu, engine]
            .iter()
            .all(|side| [vector::GP, vector::SS, vector::PF].map(u32::from).contains(&side.vector));
    if !either {
        note("vector", cpu.vector.into(), engine.vector.into());
    }
    if cpu.vector == engine.vector {
        compare_fault(ending, cpu, engine, &mut note);
    }
    compare_log(cpu, engine, &mut note);
    note("rip", a.rip.into(), b.rip.into());
    note("rflags", (a.rflags & !ending.undefined).into(), (b.rflags & !ending.undefined).into());
    for (n, name) in GPR.into_iter().enumerate() {
        // 32-bit code sees the lower halves of eight registers; the rest is undefined after it (SDM vol. 1, 3.4.1.1).
        let seen = match (ending.bits, n) {
            (64, _) => u64::MAX,
            (_, 0..8) => 0xffff_ffff,
            _ => 0,
        };
        let popped = !completed && n != 4 && undefined::pops_in_parts(instruction);
        let mask = if popped { 0 } else { seen & undefined::register_mask(instruction, n) };
        if !(ending.loose && instruction.op0_register().full_register().number() == n) {
            note(name, (a.gpr[n] & mask).into(), (b.gpr[n] & mask).into());
        }
    }
    if completed || !undefined::restores_in_parts(instruction) {
        let pointers = host.keeps_pointers(a, ending.alone);
        compare_units(pointers, a, b, &mut note);
    }
    if completed || !undefined::stores_in_parts(instruction) {
        compare_image(ending, cpu, engine, &mut text);
    }
    (!text.is_empty()).then(|| format!(" #{} cr2={:#x}:{text}", cpu.vector, cpu.cr2))
}

/// The faults that a case went on after.
fn compare_log(cpu: &Output, engine: &Output, note: &mut impl FnMut(&str, u128, u128)) {
    note("faults", cpu.resumed.into(), engine.resumed.into());
    if cpu.resumed != engine.resumed {
        return;
    }
    for n in cpu.resumed.saturating_sub(LOGGED as u64)..cpu.resumed {
        let [a, b] = [cpu, engine].map(|side| side.log[n as usize % LOGGED]);
        note(&format!("fault {n} vector"), a.vector.into(), b.vector.into());
        note(&format!("fault {n} rip"), a.rip.into(), b.rip.into());
        let page_fault = a.vector == u64::from(vector::PF);
        let known = if page_fault { known_error_bits(a.cr2) } else { u32::MAX };
        note(&format!("fault {n} error"), (a.error as u32 & known).into(), (b.error as u32 & known).into());
        if page_fault {
            note(&format!("fault {n} cr2"), a.cr2.into(), b.cr2.into());
        }
    }
}

/// Linux reports every fault above user addresses as one of protection, and so does not tell which pages it has.
const KERNEL: u64 = 0x7fff_ffff_f000;

/// The bits of a page fault's error code that mean something.
const fn known_error_bits(cr2: u64) -> u32 {
    if cr2 >= KERNEL { !pf::PRESENT } else { u32::MAX }
}

fn compare_fault(
    ending: &Ending<'_>,
    cpu: &Output,
    engine: &Output,
    note: &mut impl FnMut(&str, u128, u128),
) {
    if cpu.vector != u32::from(vector::PF) {
        note("error", cpu.error.into(), engine.error.into());
        return;
    }
    let parts = undefined::is_in_parts(ending.instruction) && !ending.completed;
    if parts && cpu.cr2.abs_diff(engine.cr2) < 2 * x86::PAGE_SIZE {
        // Which part is touched first is not told of operands that are accessed in parts.
        return;
    }
    let known = known_error_bits(cpu.cr2);
    note("error", (cpu.error & known).into(), (engine.error & known).into());
    note("cr2", cpu.cr2.into(), engine.cr2.into());
}

fn compare_units(pointers: bool, a: &Registers, b: &Registers, note: &mut impl FnMut(&str, u128, u128)) {
    note("mxcsr", a.mxcsr.into(), b.mxcsr.into());
    note("fcw", a.fcw.into(), b.fcw.into());
    note("fsw", a.fsw.into(), b.fsw.into());
    note("ftw", a.ftw.into(), b.ftw.into());
    if pointers {
        note("fop", a.fop.into(), b.fop.into());
        note("fip", a.fip.into(), b.fip.into());
        note("fdp", a.fdp.into(), b.fdp.into());
    }
    if a.ymm != b.ymm {
        for n in 0..16 {
            note(&format!("xmm{n}"), a.ymm[n][0], b.ymm[n][0]);
            note(&format!("ymm{n}.high"), a.ymm[n][1], b.ymm[n][1]);
        }
    }
    if a.st != b.st {
        for n in 0..8 {
            note(&format!("st{n}"), a.st[n], b.st[n]);
        }
    }
}

fn compare_image(ending: &Ending<'_>, cpu: &Output, engine: &Output, text: &mut String) {
    if ending.loose && ending.instruction.op0_register() == iced_x86::Register::None {
        return;
    }
    for index in 0..CHUNKS {
        let (a, b) = (cpu.chunk(index), engine.chunk(index));
        if a == b {
            continue;
        }
        let at = index * CHUNK;
        match (a, b) {
            (Some(a), Some(b)) => {
                for (i, (a, b)) in a.iter().zip(b).enumerate() {
                    let address = address_of(at + i);
                    if a != b && !is_in_use_map(ending, address) {
                        let _ = write!(text, " [{address:#x}]: {a:#x} is {b:#x};");
                    }
                }
            }
            (Some(_), None) => {
                let _ = write!(text, " [{:#x}..]: changed, is not;", address_of(at));
            }
            _ => {
                let _ = write!(text, " [{:#x}..]: unchanged, is not;", address_of(at));
            }
        }
    }
}

/// XSTATE_BV as the XSAVE family writes it: whether a component counts as in use is the implementation's own (SDM vol. 1, 13.6).
fn is_in_use_map(ending: &Ending<'_>, address: u64) -> bool {
    let saves = undefined::stores_components(ending.instruction.mnemonic());
    let header = |target: u64| (target + 512..target + 520).contains(&address);
    saves && ending.target.is_some_and(header)
}
