//! The walk against the manual: a table of cases per format, marks, hostile tables.

use memory::{FrameKind, RamRange};
use proptest::prelude::*;
use x86::Gfn;
use x86::control::{cr0, cr4, efer};

use super::*;
use crate::PagingFeatures;

const P: u64 = pte::P;
const RW: u64 = pte::RW;
const US: u64 = pte::US;
const PS: u64 = pte::PS;
const NX: u64 = pte::NX;
const PRW: u64 = P | RW;
const ALL: u64 = P | RW | US;

/// Where the tables of the levels 4 to 1 lie, and the page.
const TABLES: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];
const PAGE: u64 = 0x5000;
/// Indices 1, 2, 3 and 4 in the four levels.
const VA: u64 = 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12 | 0x678;

const FEATURES: PagingFeatures = PagingFeatures { phys_bits: 46, gib_pages: true, pse36: true, pat: true };

fn memory() -> GuestMemory {
    GuestMemory::new(&[RamRange::from_bytes(Gpa(0), 0x10_0000)]).unwrap()
}

/// One translation: registers, entries, access, what the manual says.
#[derive(Clone)]
struct Case {
    mode: PagingMode,
    cr0: u64,
    cr4: u64,
    efer: u64,
    features: PagingFeatures,
    /// From level 4 down; unused levels are left out of the tables. Addresses are filled in where there are none.
    entries: [u64; 4],
    va: u64,
    access: Access,
    privilege: Privilege,
}

impl Case {
    fn four_level(entries: [u64; 4]) -> Self {
        Self {
            mode: PagingMode::FourLevel,
            cr0: cr0::WP,
            cr4: 0,
            efer: efer::NXE,
            features: FEATURES,
            entries,
            va: VA,
            access: Access::Read,
            privilege: Privilege::Supervisor,
        }
    }

    fn pae(entries: [u64; 2]) -> Self {
        let [pde, pte] = entries;
        Self { mode: PagingMode::Pae, va: VA & 0xffff_ffff, ..Self::four_level([0, P, pde, pte]) }
    }

    fn legacy(entries: [u64; 2]) -> Self {
        let [pde, pte] = entries;
        let va = 3 << 22 | 4 << 12 | 0x678;
        Self { mode: PagingMode::Legacy32, va, efer: 0, cr4: cr4::PSE, ..Self::four_level([0, 0, pde, pte]) }
    }

    fn by(self, access: Access, privilege: Privilege) -> Self {
        Self { access, privilege, ..self }
    }

    fn user(self, access: Access) -> Self {
        self.by(access, Privilege::User)
    }

    fn write(self) -> Self {
        let privilege = self.privilege;
        self.by(Access::Write, privilege)
    }

    fn fetch(self) -> Self {
        let privilege = self.privilege;
        self.by(Access::Execute, privilege)
    }

    fn cr4(self, bits: u64) -> Self {
        Self { cr4: self.cr4 | bits, ..self }
    }

    fn no_wp(self) -> Self {
        Self { cr0: 0, ..self }
    }

    fn no_nxe(self) -> Self {
        Self { efer: 0, ..self }
    }

    fn features(self, change: impl Fn(&mut PagingFeatures)) -> Self {
        let mut features = self.features;
        change(&mut features);
        Self { features, ..self }
    }

    fn context(&self) -> PagingContext {
        let (cr4, efer) = match self.mode {
            PagingMode::Off => (0, 0),
            PagingMode::Legacy32 => (0, 0),
            PagingMode::Pae => (cr4::PAE, 0),
            PagingMode::FourLevel => (cr4::PAE, efer::LME | efer::LMA),
        };
        let root = if self.mode == PagingMode::FourLevel { TABLES[0] } else { TABLES[2] };
        let pdpte = [0, 0, self.entries[1] | TABLES[2], 0];
        let cr0 = self.cr0 | cr0::PE | if self.mode == PagingMode::Off { 0 } else { cr0::PG };
        PagingContext::new(cr0, root, self.cr4 | cr4, self.efer | efer, pdpte, &self.features)
    }

