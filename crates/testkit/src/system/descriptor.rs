//! Descriptors and gates as cases write them: `code32 dpl 3 base 0x1000 limit 0xfff`, `int64 to KCODE64:handler ist 1`.

use x86::descriptor::{attr, system};

use super::expr::{Labels, evaluate};

/// What a descriptor's text means: one or two table entries.
pub(super) struct Entry {
    pub(super) low: u64,
    /// The upper half of those that take two entries in long mode.
    pub(super) high: Option<u64>,
}

/// A kind of descriptor: its name, type and S bits, size bits, and whether it takes two entries.
struct Kind {
    name: &'static str,
    attr: u16,
    gate: bool,
    double: bool,
}

const CODE: u16 = attr::S | attr::CODE | attr::READABLE | attr::ACCESSED;
const DATA: u16 = attr::S | attr::WRITABLE | attr::ACCESSED;

const fn segment(name: &'static str, attr: u16) -> Kind {
    Kind { name, attr, gate: false, double: false }
}

const fn gate(name: &'static str, attr: u16) -> Kind {
    Kind { name, attr, gate: true, double: false }
}

const KINDS: &[Kind] = &[
    segment("code16", CODE),
    segment("code32", CODE | attr::DB),
    segment("code64", CODE | attr::L),
    segment("data16", DATA),
    segment("data32", DATA | attr::DB),
    segment("ldt", system::LDT),
    segment("tss16", system::TSS16_AVAILABLE),
    segment("tss32", system::TSS_AVAILABLE),
    Kind { double: true, ..segment("ldt64", system::LDT) },
    Kind { double: true, ..segment("tss64", system::TSS_AVAILABLE) },
    gate("call16", system::CALL_GATE16),
    gate("call32", system::CALL_GATE),
    gate("task", system::TASK_GATE),
    gate("int16", system::INTERRUPT_GATE16),
    gate("int32", system::INTERRUPT_GATE),
    gate("trap16", system::TRAP_GATE16),
    gate("trap32", system::TRAP_GATE),
    Kind { double: true, ..gate("call64", system::CALL_GATE) },
    Kind { double: true, ..gate("int64", system::INTERRUPT_GATE) },
    Kind { double: true, ..gate("trap64", system::TRAP_GATE) },
];

/// Parses a descriptor; `None` if the text does not begin with a kind of one.
///
/// After the kind come, in any order: `dpl N`, `base N`, `limit N` (in bytes; 4 GiB if not given; units of pages where it
/// has to), `to SELECTOR:OFFSET`, `params N`, `ist N`, `absent`, `busy`, `conforming`, `readonly` (data) or `execonly`,
/// `down` (expand-down), `unaccessed`, `type N` (other type bits).
pub(super) fn parse(text: &str, labels: &Labels) -> Option<Result<Entry, String>> {
    let mut words = text.split_whitespace();
    let first = words.next()?;
    let kind = KINDS.iter().find(|kind| kind.name == first)?;
    Some(read(kind, words, labels))
}

#[derive(Default)]
struct Fields {
    base: u64,
    limit: Option<u64>,
    selector: u64,
    offset: u64,
    params: u64,
}

fn read<'a>(kind: &Kind, mut words: impl Iterator<Item = &'a str>, labels: &Labels) -> Result<Entry, String> {
    let mut fields = Fields::default();
    let mut bits = kind.attr | attr::P;
    while let Some(word) = words.next() {
        match word {
            "absent" => bits &= !attr::P,
            "busy" => bits |= system::BUSY_BIT,
            "conforming" | "down" => bits |= attr::CONFORMING,
            "readonly" | "execonly" => bits &= !attr::WRITABLE,
            "unaccessed" => bits &= !attr::ACCESSED,
            _ => {
                let argument = words.next().ok_or_else(|| format!("'{word}' needs a value"))?;
                let number = || evaluate(argument, labels);
                match word {
                    "dpl" => bits |= u16::try_from(number()? & 3).unwrap_or(0) << attr::DPL_SHIFT,
                    "type" => bits = bits & !0x1f | u16::try_from(number()? & 0x1f).unwrap_or(0),
                    "base" => fields.base = number()?,
                    "limit" => fields.limit = Some(number()?),
                    "params" | "ist" => fields.params = number()?,
                    "to" => {
                        let (selector, offset) = argument.split_once(':').unwrap_or((argument, "0"));
                        fields.selector = evaluate(selector, labels)?;
                        fields.offset = evaluate(offset, labels)?;
                    }
                    _ => return Err(format!("'{word}' is no property of a descriptor")),
                }
            }
        }
    }
    Ok(if kind.gate { encode_gate(kind, &fields, bits) } else { encode_segment(kind, &fields, bits) })
}

fn encode_gate(kind: &Kind, fields: &Fields, bits: u16) -> Entry {
    let offset = fields.offset;
    let low = offset & 0xffff
        | (fields.selector & 0xffff) << 16
        | (fields.params & 0xff) << 32
        | u64::from(bits & 0xff) << 40
        | (offset >> 16 & 0xffff) << 48;
    Entry { low, high: kind.double.then_some(offset >> 32) }
}

fn encode_segment(kind: &Kind, fields: &Fields, mut bits: u16) -> Entry {
    let mut limit = fields.limit.unwrap_or(0xffff_ffff);
    if limit > 0xf_ffff {
        limit >>= 12;
        bits |= attr::G;
    }
    let base = fields.base;
    let low = limit & 0xffff
        | (base & 0xff_ffff) << 16
        | u64::from(bits & 0xf0ff) << 40
        | (limit & 0xf_0000) << 32
        | (base >> 24 & 0xff) << 56;
    Entry { low, high: kind.double.then_some(base >> 32) }
}

#[cfg(test)]
mod tests {
    use x86::{Segment, Selector};

    use super::*;

    fn entry(text: &str) -> Entry {
        parse(text, &Labels::new()).unwrap().unwrap()
    }

    #[test]
    fn segments() {
        assert_eq!(entry("code64").low, 0x00af_9b00_0000_ffff);
        assert_eq!(entry("data32 dpl 3").low, 0x00cf_f300_0000_ffff);
        let s = Segment::from_descriptor(Selector(8), entry("data16 base 0x12345678 limit 0x89abc down").low);
        assert_eq!((s.base, s.limit, s.attr & attr::G), (0x1234_5678, 0x8_9abc, 0));
        assert!(s.is_data() && s.attr & attr::EXPAND_DOWN != 0);
    }

    #[test]
    fn gates() {
        let gate = entry("int64 to 0x10:0x123456789abc ist 2 dpl 3");
        assert_eq!((gate.low, gate.high), (0x5678_ee02_0010_9abc, Some(0x1234)));
        assert!(parse("KCODE32", &Labels::new()).is_none());
    }
}
