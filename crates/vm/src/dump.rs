//! What a processor looked like when it could not go on: registers, the code around RIP, the top of the stack.
//!
//! Taken once, from a vCPU that does not run, and readable without Umbra: numbers as the manuals write them, code
//! disassembled. Guest memory is read as far as the guest's own page tables lead; what they do not map is left out,
//! for the tables may be the very thing that is broken.

use std::fmt;

use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use memory::GuestMemory;
use mmu::{PagingContext, PagingFeatures};
use x86::state::gpr;
use x86::{CpuState, Gva, Mode, PAGE_SIZE, Segment, SegmentIndex, bits, control::efer, rflags};

/// Bytes of code that are shown.
const CODE_BYTES: usize = 32;
/// Stack words that are shown.
const STACK_WORDS: usize = 16;

/// A processor's registers with the code and stack that they point to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    vcpu: u32,
    state: Box<CpuState>,
    /// The bytes at CS:RIP, as many as are mapped.
    code: Vec<u8>,
    /// The bytes at SS:RSP, likewise.
    stack: Vec<u8>,
}

impl Dump {
    /// Takes a dump of vCPU number `vcpu`, whose page tables have the formats of `features`.
    pub fn take(vcpu: u32, state: CpuState, memory: &GuestMemory, features: &PagingFeatures) -> Self {
        let paging = PagingContext::of(&state, features);
        let code = read(&paging, memory, linear(&state, SegmentIndex::Cs, state.rip), CODE_BYTES);
        let top = state.gpr[gpr::RSP] & stack_mask(&state);
        let stack_bytes = STACK_WORDS * word_bytes(state.mode());
        let stack = read(&paging, memory, linear(&state, SegmentIndex::Ss, top), stack_bytes);
        Self { vcpu, state: Box::new(state), code, stack }
    }

    /// The registers.
    pub fn state(&self) -> &CpuState {
        &self.state
    }
}

fn word_bytes(mode: Mode) -> usize {
    match mode {
        Mode::Long => 8,
        Mode::Protected32 => 4,
        Mode::Real | Mode::V86 | Mode::Protected16 => 2,
    }
}

/// How many bits of RSP count (SDM vol. 1, 6.2.3).
fn stack_mask(state: &CpuState) -> u64 {
    match state.mode() {
        Mode::Long => u64::MAX,
        _ if state.ss().big() => 0xffff_ffff,
        _ => 0xffff,
    }
}

/// The linear address of an offset in CS or SS, whose bases do not count in 64-bit mode.
fn linear(state: &CpuState, segment: SegmentIndex, offset: u64) -> Gva {
    if state.mode() == Mode::Long {
        Gva(offset)
    } else {
        Gva(state.seg[segment as usize].base.wrapping_add(offset) & 0xffff_ffff)
    }
}

/// Reads up to `len` bytes of guest-virtual memory, up to the first page that is not mapped to memory.
fn read(paging: &PagingContext, memory: &GuestMemory, start: Gva, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = start.wrapping_add(bytes.len() as u64);
        let Some(gpa) = mmu::probe(memory, paging, at) else {
            break;
        };
        let in_page = bits::index(PAGE_SIZE - at.offset()).min(len - bytes.len());
        let mut piece = vec![0; in_page];
        if memory.read(gpa, &mut piece).is_err() {
            break;
        }
        bytes.extend(piece);
    }
    bytes
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.state;
        let mode = match s.mode() {
            Mode::Real => "real mode",
            Mode::V86 => "virtual-8086 mode",
            Mode::Protected16 | Mode::Protected32 if s.long_mode_active() => "compatibility mode",
            Mode::Protected16 => "16-bit protected mode",
            Mode::Protected32 => "32-bit protected mode",
            Mode::Long => "64-bit mode",
        };
        writeln!(f, "vCPU {}: {mode}, privilege level {}", self.vcpu, s.cpl())?;
        self.general(f)?;
        self.segments(f)?;
        self.control(f)?;
        self.code(f)?;
        self.stack(f)
    }
}

const GPR_NAMES: [&str; 16] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14",
    "R15",
];

const FLAG_NAMES: [(u64, &str); 14] = [
    (rflags::CF, "CF"),
    (rflags::PF, "PF"),
    (rflags::AF, "AF"),
    (rflags::ZF, "ZF"),
    (rflags::SF, "SF"),
    (rflags::TF, "TF"),
    (rflags::IF, "IF"),
    (rflags::DF, "DF"),
    (rflags::OF, "OF"),
    (rflags::NT, "NT"),
    (rflags::RF, "RF"),
    (rflags::VM, "VM"),
    (rflags::AC, "AC"),
    (rflags::ID, "ID"),
];

impl Dump {
    fn general(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in 0..4 {
            let cells: Vec<_> = (row * 4..row * 4 + 4)
                .map(|i| format!("{:>3}={:016x}", GPR_NAMES[i], self.state.gpr[i]))
                .collect();
            writeln!(f, "{}", cells.join(" "))?;
        }
        let flags: Vec<_> = FLAG_NAMES
            .iter()
            .filter(|(bit, _)| self.state.rflags & bit != 0)
            .map(|(_, name)| *name)
            .collect();
        let iopl = (self.state.rflags & rflags::IOPL) >> rflags::IOPL_SHIFT;
        writeln!(
            f,
            "RIP={:016x} RFLAGS={:08x} [{}] IOPL={iopl}",
            self.state.rip,
            self.state.rflags,
            flags.join(" ")
        )
    }