    /// Entry `i` as it lies in memory, and where.
    fn entry(&self, i: usize) -> (Gpa, u64) {
        let legacy = self.mode == PagingMode::Legacy32;
        let next = TABLES.get(i + 1).copied().unwrap_or(PAGE);
        let raw = self.entries[i];
        // A table's or page's own address, unless the case gives one or maps a large page.
        let address = if raw & pte::ADDRESS == 0 && raw & PS == 0 || i == 3 { next } else { 0 };
        let (index, bytes) = if legacy { ([0, 0, 3, 4][i], 4) } else { (i as u64 + 1, 8) };
        (Gpa(TABLES[i] + index * bytes), raw | address)
    }

    fn store(&self, memory: &GuestMemory) {
        for i in 0..4 {
            let (at, entry) = self.entry(i);
            if self.mode == PagingMode::Legacy32 {
                memory.write_word(at, low32(entry)).unwrap();
            } else {
                memory.write_word(at, entry).unwrap();
            }
        }
    }

    fn run(&self) -> Result<Translation, u32> {
        let memory = memory();
        self.store(&memory);
        walk(&memory, &self.context(), Gva(self.va), self.access, self.privilege).map_err(|f| {
            assert_eq!(f.address, Gva(self.va));
            f.error
        })
    }
}

#[track_caller]
fn leads_to(section: &str, case: &Case, gpa: u64, size: PageSize) {
    let t = case.run().unwrap_or_else(|e| panic!("SDM vol. 3, {section}: fault {e:#x}"));
    assert_eq!((t.gpa, t.page_size), (Gpa(gpa), size), "SDM vol. 3, {section}");
}

#[track_caller]
fn faults(section: &str, case: &Case, error: u32) {
    assert_eq!(case.run().map(|t| t.gpa), Err(error), "SDM vol. 3, {section}");
}

/// Error codes by their bits: Present, Write, User, Reserved, Fetch.
mod code {
    pub(super) const P: u32 = 1;
    pub(super) const W: u32 = 2;
    pub(super) const U: u32 = 4;
    pub(super) const R: u32 = 8;
    pub(super) const F: u32 = 16;
}

#[test]
fn four_level_sizes() {
    let c = Case::four_level;
    leads_to("4.5.4, 4-KByte page", &c([PRW; 4]), PAGE | 0x678, PageSize::Kib4);
    let c2m = c([PRW, PRW, PRW | PS | 0x4000_0000, 0]);
    leads_to("4.5.4, 2-MByte page", &c2m, 0x4000_0000 | VA & 0x1f_ffff, PageSize::Mib2);
    let c1g = c([PRW, PRW | PS | 0x1_4000_0000, 0, 0]);
    leads_to("4.5.4, 1-GByte page", &c1g, 0x1_4000_0000 | VA & 0x3fff_ffff, PageSize::Gib1);
    // The PAT bit of a large page is not part of the address.
    let pat = c([PRW, PRW, PRW | PS | pte::PAT_LARGE | 0x4000_0000, 0]);
    leads_to("table 4-17", &pat, 0x4000_0000 | VA & 0x1f_ffff, PageSize::Mib2);
    leads_to(
        "table 4-19, bit 7 of a PTE is PAT",
        &c([PRW, PRW, PRW, PRW | PS]),
        PAGE | 0x678,
        PageSize::Kib4,
    );
    leads_to("4.5.4, bits 62:52 are ignored", &c([PRW | 0x7ff << 52; 4]), PAGE | 0x678, PageSize::Kib4);
}

