//! What cases set and check: registers, descriptors, page-table entries, memory.

use memory::GuestMemory;
use x86::control::cr4;
use x86::paging::{PagingMode, pte};
use x86::{CpuState, Gpa, Mode, Segment, SegmentIndex, Selector};

use super::descriptor;
use super::expr::{Labels, evaluate};
use super::outcome::Frame;

/// A guest that is not running.
pub(super) struct Guest<'a> {
    pub(super) state: &'a mut CpuState,
    pub(super) memory: &'a GuestMemory,
    pub(super) labels: &'a Labels,
    /// What an event pushed, once there was one.
    pub(super) frame: Option<Frame>,
}

const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
const GPR32: [&str; 8] = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"];
const GPR16: [&str; 8] = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"];
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

impl Guest<'_> {
    /// Carries out an assignment.
    pub(super) fn assign(&mut self, target: &str, operator: &str, value: &str) -> Result<(), String> {
        if let Some(entry) = descriptor::parse(value, self.labels) {
            let entry = entry?;
            let Place::Memory { at, .. } = self.place(target)? else {
                return Err("a descriptor goes into a table".into());
            };
            self.write(at, 8, entry.low)?;
            return entry.high.map_or(Ok(()), |high| self.write(at + 8, 8, high));
        }
        let operand = evaluate(value, self.labels)?;
        let old = if operator == "=" { 0 } else { self.get(target)? };
        let new = match operator {
            "|=" => old | operand,
            "&=" => old & operand,
            "^=" => old ^ operand,
            _ => operand,
        };
        match self.place(target)? {
            Place::Memory { at, bytes } => self.write(at, bytes, new),
            Place::Selector(index) => {
                let segment = self.load(index, new)?;
                *self.segment(index) = segment;
                Ok(())
            }
            Place::Register { slot, mask } => {
                *slot = *slot & !mask | new & mask;
                Ok(())
            }
            Place::Small(set, _) => {
                set(self.state, new);
                Ok(())
            }
            Place::Seen(_) => Err(format!("'{target}' cannot be set")),
        }
    }

    /// The value of a target.
    pub(super) fn get(&mut self, target: &str) -> Result<u64, String> {
        match self.place(target)? {
            Place::Memory { at, bytes } => self.read(at, bytes),
            Place::Selector(index) => Ok(u64::from(self.segment(index).selector.0)),
            Place::Register { slot, mask } => Ok(*slot & mask),
            Place::Small(_, get) => Ok(get(self.state)),
            Place::Seen(value) => Ok(value),
        }
    }

    fn read(&self, at: u64, bytes: u64) -> Result<u64, String> {
        let mut buffer = [0; 8];
        let part = &mut buffer[..bytes as usize];
        self.memory.read(Gpa(at), part).map_err(|e| e.to_string())?;
        Ok(u64::from_le_bytes(buffer))
    }

    fn write(&self, at: u64, bytes: u64, value: u64) -> Result<(), String> {
        self.memory.write(Gpa(at), &value.to_le_bytes()[..bytes as usize]).map_err(|e| e.to_string())
    }

    fn segment(&mut self, index: usize) -> &mut Segment {
        match index {
            LDTR => &mut self.state.ldtr,
            TR => &mut self.state.tr,
            _ => &mut self.state.seg[index],
        }
    }

    /// What a segment register holds that was loaded with a selector, all checks passed.
    fn load(&self, index: usize, selector: u64) -> Result<Segment, String> {
        let selector = Selector(selector as u16);
        let mode = self.state.mode();
        if matches!(mode, Mode::Real | Mode::V86) && index < LDTR {
            let dpl = self.state.seg[index].attr & 3 << x86::descriptor::attr::DPL_SHIFT;
            let segment = Segment::real(selector.0);
            return Ok(Segment { attr: segment.attr | dpl, ..segment });
        }
        if selector.is_null() {
            let cpl = u16::from(self.state.cpl()) << x86::descriptor::attr::DPL_SHIFT;
            let attr = if index == SegmentIndex::Ss as usize { cpl } else { 0 };
            return Ok(Segment { attr, ..Segment::null(selector) });
        }
        let table = if selector.is_local() { self.state.ldtr.base } else { self.state.gdtr.base };
        let raw = self.read(table + selector.offset(), 8)?;
        let mut segment = Segment::from_descriptor(selector, raw);
        if index >= LDTR && self.state.long_mode_active() {
            segment.base |= self.read(table + selector.offset() + 8, 8)? << 32;
        }
        Ok(segment)
    }

    fn place(&mut self, target: &str) -> Result<Place<'_>, String> {
        if let Some((kind, argument)) = target.strip_suffix(']').and_then(|t| t.split_once('[')) {
            let argument = evaluate(argument, self.labels)?;
            return self.memory_place(kind, argument);
        }
        if let Some(field) = target.strip_prefix("frame.") {
            let frame = self.frame.as_ref().ok_or("nothing was pushed")?;
            return frame.field(field).map(Place::Seen).ok_or_else(|| format!("the frame has no '{field}'"));
        }
        if let Some((segment, field)) = target.split_once('.') {
            return self.part(segment, field);
        }
        if let Some(index) = segment_index(target) {
            return Ok(Place::Selector(index));
        }
        if target == "cpl" {
            return Ok(Place::Seen(self.state.cpl().into()));
        }
        if let Some(small) = small_register(target) {
            return Ok(small);
        }
        let unknown = || format!("'{target}' is neither register nor memory");
        self.register(target).ok_or_else(unknown)
    }

    fn part(&mut self, name: &str, field: &str) -> Result<Place<'_>, String> {
        let unknown = || format!("'{name}.{field}' is neither register nor memory");
        if let Some(index) = segment_index(name) {
            if field == "base" {
                return Ok(Place::whole(&mut self.segment(index).base));
            }
            let segment = *self.segment(index);
            return match field {
                "limit" => Ok(Place::Seen(segment.limit.into())),
                "attr" => Ok(Place::Seen(segment.attr.into())),
                _ => Err(unknown()),
            };
        }
        Ok(match (name, field) {
            ("gdtr", "base") => Place::whole(&mut self.state.gdtr.base),
            ("idtr", "base") => Place::whole(&mut self.state.idtr.base),
            ("gdtr", "limit") => Place::Small(|s, v| s.gdtr.limit = v as u16, |s| s.gdtr.limit.into()),
            ("idtr", "limit") => Place::Small(|s, v| s.idtr.limit = v as u16, |s| s.idtr.limit.into()),
            ("blocking", "nmi") => {
                Place::Small(|s, v| s.pending.nmi_blocked = v != 0, |s| s.pending.nmi_blocked.into())
            }
            ("blocking", "mov_ss") => {
                Place::Small(|s, v| s.pending.mov_ss_shadow = v != 0, |s| s.pending.mov_ss_shadow.into())
            }
            _ => return Err(unknown()),
        })
    }

    fn register(&mut self, name: &str) -> Option<Place<'_>> {
        let s = &mut *self.state;
        for (names, mask) in [(&GPR[..], u64::MAX), (&GPR32, 0xffff_ffff), (&GPR16, 0xffff)] {
            if let Some(index) = names.iter().position(|n| *n == name) {
                return Some(Place::Register { slot: &mut s.gpr[index], mask });
            }
        }
        Some(Place::whole(match name {
            "rip" => &mut s.rip,
            "flags" => &mut s.rflags,
            "cr0" => &mut s.cr0,
            "cr2" => &mut s.cr2,
            "cr3" => &mut s.cr3,
            "cr4" => &mut s.cr4,
            "xcr0" => &mut s.xcr0,
            "dr0" => &mut s.dr[0],
            "dr1" => &mut s.dr[1],
            "dr2" => &mut s.dr[2],
            "dr3" => &mut s.dr[3],
            "dr6" => &mut s.dr6,
            "dr7" => &mut s.dr7,
            "efer" => &mut s.msrs.efer,
            "star" => &mut s.msrs.star,
            "lstar" => &mut s.msrs.lstar,
            "sfmask" => &mut s.msrs.sfmask,
            "kernel_gs_base" => &mut s.msrs.kernel_gs_base,
            "sysenter_cs" => &mut s.msrs.sysenter_cs,
            "sysenter_esp" => &mut s.msrs.sysenter_esp,
            "sysenter_eip" => &mut s.msrs.sysenter_eip,
            "pat" => &mut s.msrs.pat,
            _ => return None,
        }))
    }

    fn memory_place(&self, kind: &str, argument: u64) -> Result<Place<'static>, String> {
        let long = self.state.long_mode_active();
        let (at, bytes) = match kind {
            "byte" => (argument, 1),
            "word" => (argument, 2),
            "dword" => (argument, 4),
            "qword" => (argument, 8),
            "gdt" => (self.state.gdtr.base + (argument & !7), 8),
            "ldt" => (super::layout::LDT + (argument & !7), 8),
            "idt" => (self.state.idtr.base + argument * if long { 16 } else { 8 }, 8),
            "pte" => self.entry(argument, 1)?,
            "pde" => self.entry(argument, 2)?,
            "pdpte" => self.entry(argument, 3)?,
            "pml4e" => self.entry(argument, 4)?,
            _ => return Err(format!("'{kind}[…]' is not understood")),
        };
        Ok(Place::Memory { at, bytes })
    }

    /// Where the entry of a level is that translates an address, in the paging mode of the state.
    fn entry(&self, va: u64, level: u32) -> Result<(u64, u64), String> {
        let s = &*self.state;
        let (levels, index_bits, bytes) = match PagingMode::of(s.cr0, s.cr4, s.msrs.efer) {
            PagingMode::FourLevel => (4, 9, 8),
            PagingMode::Pae => (3, 9, 8),
            PagingMode::Legacy32 => (2, 10, 4),
            PagingMode::Off if s.cr4 & cr4::PAE != 0 => (3, 9, 8),
            PagingMode::Off => (2, 10, 4),
        };
        let mut table = s.cr3 & pte::ADDRESS;
        for at_level in (1..=levels).rev() {
            let shift = 12 + index_bits * (at_level - 1);
            let at = table + (va >> shift & ((1 << index_bits) - 1)) * bytes;
            if at_level == level {
                return Ok((at, bytes));
            }
            table = self.read(at, bytes)? & pte::ADDRESS;
        }
        Err("there is no such level".into())
    }
}

