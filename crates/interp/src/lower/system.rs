//! Handlers of the instructions that touch system state. All of them end the block: what follows may run in another
//! mode, at another privilege, or with interrupts let in.

use iced_x86::{Code, Instruction, Mnemonic};

use crate::exec::{flags, string};
use crate::lower::integer::string_address_cut;
use crate::lower::{is_string, undefined};
use crate::op::{Handler, MEMORY, Op};
use crate::system::{
    control, debug, far, hypercall, interrupt, io, iret, misc, msr, segment, syscall, tables,
};
use crate::width::by_width;

/// The handler, and whether it ends the block; `None` if the mnemonic is not of this table.
pub(super) fn select(insn: &Instruction, op: &mut Op) -> Option<(Handler, bool)> {
    if let Some(handler) = hint(insn) {
        return Some((handler, false));
    }
    transfer(insn, op)
        .or_else(|| moves(insn, op))
        .or_else(|| ports(insn, op))
        .or_else(|| privileged(insn, op))
        .or_else(|| query(insn, op))
        .map(|handler| (handler, true))
}

/// What executes as no operation, and MFENCE.
fn hint(insn: &Instruction) -> Option<Handler> {
    Some(match insn.mnemonic() {
        Mnemonic::Nop
        // Loads and stores are the host's own, in program order, and none of them is non-temporal.
        | Mnemonic::Lfence
        | Mnemonic::Sfence
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Reservednop
        // Without CET these are NOPs of the reserved range.
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Rdsspd
        | Mnemonic::Rdsspq => misc::nop,
        Mnemonic::Pause => misc::pause,
        Mnemonic::Mfence => misc::mfence,
        _ => return None,
    })
}

/// Far transfers, interrupts and returns from them.
fn transfer(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    let code = insn.code();
    Some(match insn.mnemonic() {
        Mnemonic::Jmp | Mnemonic::Call => {
            op.size = far_size(code)?;
            if insn.mnemonic() == Mnemonic::Jmp { far::jump } else { far::call }
        }
        Mnemonic::Retf => {
            op.size = match code {
                Code::Retfw | Code::Retfw_imm16 => 2,
                Code::Retfd | Code::Retfd_imm16 => 4,
                _ => 8,
            };
            far::ret
        }
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => {
            op.size = match insn.mnemonic() {
                Mnemonic::Iret => 2,
                Mnemonic::Iretd => 4,
                _ => 8,
            };
            iret::iret
        }
        Mnemonic::Int => interrupt::int,
        Mnemonic::Int3 => interrupt::int3,
        Mnemonic::Int1 => interrupt::int1,
        Mnemonic::Into => interrupt::into,
        Mnemonic::Bound => {
            // The operand size is that of one bound.
            op.size = u8::try_from(insn.op0_register().size()).unwrap_or(4);
            tables::bound
        }
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => undefined,
        Mnemonic::Syscall => syscall::syscall,
        Mnemonic::Sysret | Mnemonic::Sysretq => {
            op.size = if code == Code::Sysretq { 8 } else { 4 };
            syscall::sysret
        }
        Mnemonic::Sysenter => syscall::sysenter,
        Mnemonic::Sysexit | Mnemonic::Sysexitq => {
            op.size = if code == Code::Sysexitq { 8 } else { 4 };
            syscall::sysexit
        }
        _ => return None,
    })
}

/// The width of a far pointer's offset.
fn far_size(code: Code) -> Option<u8> {
    Some(match code {
        Code::Jmp_ptr1616 | Code::Jmp_m1616 | Code::Call_ptr1616 | Code::Call_m1616 => 2,
        Code::Jmp_ptr1632 | Code::Jmp_m1632 | Code::Call_ptr1632 | Code::Call_m1632 => 4,
        Code::Jmp_m1664 | Code::Call_m1664 => 8,
        _ => return None,
    })
}

/// Moves to segment, control and debug registers, and to RFLAGS.
fn moves(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    let (first, second) = (insn.op0_register(), insn.op1_register());
    Some(match insn.mnemonic() {
        Mnemonic::Mov if first.is_segment_register() => segment::mov_to_segment,
        Mnemonic::Mov if first.is_cr() => control::write,
        Mnemonic::Mov if second.is_cr() => control::read,
        Mnemonic::Mov if first.is_dr() => debug::write,
        Mnemonic::Mov if second.is_dr() => debug::read,
        Mnemonic::Mov => undefined,
        Mnemonic::Pop => {
            op.size = u8::try_from(insn.stack_pointer_increment().unsigned_abs()).unwrap_or(8);
            by_width!(op.size, segment::pop_segment)
        }
        Mnemonic::Lds => far_load(op, 3),
        Mnemonic::Les => far_load(op, 0),
        Mnemonic::Lss => far_load(op, 2),
        Mnemonic::Lfs => far_load(op, 4),
        Mnemonic::Lgs => far_load(op, 5),
        Mnemonic::Popf => flags::popf::<u16>,
        Mnemonic::Popfd => flags::popf::<u32>,
        Mnemonic::Popfq => flags::popf::<u64>,
        Mnemonic::Cli => flags::cli,
        Mnemonic::Sti => flags::sti,
        Mnemonic::Stac => set_ac(op, 1),
        Mnemonic::Clac => set_ac(op, 0),
        _ => return None,
    })
}