#[test]
fn pae_and_legacy_sizes() {
    leads_to("4.4.2", &Case::pae([PRW, PRW]), PAGE | 0x678, PageSize::Kib4);
    let large = Case::pae([PRW | PS | 0x1_2340_0000, 0]);
    leads_to("4.4.2", &large, 0x1_2340_0000 | VA & 0x1f_ffff, PageSize::Mib2);
    let va = Case::legacy([0, 0]).va;
    leads_to("4.3", &Case::legacy([PRW, PRW]), PAGE | 0x678, PageSize::Kib4);
    let large = Case::legacy([PRW | PS | 0x0080_0000, 0]);
    leads_to("4.3, 4-MByte page", &large, 0x0080_0000 | va & 0x3f_ffff, PageSize::Mib4);
    // PSE-36: bits 20:13 are address bits 39:32.
    let high = Case::legacy([PRW | PS | 0x0080_0000 | 0xab << 13, 0]);
    leads_to("table 4-4", &high, 0xab_0080_0000 | va & 0x3f_ffff, PageSize::Mib4);
    // Without CR4.PSE bit 7 of a PDE is ignored.
    let ignored = Case { cr4: 0, ..Case::legacy([PRW | PS | TABLES[3], PRW]) };
    leads_to("4.3, CR4.PSE = 0", &ignored, PAGE | 0x678, PageSize::Kib4);
    let off = Case { mode: PagingMode::Off, ..Case::legacy([0, 0]) };
    leads_to("4.1.1, CR0.PG = 0", &off.user(Access::Write), va, PageSize::Everything);
}

#[test]
fn not_present_at_every_level() {
    for level in 0..4 {
        let mut entries = [ALL; 4];
        // All other bits are ignored in an entry that is not present, reserved ones too.
        entries[level] = !P;
        let c = Case::four_level(entries);
        faults("4.7, P = 0", &c, 0);
        faults("4.7, W/R", &c.clone().write(), code::W);
        faults("4.7, U/S", &c.clone().user(Access::Read), code::U);
        faults("4.7, I/D with NXE", &c.clone().fetch(), code::F);
        faults("4.7, I/D without NXE or SMEP", &c.no_nxe().fetch(), 0);
    }
    faults("4.4.2, PDPTE", &Case { entries: [0; 4], ..Case::pae([PRW, PRW]) }, 0);
    faults("4.3, PDE", &Case::legacy([0, PRW]).write(), code::W);
    faults("4.3, PTE", &Case::legacy([PRW, 0]).user(Access::Write), code::W | code::U);
}

#[test]
fn reserved_bits_four_level() {
    let reserved = |why, entries| {
        let c = Case::four_level(entries);
        faults(why, &c, code::P | code::R);
        faults(why, &c.clone().user(Access::Write), code::P | code::R | code::W | code::U);
        faults(why, &c.fetch(), code::P | code::R | code::F);
    };
    for bit in [46, 51] {
        for level in 0..4 {
            let mut entries = [ALL; 4];
            entries[level] |= 1 << bit;
            let at = TABLES.get(level + 1).copied().unwrap_or(PAGE);
            entries[level] |= at;
            reserved("table 4-15 to 4-20, bits 51:M", entries);
        }
    }
    reserved("table 4-15, PS in a PML4E", [ALL | PS | TABLES[1], ALL, ALL, ALL]);
    for bit in 13..30 {
        reserved("table 4-16, bits 29:13", [ALL, ALL | PS | 1 << bit, 0, 0]);
    }
    for bit in 13..21 {
        reserved("table 4-18, bits 20:13", [ALL, ALL, ALL | PS | 1 << bit, 0]);
    }
    let gib = Case::four_level([ALL, ALL | PS | 0x4000_0000, 0, 0]);
    faults("4.1.4, no 1-GByte pages", &gib.features(|f| f.gib_pages = false), code::P | code::R);
    for level in 0..4 {
        let mut entries = [ALL; 4];
        entries[level] |= NX;
        let c = Case::four_level(entries).no_nxe();
        faults("4.5.4, XD is reserved if NXE = 0", &c, code::P | code::R);
        leads_to("4.5.4", &Case::four_level(entries), PAGE | 0x678, PageSize::Kib4);
    }
    // The first entry that is wrong decides.
    faults("4.7, order", &Case::four_level([ALL, 0, ALL | 1 << 46, ALL]), 0);
    let no_pat = Case::four_level([ALL, ALL, ALL, ALL | PS]).features(|f| f.pat = false);
    faults("table 4-20, no PAT", &no_pat, code::P | code::R);
}

