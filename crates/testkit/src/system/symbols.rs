//! The names that cases may use in expressions.

use x86::control::{cr0, cr4, dr6, dr7, efer};
use x86::rflags;

use super::layout as l;

/// The value of a constant: a place or selector of [`super::layout`], or a bit of a register, page-table entry or error
/// code, by its name in the manual.
///
/// Where one name stands for two bits, the rarer one is longer: error codes have `P W U RSVD FETCH`, page-table entries
/// `P RW US PWT PCD A D PS G NX`.
pub(super) fn constant(name: &str) -> Option<u64> {
    let table: &[(&str, u64)] = &[PLACES, SELECTORS, CONTROL, FLAGS, PAGES].concat();
    table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

const PLACES: &[(&str, u64)] = &[
    ("IVT", 0),
    ("GDT", l::GDT),
    ("LDT_TABLE", l::LDT),
    ("IDT64", l::IDT64),
    ("IDT32", l::IDT32),
    ("TSS64_AT", l::TSS64),
    ("TSS32_AT", l::TSS32),
    ("TASK32_AT", l::TASK32),
    ("TASK16_AT", l::TASK16),
    ("STACK", l::STACK),
    ("STACK0", l::STACK0),
    ("IST1", l::IST1),
    ("IST2", l::IST2),
    ("STACK1", l::STACK1),
    ("TASK_STACK", l::TASK_STACK),
    ("HANDLERS", l::HANDLERS),
    ("USTACK", l::USTACK),
    ("UCODE", l::UCODE),
    ("TASK_CODE", l::TASK_CODE),
    ("SYSCALL_ENTRY", l::SYSCALL_ENTRY),
    ("SYSENTER_ENTRY", l::SYSENTER_ENTRY),
    ("CODE", l::CODE),
    ("DATA", l::DATA),
    ("UDATA", l::UDATA),
    ("TABLES", l::TABLES),
    ("LARGE", l::LARGE),
    ("ALIAS", l::ALIAS),
    ("GIB", l::GIB),
    ("HIGH", l::HIGH),
];

const SELECTORS: &[(&str, u64)] = &[
    ("KCODE32", l::sel::KCODE32),
    ("KCODE64", l::sel::KCODE64),
    ("KDATA", l::sel::KDATA),
    ("UCODE32", l::sel::UCODE32),
    ("UDATA32", l::sel::UDATA32),
    ("UCODE64", l::sel::UCODE64),
    ("TSS", l::sel::TSS),
    ("LDT", l::sel::LDT),
    ("TASK32", l::sel::TASK32),
    ("TASK16", l::sel::TASK16),
    ("KCODE16", l::sel::KCODE16),
    ("KDATA16", l::sel::KDATA16),
    ("CONFORM32", l::sel::CONFORM32),
    ("CONFORM64", l::sel::CONFORM64),
    ("CODE1", l::sel::CODE1),
    ("DATA1", l::sel::DATA1),
    ("FREE", l::sel::FREE),
    ("GDT_END", l::GDT_LIMIT + 1),
    ("EXT", 1),
    ("IDT", 2),
    ("TI", 4),
];

const CONTROL: &[(&str, u64)] = &[
    ("PE", cr0::PE),
    ("MP", cr0::MP),
    ("EM", cr0::EM),
    ("TS", cr0::TS),
    ("ET", cr0::ET),
    ("NE", cr0::NE),
    ("WP", cr0::WP),
    ("AM", cr0::AM),
    ("NW", cr0::NW),
    ("CD", cr0::CD),
    ("PG", cr0::PG),
    ("VME", cr4::VME),
    ("PVI", cr4::PVI),
    ("TSD", cr4::TSD),
    ("DE", cr4::DE),
    ("PSE", cr4::PSE),
    ("PAE", cr4::PAE),
    ("PGE", cr4::PGE),
    ("PCE", cr4::PCE),
    ("OSFXSR", cr4::OSFXSR),
    ("OSXMMEXCPT", cr4::OSXMMEXCPT),
    ("UMIP", cr4::UMIP),
    ("FSGSBASE", cr4::FSGSBASE),
    ("PCIDE", cr4::PCIDE),
    ("OSXSAVE", cr4::OSXSAVE),
    ("SMEP", cr4::SMEP),
    ("SMAP", cr4::SMAP),
    ("NOFLUSH", x86::control::cr3::NOFLUSH),
    ("SCE", efer::SCE),
    ("LME", efer::LME),
    ("LMA", efer::LMA),
    ("NXE", efer::NXE),
    ("BD", dr6::BD),
    ("BS", dr6::BS),
    ("BT", dr6::BT),
    ("GD", dr7::GD),
];

const FLAGS: &[(&str, u64)] = &[
    ("CF", rflags::CF),
    ("PF", rflags::PF),
    ("AF", rflags::AF),
    ("ZF", rflags::ZF),
    ("SF", rflags::SF),
    ("TF", rflags::TF),
    ("IF", rflags::IF),
    ("DF", rflags::DF),
    ("OF", rflags::OF),
    ("IOPL", rflags::IOPL),
    ("NT", rflags::NT),
    ("RF", rflags::RF),
    ("VM", rflags::VM),
    ("AC", rflags::AC),
    ("VIF", rflags::VIF),
    ("VIP", rflags::VIP),
    ("ID", rflags::ID),
];

const PAGES: &[(&str, u64)] = &[
    ("P", 1),
    ("RW", 2),
    ("W", 2),
    ("US", 4),
    ("U", 4),
    ("PWT", 8),
    ("RSVD", 8),
    ("PCD", 16),
    ("FETCH", 16),
    ("A", 0x20),
    ("D", 0x40),
    ("PS", 0x80),
    ("G", 0x100),
    ("PAT", 0x1000),
    ("NX", 1 << 63),
];