const LDTR: usize = 6;
const TR: usize = 7;

fn segment_index(name: &str) -> Option<usize> {
    match name {
        "ldtr" => Some(LDTR),
        "tr" => Some(TR),
        _ => SEGMENTS.iter().position(|known| *known == name),
    }
}

/// Registers that are not 64 bits wide.
fn small_register(name: &str) -> Option<Place<'static>> {
    Some(match name {
        "fcw" => Place::Small(|s, v| s.fpu.fcw = v as u16, |s| s.fpu.fcw.into()),
        "fsw" => Place::Small(|s, v| s.fpu.fsw = v as u16, |s| s.fpu.fsw.into()),
        "ftw" => Place::Small(|s, v| s.fpu.ftw = v as u8, |s| s.fpu.ftw.into()),
        "mxcsr" => Place::Small(|s, v| s.vector.mxcsr = v as u32, |s| s.vector.mxcsr.into()),
        _ => return None,
    })
}

/// A place to read or write.
enum Place<'a> {
    Memory {
        at: u64,
        bytes: u64,
    },
    Register {
        slot: &'a mut u64,
        mask: u64,
    },
    Selector(usize),
    /// How to write and read it.
    Small(fn(&mut CpuState, u64), fn(&CpuState) -> u64),
    /// A value that can only be looked at.
    Seen(u64),
}

impl<'a> Place<'a> {
    fn whole(slot: &'a mut u64) -> Self {
        Self::Register { slot, mask: u64::MAX }
    }
}