#[test]
fn reserved_bits_pae_and_legacy() {
    for bit in [46, 51, 52, 58, 62] {
        faults("table 4-10, bits 62:M", &Case::pae([ALL | 1 << bit | TABLES[3], ALL]), code::P | code::R);
        faults("table 4-11, bits 62:M", &Case::pae([ALL, ALL | 1 << bit]), code::P | code::R);
    }
    faults("table 4-9, bits 20:13", &Case::pae([ALL | PS | 1 << 13, 0]), code::P | code::R);
    faults("table 4-10, XD without NXE", &Case::pae([ALL | NX, ALL]).no_nxe(), code::P | code::R);
    faults("table 4-4, bit 21 with 40 bits", &Case::legacy([ALL | PS | 1 << 21, 0]), code::P | code::R);
    let narrow = Case::legacy([ALL | PS | 1 << 17, 0]).features(|f| f.phys_bits = 36);
    faults("table 4-4, bits 21:M-19", &narrow, code::P | code::R);
    let no_pse36 = Case::legacy([ALL | PS | 1 << 13, 0]).features(|f| f.pse36 = false);
    faults("table 4-4, no PSE-36", &no_pse36.user(Access::Write), code::P | code::R | code::W | code::U);
}

#[test]
fn rights_are_the_conjunction_of_all_levels() {
    for level in 0..4 {
        let without = |bit: u64| {
            let mut entries = [ALL; 4];
            entries[level] &= !bit;
            Case::four_level(entries)
        };
        faults("4.6.1, user read", &without(US).user(Access::Read), code::P | code::U);
        faults("4.6.1, user write", &without(RW).user(Access::Write), code::P | code::U | code::W);
        faults("4.6.1, WP = 1", &without(RW).write(), code::P | code::W);
        leads_to("4.6.1, WP = 0", &without(RW).no_wp().write(), PAGE | 0x678, PageSize::Kib4);
        faults("4.6.1, user, WP = 0", &without(RW).no_wp().user(Access::Write), code::P | code::U | code::W);
        let mut entries = [ALL; 4];
        entries[level] |= NX;
        faults("4.6.1, XD", &Case::four_level(entries).user(Access::Execute), code::P | code::U | code::F);
    }
    // PAE's PDPTE has no rights.
    leads_to("4.4.1", &Case::pae([ALL, ALL]).user(Access::Write), PAGE | 0x678, PageSize::Kib4);
}

#[test]
fn smep_and_smap() {
    let user_page = || Case::four_level([ALL; 4]);
    let kernel_page = || Case::four_level([PRW; 4]);
    let smep = user_page().cr4(cr4::SMEP).fetch();
    faults("4.6.1, SMEP", &smep, code::P | code::F);
    faults("4.7, I/D with SMEP alone", &smep.no_nxe(), code::P | code::F);
    faults(
        "4.7, I/D with SMEP alone, 32-bit",
        &Case::legacy([ALL, ALL]).cr4(cr4::SMEP).fetch(),
        code::P | code::F,
    );
    leads_to("4.6.1", &kernel_page().cr4(cr4::SMEP).fetch(), PAGE | 0x678, PageSize::Kib4);
    leads_to("4.6.1", &user_page().cr4(cr4::SMEP).user(Access::Execute), PAGE | 0x678, PageSize::Kib4);
    let smap = || user_page().cr4(cr4::SMAP);
    faults("4.6.1, SMAP", &smap(), code::P);
    faults("4.6.1, SMAP, WP = 0", &smap().no_wp().write(), code::P | code::W);
    let ac = |access| smap().by(access, Privilege::SupervisorAc);
    leads_to("4.6.1, EFLAGS.AC", &ac(Access::Read), PAGE | 0x678, PageSize::Kib4);
    leads_to("4.6.1, EFLAGS.AC", &ac(Access::Write), PAGE | 0x678, PageSize::Kib4);
    leads_to("4.6.1, SMAP leaves fetches alone", &smap().fetch(), PAGE | 0x678, PageSize::Kib4);
}