fn far_load(op: &mut Op, segment: u8) -> Handler {
    op.src2 = segment;
    by_width!(op.size, segment::load_far_pointer)
}

fn set_ac(op: &mut Op, value: u64) -> Handler {
    op.imm = value;
    flags::set_ac
}

fn ports(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    let string = |op: &mut Op, handler: Handler| {
        op.mem.cut = string_address_cut(insn);
        handler
    };
    Some(match insn.mnemonic() {
        Mnemonic::In => by_width!(op.size, io::input),
        Mnemonic::Out => {
            let size = u8::try_from(insn.op1_register().size()).unwrap_or(1);
            by_width!(size, io::output)
        }
        Mnemonic::Insb => string(op, string::ins::<u8>),
        Mnemonic::Insw => string(op, string::ins::<u16>),
        Mnemonic::Insd => string(op, string::ins::<u32>),
        Mnemonic::Outsb => string(op, string::outs::<u8>),
        Mnemonic::Outsw => string(op, string::outs::<u16>),
        Mnemonic::Outsd if is_string(insn, Mnemonic::Outsd) => string(op, string::outs::<u32>),
        _ => return None,
    })
}

fn privileged(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    Some(match insn.mnemonic() {
        Mnemonic::Hlt => misc::hlt,
        Mnemonic::Monitor => misc::monitor,
        Mnemonic::Mwait => misc::mwait,
        Mnemonic::Rdmsr => msr::rdmsr,
        Mnemonic::Wrmsr => msr::wrmsr,
        Mnemonic::Clts => control::clts,
        Mnemonic::Lmsw => control::lmsw,
        Mnemonic::Invd | Mnemonic::Wbinvd => misc::wbinvd,
        Mnemonic::Invlpg => control::invlpg,
        Mnemonic::Invpcid => control::invpcid,
        Mnemonic::Lgdt => sized_table(insn, op, tables::lgdt),
        Mnemonic::Lidt => sized_table(insn, op, tables::lidt),
        Mnemonic::Lldt => tables::lldt,
        Mnemonic::Ltr => tables::ltr,
        Mnemonic::Swapgs => misc::swapgs,
        Mnemonic::Vmcall | Mnemonic::Vmmcall => hypercall::call,
        _ => return None,
    })
}

/// LGDT and LIDT with 16-bit operand size load a 24-bit base.
fn sized_table(insn: &Instruction, op: &mut Op, handler: Handler) -> Handler {
    let narrow = matches!(insn.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16);
    op.size = if narrow { 2 } else { 8 };
    handler
}

fn query(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    Some(match insn.mnemonic() {
        Mnemonic::Cpuid => misc::cpuid,
        Mnemonic::Rdtsc => misc::rdtsc,
        Mnemonic::Rdtscp => misc::rdtscp,
        Mnemonic::Rdpmc => misc::rdpmc,
        Mnemonic::Rdpid => misc::rdpid,
        Mnemonic::Rdrand | Mnemonic::Rdseed => by_width!(op.size, misc::random),
        Mnemonic::Sgdt => tables::sgdt,
        Mnemonic::Sidt => tables::sidt,
        Mnemonic::Sldt => tables::sldt,
        Mnemonic::Str => tables::str,
        Mnemonic::Smsw => control::smsw,
        Mnemonic::Lar => tables::lar,
        Mnemonic::Lsl => tables::lsl,
        Mnemonic::Verr => tables::verr,
        Mnemonic::Verw => tables::verw,
        Mnemonic::Arpl => tables::arpl,
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb if op.dst == MEMORY => misc::flush_line,
        Mnemonic::Rdfsbase => base(op, 4, by_width!(op.size, misc::read_base)),
        Mnemonic::Rdgsbase => base(op, 5, by_width!(op.size, misc::read_base)),
        Mnemonic::Wrfsbase => base(op, 4, by_width!(op.size, misc::write_base)),
        Mnemonic::Wrgsbase => base(op, 5, by_width!(op.size, misc::write_base)),
        _ => return None,
    })
}

fn base(op: &mut Op, segment: u64, handler: Handler) -> Handler {
    op.imm = segment;
    handler
}