    fn segments(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.state;
        let names = ["ES", "CS", "SS", "DS", "FS", "GS", "LDT", "TR"];
        for (name, segment) in names.iter().zip(s.seg.iter().chain([&s.ldtr, &s.tr])) {
            let Segment { selector, attr, limit, base } = *segment;
            writeln!(
                f,
                "{name:>3}={:04x} base={base:016x} limit={limit:08x} attributes={attr:04x}",
                selector.0
            )?;
        }
        writeln!(f, "GDT base={:016x} limit={:04x}", s.gdtr.base, s.gdtr.limit)?;
        writeln!(f, "IDT base={:016x} limit={:04x}", s.idtr.base, s.idtr.limit)
    }

    fn control(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.state;
        writeln!(f, "CR0={:08x} CR2={:016x} CR3={:016x} CR4={:08x}", s.cr0, s.cr2, s.cr3, s.cr4)?;
        let long = if s.msrs.efer & efer::LMA != 0 { "long mode" } else { "no long mode" };
        writeln!(f, "EFER={:x} [{long}] DR6={:x} DR7={:x}", s.msrs.efer, s.dr6, s.dr7)
    }

    fn code(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.code.is_empty() {
            return writeln!(f, "code at RIP: not mapped");
        }
        let width = match self.state.mode() {
            Mode::Long => 64,
            Mode::Protected32 => 32,
            Mode::Real | Mode::V86 | Mode::Protected16 => 16,
        };
        writeln!(f, "code at RIP:")?;
        let mut decoder = Decoder::with_ip(width, &self.code, self.state.rip, DecoderOptions::NONE);
        let mut formatter = NasmFormatter::new();
        while decoder.can_decode() {
            let start = decoder.position();
            let instruction = decoder.decode();
            // The last one may be cut off by the end of what was read.
            if instruction.is_invalid() && start > 0 {
                break;
            }
            let raw = self.code.get(start..decoder.position()).unwrap_or_default();
            let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
            let mut text = String::new();
            formatter.format(&instruction, &mut text);
            writeln!(f, "  {:016x}  {hex:<30}  {text}", instruction.ip())?;
        }
        Ok(())
    }

    fn stack(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.stack.is_empty() {
            return writeln!(f, "stack at RSP: not mapped");
        }
        writeln!(f, "stack at RSP:")?;
        let word = word_bytes(self.state.mode());
        for (row, chunk) in self.stack.chunks(4 * word).enumerate() {
            let words: Vec<_> = chunk.chunks(word).map(hex_word).collect();
            writeln!(f, "  +{:02x}  {}", row * 4 * word, words.join(" "))?;
        }
        Ok(())
    }
}

/// A little-endian word as a number.
fn hex_word(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::RamRange;
    use x86::{Gfn, Gpa};

    fn dump(state: CpuState, memory: &GuestMemory) -> String {
        let features = PagingFeatures { phys_bits: 40, gib_pages: true, pse36: true, pat: true };
        Dump::take(3, state, memory, &features).to_string()
    }

    fn memory() -> GuestMemory {
        GuestMemory::new(&[RamRange { base: Gfn(0), frames: 16 }]).unwrap()
    }

    #[test]
    fn real_mode_with_code_at_the_end_of_memory() {
        let memory = memory();
        memory.write(Gpa(0xfffe), &[0xcd, 0x10]).unwrap();
        memory.write(Gpa(0x2100), &[0x34, 0x12, 0x78, 0x56]).unwrap();
        let mut state = CpuState::reset();
        state.seg[SegmentIndex::Cs as usize] = Segment::real(0xf00);
        state.seg[SegmentIndex::Ss as usize] = Segment::real(0x200);
        (state.rip, state.gpr[gpr::RSP]) = (0x0ffe, 0xffff_0100);
        let text = dump(state, &memory);
        assert!(text.contains("vCPU 3: real mode, privilege level 0"), "{text}");
        assert!(text.contains("cd10") && text.contains("int 10h"), "{text}");
        assert!(text.contains("+00  1234 5678 0000 0000"), "{text}");
    }

    #[test]
    fn broken_page_tables_leave_code_and_stack_out() {
        let mut state = CpuState::reset();
        state.cr0 = x86::control::cr0::PG | x86::control::cr0::PE;
        state.cr3 = 0xdead_b000;
        let text = dump(state, &memory());
        assert!(
            text.contains("code at RIP: not mapped") && text.contains("stack at RSP: not mapped"),
            "{text}"
        );
        assert!(text.contains("CR3=00000000deadb000"), "{text}");
    }

    #[test]
    fn a_cut_off_instruction_is_left_out() {
        let memory = memory();
        // MOV AX, imm16 and then the first byte of another at the end of what is read.
        memory.write(Gpa(0), &[0x90; CODE_BYTES - 1]).unwrap();
        memory.write(Gpa(CODE_BYTES as u64 - 1), &[0xb8]).unwrap();
        let mut state = CpuState::reset();
        state.seg[SegmentIndex::Cs as usize] = Segment::real(0);
        state.rip = 0;
        let text = dump(state, &memory);
        assert_eq!(text.matches("nop").count(), CODE_BYTES - 1);
        assert!(!text.contains("bad"), "{text}");
    }
}