#[test]
fn accessed_and_dirty_bits() {
    let marks = |case: &Case| {
        let memory = memory();
        case.store(&memory);
        let result = walk(&memory, &case.context(), Gva(case.va), case.access, case.privilege);
        let marks = [0, 1, 2, 3].map(|i| {
            let (at, before) = case.entry(i);
            let after = if case.mode == PagingMode::Legacy32 {
                memory.read_word::<u32>(at).unwrap().into()
            } else {
                memory.read_word::<u64>(at).unwrap()
            };
            after ^ before
        });
        (result.map(|t| t.dirty).ok(), marks)
    };
    let (a, ad) = (pte::A, pte::A | pte::D);
    let c = Case::four_level;
    assert_eq!(marks(&c([ALL; 4])), (Some(false), [a; 4]), "SDM vol. 3, 4.8: read");
    assert_eq!(marks(&c([ALL; 4]).fetch()), (Some(false), [a; 4]), "SDM vol. 3, 4.8: fetch");
    assert_eq!(marks(&c([ALL; 4]).write()), (Some(true), [a, a, a, ad]), "SDM vol. 3, 4.8: write");
    assert_eq!(marks(&c([ALL, ALL, ALL | PS, 0]).write()), (Some(true), [a, a, ad, 0]));
    assert_eq!(marks(&c([ALL | ad; 4]).write()), (Some(true), [0; 4]), "nothing to do");
    assert_eq!(marks(&c([ALL | ad; 4])), (Some(true), [0; 4]));
    assert_eq!(marks(&c([ALL, ALL, ALL, P]).write()), (None, [0; 4]), "a fault leaves no marks");
    assert_eq!(marks(&Case::pae([ALL, ALL]).write()), (Some(true), [0, 0, a, ad]), "none in PDPTEs");
    assert_eq!(marks(&Case::legacy([ALL, ALL]).write()), (Some(true), [0, 0, a, ad]));
    assert_eq!(marks(&Case::legacy([ALL | PS, 0]).write()), (Some(true), [0, 0, ad, 0]));
}

#[test]
fn global_needs_pge() {
    let mut c = Case::four_level([ALL, ALL, ALL, ALL | pte::G]);
    assert!(!c.run().unwrap().global);
    c = c.cr4(cr4::PGE);
    assert!(c.run().unwrap().global);
    c.entries = [ALL, ALL, ALL | pte::G, ALL];
    assert!(!c.run().unwrap().global, "SDM vol. 3, 4.10.2.4: only the last entry's");
}

#[test]
fn a_table_may_refer_to_itself() {
    let memory = memory();
    // Entry 511 refers to its own table; through it the table is a page.
    memory.write_word(Gpa(0x1000 + 511 * 8), 0x1000 | ALL).unwrap();
    let context = Case::four_level([0; 4]).context();
    let t = walk(&memory, &context, Gva(u64::MAX - 7), Access::Write, Privilege::User).unwrap();
    assert_eq!(t.gpa, Gpa(0x1ff8));
    assert_eq!(memory.read_word::<u64>(Gpa(0x1ff8)).unwrap(), 0x1000 | ALL | pte::A | pte::D);
}

#[test]
fn tables_that_are_not_memory() {
    let mut c = Case::four_level([ALL, ALL, ALL | 0x4000_0000, 0]);
    faults("an empty bus is all ones: reserved bits", &c, code::P | code::R);
    c = Case::legacy([ALL | 0x8000_0000, 0]);
    leads_to("an empty bus is all ones", &c.user(Access::Write), 0xffff_f678, PageSize::Kib4);
    // In ROM they work, and marks are dropped.
    let memory = memory();
    let c = Case::four_level([ALL; 4]).write();
    c.store(&memory);
    for table in TABLES {
        memory.set_kind(Gpa(table).frame(), FrameKind::ReadOnly).unwrap();
    }
    let t = walk(&memory, &c.context(), Gva(VA), Access::Write, Privilege::User).unwrap();
    assert_eq!(t.gpa, Gpa(PAGE | 0x678));
    let (at, before) = c.entry(3);
    assert_eq!(memory.read_word::<u64>(at).unwrap(), before);
}

