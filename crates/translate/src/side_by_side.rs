//! A block for people to read: guest code beside its translation.
//!
//! Each line is one host instruction. Where a guest instruction's code begins, it stands to the left; so does what an
//! exit is for, and where the two entries are. Code that is seldom run (misses, exits) follows the block's last
//! instruction.

use std::collections::BTreeMap;
use std::fmt::Write;

use iced_x86::{
    Decoder, DecoderOptions, Formatter, Instruction, NasmFormatter, OpKind, Register, SymbolResolver,
    SymbolResult,
};

use crate::block::{Block, Exit, Site, Source};
use crate::context::at;
use crate::translate::Translator;

/// The block at the beginning of `source` and its translation. `None` if there is none.
pub fn side_by_side(source: &Source<'_>) -> Option<String> {
    let block = Translator::default().translate(source)?;
    let page = source.linear.wrapping_sub(source.offset.into());
    let mut remarks = remarks(&block, source, page);
    let mut text = format!(
        "{} guest instructions, {} bytes; {} bytes of host code\n",
        block.instructions,
        block.guest_bytes,
        block.code.len()
    );
    let mut formatter = NasmFormatter::with_options(Some(Box::new(Names)), None);
    readable(&mut formatter);
    for insn in Decoder::with_ip(64, &block.code, 0, DecoderOptions::NONE) {
        let mut left = remarks.split_off(&insn.next_ip());
        std::mem::swap(&mut left, &mut remarks);
        let mut left: Vec<String> = left.into_values().flatten().collect();
        let last = left.pop().unwrap_or_default();
        for remark in left {
            let _ = writeln!(text, "{remark}");
        }
        let host = print(&mut formatter, &insn);
        let _ = writeln!(text, "{last:<LEFT$} {:04x}  {host}", insn.ip());
    }
    for remark in remarks.into_values().flatten() {
        let _ = writeln!(text, "{remark}");
    }
    Some(text)
}

/// The width of the guest's column.
const LEFT: usize = 56;

/// What stands to the left, by the host offset that it is about.
fn remarks(block: &Block, source: &Source<'_>, page: u64) -> BTreeMap<u64, Vec<String>> {
    let mut remarks: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    let mut add = |offset: u32, text: String| remarks.entry(offset.into()).or_default().push(text);
    add(block.entry_memory, "entry, flags in memory:".to_owned());
    add(block.entry_host, "entry, flags in the host's:".to_owned());
    let mut formatter = NasmFormatter::new();
    readable(&mut formatter);
    for &(host, guest) in &block.map {
        let code = source.code.get(usize::from(guest.wrapping_sub(source.offset))..).unwrap_or_default();
        let ip = page.wrapping_add(guest.into());
        let insn = source.mode.decoder(code, ip).decode();
        add(host, format!("{ip:016x}  {}", print(&mut formatter, &insn)));
    }
    for site in &block.sites {
        add(site.at, format!("  exit: {}", purpose(site, page)));
    }
    remarks
}

fn purpose(site: &Site, page: u64) -> String {
    let place = format!("{:x}", page.wrapping_add(site.guest.into()));
    match site.exit {
        Exit::Miss { write, resume } => {
            format!("{} not in the TLB, on at {resume:04x}", if write { "write" } else { "read" })
        }
        Exit::Lend { resume } => format!("the x87 state is to be lent, on at {resume:04x}"),
        Exit::Interpret => format!("interpret {place}"),
        Exit::Link { .. } => format!("jump to {place}, to be linked"),
        Exit::Bridge { .. } => format!("another frame than before, at {place}"),
        Exit::Lookup => "jump to RAX".to_owned(),
        Exit::Transfer { .. } => "jump to RAX, or interpret".to_owned(),
        Exit::Attention => format!("attention, at {place}"),
        Exit::Plain => format!("no one page for all, at {place}"),
        Exit::Stale => "the block is stale".to_owned(),
        Exit::Changed => "the guest's code has changed".to_owned(),
        Exit::Onward => format!("on at {place}, of which this is no translation any more"),
    }
}

fn readable(formatter: &mut NasmFormatter) {
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    options.set_space_after_operand_separator(true);
    options.set_first_operand_char_index(8);
}

fn print(formatter: &mut NasmFormatter, insn: &Instruction) -> String {
    let mut text = String::new();
    formatter.format(insn, &mut text);
    text
}

/// Names what lies behind GS.
struct Names;

/// What lies there beside the context's fields.
const PARTS: [(i32, &str); 10] = [
    (at::GO, "go"),
    (at::SUPERVISOR_ANCHORS, "supervisor_anchors"),
    (at::SUPERVISOR_TLB, "supervisor_tlb"),
    (at::SUPERVISOR_JUMPS, "supervisor_jumps"),
    (at::AC_JUMPS, "ac_jumps"),
    (at::USER_ANCHORS, "user_anchors"),
    (at::AC_ANCHORS, "ac_anchors"),
    (at::USER_TLB, "user_tlb"),
    (at::USER_JUMPS, "user_jumps"),
    (at::AC_TLB, "ac_tlb"),
];

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        insn: &Instruction,
        _operand: u32,
        instruction_operand: Option<u32>,
        address: u64,
        _address_size: u32,
    ) -> Option<SymbolResult<'_>> {
        if insn.op_kind(instruction_operand?) != OpKind::Memory || insn.memory_segment() != Register::GS {
            return None;
        }
        let displacement = i32::try_from(address).ok()?;
        let known = at::FIELDS.iter().chain(&PARTS).filter(|&&(start, _)| start <= displacement);
        let &(start, name) = known.max_by_key(|&&(start, _)| start)?;
        Some(SymbolResult::with_str(u64::try_from(start).ok()?, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{HostFeatures, Mode};

    #[test]
    fn both_sides_and_the_exits_are_there() {
        // mov rax, [rdi]; add rbx, rax; cpuid
        let code = [0x48, 0x8b, 0x07, 0x48, 0x01, 0xc3, 0x0f, 0xa2];
        let source = Source {
            code: &code,
            offset: 0,
            mode: Mode::new().with(Mode::USER, true),
            offered: &|_| true,
            host: HostFeatures::default(),
            linear: 0x40_1000,
            seed: 0,
            check: None,
            lodgers: true,
        };
        let text = side_by_side(&source).unwrap();
        assert!(text.starts_with("3 guest instructions, 8 bytes; "), "{text}");
        for part in [
            "0000000000401000  mov     rax, [rdi]",
            "0000000000401003  add     rbx, rax",
            "entry, flags in memory:",
            "exit: read not in the TLB",
            "exit: interpret 401006",
        ] {
            assert!(text.contains(part), "no '{part}' in:\n{text}");
        }
        // Every byte of host code is shown once, in order.
        let offsets: Vec<u32> = text
            .lines()
            .filter_map(|line| u32::from_str_radix(line.get(LEFT + 1..LEFT + 5)?, 16).ok())
            .collect();
        assert!(offsets.len() > 10 && offsets.is_sorted() && offsets[0] == 0, "{text}");
        assert_eq!(side_by_side(&Source { code: &[0x48], ..source }), None);
    }
}
