//! Processor against engine: what differs, in words.

use std::fmt::Write;

use iced_x86::{Instruction, Mnemonic};
use x86::exception::{pf, vector};
use x86::rflags;

use super::case::{CHUNK, CHUNKS, CODE_BYTES, DATA, Input, Output, Registers};
use super::undefined;
use super::vendor::Host;

const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// What differs between the processor's and the engine's result; nothing if they agree.
pub(super) fn differences(
    host: Host,
    instruction: &Instruction,
    input: &Input,
    cpu: &Output,
    engine: &Output,
) -> Option<String> {
    let completed = cpu.registers.rip != input.registers.rip;
    if !host.agrees(instruction) || !completed && !host.agrees_in_fault(instruction) {
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
        && [cpu, engine].iter().all(|side| [vector::GP, vector::PF].map(u32::from).contains(&side.vector));
    if !either {
        note("vector", cpu.vector.into(), engine.vector.into());
    }
    if cpu.vector == engine.vector {
        compare_fault(instruction, input, cpu, engine, &mut note);
    }
    note("rip", a.rip.into(), b.rip.into());
    let undefined = if completed { undefined::flags(instruction, &input.registers) } else { 0 };
    // Whether RF is set for code beyond its segment's limit is not told.
    let beyond = input.bits == 16
        && cpu.vector == u32::from(vector::GP)
        && a.rip + input.code.len() as u64 > CODE_BYTES as u64;
    let undefined = if beyond { undefined | rflags::RF } else { undefined };
    note("rflags", (a.rflags & !undefined).into(), (b.rflags & !undefined).into());
    let loose = completed && undefined::destination(instruction, &input.registers);
    for (n, name) in GPR.into_iter().enumerate() {
        // 32-bit code sees the lower halves of eight registers; the rest is undefined after it (SDM vol. 1, 3.4.1.1).
        let seen = match (input.bits, n) {
            (64, _) => u64::MAX,
            (_, 0..8) => 0xffff_ffff,
            _ => 0,
        };
        let popped = !completed && n != 4 && undefined::pops_in_parts(instruction);
        let mask = if popped { 0 } else { seen & undefined::register_mask(instruction, n) };
        if !(loose && instruction.op0_register().full_register().number() == n) {
            note(name, (a.gpr[n] & mask).into(), (b.gpr[n] & mask).into());
        }
    }
    if completed || !undefined::restores_in_parts(instruction) {
        compare_units(host, a, b, &mut note);
    }
    if completed || !undefined::stores_in_parts(instruction) {
        compare_data(instruction, input, cpu, engine, loose, &mut text);
    }
    (!text.is_empty()).then(|| format!(" #{} cr2={:#x}:{text}", cpu.vector, cpu.cr2))
}

/// Linux reports every fault above user addresses as one of protection, and so does not tell which pages it has.
const KERNEL: u64 = 0x7fff_ffff_f000;

fn compare_fault(
    instruction: &Instruction,
    input: &Input,
    cpu: &Output,
    engine: &Output,
    note: &mut impl FnMut(&str, u128, u128),
) {
    let fetch = cpu.registers.rip != input.registers.rip;
    if cpu.vector != u32::from(vector::PF) {
        note("error", cpu.error.into(), engine.error.into());
        return;
    }
    if undefined::is_in_parts(instruction) && !fetch && cpu.cr2.abs_diff(engine.cr2) < 2 * x86::PAGE_SIZE {
        // Which part is touched first is not told of operands that are accessed in parts.
        return;
    }
    let present = if cpu.cr2 >= KERNEL { pf::PRESENT } else { 0 };
    note("error", (cpu.error & !present).into(), (engine.error & !present).into());
    note("cr2", cpu.cr2.into(), engine.cr2.into());
}

fn compare_units(host: Host, a: &Registers, b: &Registers, note: &mut impl FnMut(&str, u128, u128)) {
    note("mxcsr", a.mxcsr.into(), b.mxcsr.into());
    note("fcw", a.fcw.into(), b.fcw.into());
    note("fsw", a.fsw.into(), b.fsw.into());
    note("ftw", a.ftw.into(), b.ftw.into());
    if host.keeps_pointers(a) {
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

fn compare_data(
    instruction: &Instruction,
    input: &Input,
    cpu: &Output,
    engine: &Output,
    loose: bool,
    text: &mut String,
) {
    if loose && instruction.op0_register() == iced_x86::Register::None {
        return;
    }
    for index in 0..CHUNKS {
        let (a, b) = (cpu.chunk(index), engine.chunk(index));
        if a == b {
            continue;
        }
        let at = DATA + (index * CHUNK) as u64;
        match (a, b) {
            (Some(a), Some(b)) => {
                for (i, (a, b)) in a.iter().zip(b).enumerate() {
                    let address = at + i as u64;
                    if a != b && !is_in_use_map(instruction, input, address) {
                        let _ = write!(text, " [{address:#x}]: {a:#x} is {b:#x};");
                    }
                }
            }
            (Some(_), None) => {
                let _ = write!(text, " [{at:#x}..]: changed, is not;");
            }
            _ => {
                let _ = write!(text, " [{at:#x}..]: unchanged, is not;");
            }
        }
    }
}

/// XSTATE_BV as the XSAVE family writes it: whether a component counts as in use is the implementation's own (SDM vol. 1, 13.6).
fn is_in_use_map(instruction: &Instruction, input: &Input, address: u64) -> bool {
    use Mnemonic as M;
    let saves = matches!(
        instruction.mnemonic(),
        M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 | M::Xsavec | M::Xsavec64
    );
    let header = DATA + u64::from(input.patch_at) + 512;
    saves && (header..header + 8).contains(&address)
}