#[test]
fn a_probe_changes_nothing_and_ignores_rights() {
    let memory = memory();
    let c = Case::four_level([P | NX; 4]);
    c.store(&memory);
    assert_eq!(probe(&memory, &c.context(), Gva(VA)), Some(Gpa(PAGE | 0x678)));
    assert_eq!(memory.read_word::<u64>(c.entry(0).0).unwrap(), c.entry(0).1);
    assert_eq!(probe(&memory, &c.context(), Gva(0)), None);
}

#[test]
fn marks_are_set_while_another_processor_changes_the_entry() {
    let memory = memory();
    let c = Case::four_level([ALL; 4]).write();
    c.store(&memory);
    let (at, entry) = c.entry(3);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Moves the page back and forth between two frames; a mark must never undo a move.
            let moved = entry ^ (PAGE ^ 0x6000);
            for _ in 0..50_000 {
                memory.write_word(at, moved).unwrap();
                let now: u64 = memory.read_word(at).unwrap();
                assert_eq!(now & pte::ADDRESS, 0x6000);
                memory.write_word(at, entry).unwrap();
                let now: u64 = memory.read_word(at).unwrap();
                assert_eq!(now & pte::ADDRESS, PAGE);
            }
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        while !done.load(std::sync::atomic::Ordering::Acquire) {
            if let Ok(t) = walk(&memory, &c.context(), Gva(VA), Access::Write, Privilege::User) {
                assert!(t.dirty && [PAGE | 0x678, 0x6678].contains(&t.gpa.0));
            }
        }
    });
}

fn any_case() -> impl Strategy<Value = (PagingContext, Vec<u64>)> {
    let registers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<[u64; 4]>());
    let features = (32u8..=52, any::<bool>(), any::<bool>(), any::<bool>());
    // Half the words point into memory, so that walks go deep; some lie just past it.
    let word = prop_oneof![any::<u64>(), any::<u64>().prop_map(|w| w & 0x8000_0000_0001_ffff | P)];
    (registers, features, prop::collection::vec(word, 8 * 512)).prop_map(
        |((cr0, cr3, cr4, efer, pdpte), (phys_bits, gib_pages, pse36, pat), words)| {
            let features = PagingFeatures { phys_bits, gib_pages, pse36, pat };
            let cr0 = cr0 | cr0::PE | if cr0 & 6 == 6 { 0 } else { cr0::PG };
            let pdpte = pdpte.map(|e| e & 0xffff);
            (PagingContext::new(cr0, cr3 & 0xffff, cr4, efer, pdpte, &features), words)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is in memory and registers, a walk ends, and ends within the physical address space.
    #[test]
    fn garbage_is_harmless((context, words) in any_case(), vas in prop::collection::vec(any::<u64>(), 200)) {
        let memory = GuestMemory::new(&[RamRange::from_bytes(Gpa(0), 0x8000)]).unwrap();
        memory.set_kind(Gfn(7), FrameKind::ReadOnly).unwrap();
        for (at, word) in (0..).step_by(8).zip(words) {
            let _ = memory.write_word(Gpa(at), word);
        }
        for va in vas {
            let access = [Access::Read, Access::Write, Access::Execute][(va % 3) as usize];
            let privilege = Privilege::ALL[(va / 3 % 3) as usize];
            match walk(&memory, &context, Gva(va), access, privilege) {
                Ok(t) => {
                    prop_assert!(t.gpa.0 >> 52 == 0);
                    // The same again: marks do not change where an address leads, unless the tables lie in the way.
                    prop_assert!(t.gpa.offset() == va & 0xfff);
                }
                Err(f) => prop_assert!(f.error & !0x1f == 0 && (f.error & pf::RESERVED == 0 || f.error & pf::PRESENT != 0)),
            }
        }
    }
}
