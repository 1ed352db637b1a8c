//! What decides how an address translates: the control registers and the processor's features, digested once when
//! they change, so that a walk only follows tables.
//!
//! The digest of the formats is two masks of reserved bits per level, one for entries that refer to a table and one
//! for those that map a large page, and the set of levels at which there are large pages. A PS bit where there are
//! none is reserved (or ignored, in 32-bit paging without PSE) by being in the former mask (or not).

use x86::control::{cr0, cr3, cr4, efer};
use x86::cpuid::{CpuidTable, Feature};
use x86::exception::pf;
use x86::paging::{PagingMode, pte};
use x86::{CpuState, PAGE_SHIFT, PAGE_SIZE};

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads data.
    Read,
    /// Writes data, or reads and writes it.
    Write,
    /// Fetches an instruction.
    Execute,
}

/// On whose behalf an access is made (SDM vol. 3, 4.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Privilege {
    /// Supervisor mode under SMAP: at CPL < 3 with EFLAGS.AC clear, and all implicit accesses (descriptor tables,
    /// TSS) at any CPL. If CR4.SMAP is clear, the choice between this and [`Privilege::SupervisorAc`] has no effect
    /// but to fill separate parts of the TLB; prefer this one.
    Supervisor = 0,
    /// Explicit supervisor-mode accesses with EFLAGS.AC set, which SMAP lets pass.
    SupervisorAc = 1,
    /// User mode: explicit accesses at CPL 3.
    User = 2,
}

impl Privilege {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Supervisor, Self::SupervisorAc, Self::User];
}

/// The features that shape page-table formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PagingFeatures {
    /// The width of a physical address, 32 to 52.
    pub phys_bits: u8,
    /// 1 GiB pages.
    pub gib_pages: bool,
    /// 4 MiB pages above 4 GiB.
    pub pse36: bool,
    /// The page-attribute table; without it its bit in entries is reserved.
    pub pat: bool,
}

impl From<&CpuidTable> for PagingFeatures {
    fn from(cpuid: &CpuidTable) -> Self {
        Self {
            phys_bits: cpuid.phys_bits(),
            gib_pages: cpuid.has(Feature::Pdpe1gb),
            pse36: cpuid.has(Feature::Pse36),
            pat: cpuid.has(Feature::Pat),
        }
    }
}

/// The rules in force, without the root: what a TLB must be emptied for when it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Regime {
    pub(crate) mode: PagingMode,
    /// CR0.WP.
    write_protect: bool,
    smep: bool,
    smap: bool,
    pcide: bool,
    /// CR4.PGE.
    pub(crate) global_pages: bool,
    /// Page faults tell fetches from reads.
    reports_fetch: bool,
    pub(crate) format: Format,
}

/// How entries are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) mode: PagingMode,
    /// Levels (bit n: level n + 1) that may map large pages.
    large_levels: u8,
    /// Reserved bits of entries that refer to a table, or of the last level; by level - 1.
    reserved: [u64; 4],
    /// Reserved bits of entries that map a large page; by level - 1.
    reserved_large: [u64; 4],
}

/// All that decides how a vCPU's addresses translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagingContext {
    pub(crate) regime: Regime,
    pub(crate) cr3: u64,
    pub(crate) pdpte: [u64; 4],
}

/// Bits `low` to `high` of a word; none if `low > high`.
const fn bit_range(low: u32, high: u32) -> u64 {
    if low > high { 0 } else { (u64::MAX >> (63 - high)) & (u64::MAX << low) }
}

impl PagingContext {
    /// The context of these registers. `pdpte` matters in PAE paging only.
    pub fn new(cr0: u64, cr3: u64, cr4: u64, efer: u64, pdpte: [u64; 4], features: &PagingFeatures) -> Self {
        let mode = PagingMode::of(cr0, cr4, efer);
        let smep = cr4 & cr4::SMEP != 0;
        let nxe = efer & efer::NXE != 0;
        let (large_levels, reserved, reserved_large) = match mode {
            PagingMode::Off => (0, [0; 4], [0; 4]),
            PagingMode::Legacy32 => legacy_formats(cr4 & cr4::PSE != 0, features),
            PagingMode::Pae | PagingMode::FourLevel => wide_formats(mode, nxe, features),
        };
        let regime = Regime {
            mode,
            write_protect: cr0 & cr0::WP != 0,
            smep,
            smap: cr4 & cr4::SMAP != 0,
            pcide: cr4 & cr4::PCIDE != 0,
            global_pages: cr4 & cr4::PGE != 0,
            reports_fetch: smep || nxe && cr4 & cr4::PAE != 0,
            format: Format { mode, large_levels, reserved, reserved_large },
        };
        Self { regime, cr3, pdpte }
    }

    /// The context of a vCPU's state.
    pub fn of(state: &CpuState, features: &PagingFeatures) -> Self {
        Self::new(state.cr0, state.cr3, state.cr4, state.msrs.efer, state.pdpte, features)
    }

    /// The same rules with another root, as after MOV to CR3. `pdpte` matters in PAE paging only.
    pub const fn set_root(&mut self, cr3: u64, pdpte: [u64; 4]) {
        self.cr3 = cr3;
        self.pdpte = pdpte;
    }

    /// The paging mode.
    #[inline]
    pub const fn mode(&self) -> PagingMode {
        self.regime.mode
    }

    /// The current process-context identifier; 0 without CR4.PCIDE (SDM vol. 3, 4.10.1).
    #[inline]
    pub const fn pcid(&self) -> u16 {
        if self.regime.pcide { x86::bits::low16(self.cr3 & cr3::PCID) } else { 0 }
    }
}

impl Format {
    /// The bytes of an entry.
    pub(crate) const fn entry_bytes(&self) -> u64 {
        if matches!(self.mode, PagingMode::Legacy32) { 4 } else { 8 }
    }

    /// The entries of a table.
    pub(crate) const fn table_entries(&self) -> u64 {
        PAGE_SIZE / self.entry_bytes()
    }

    /// log2 of the entries of a table.
    pub(crate) const fn index_bits(&self) -> u32 {
        self.table_entries().trailing_zeros()
    }

    /// log2 of the bytes that an entry of a level spans.
    pub(crate) const fn shift(&self, level: u32) -> u32 {
        PAGE_SHIFT + level.saturating_sub(1) * self.index_bits()
    }

    /// Whether an entry of a level above the first maps a page.
    #[inline]
    pub(crate) const fn is_large(&self, level: u32, entry: u64) -> bool {
        entry & pte::PS != 0 && self.large_levels >> (level - 1) & 1 != 0
    }

    /// The bits that make an entry invalid.
    #[inline]
    pub(crate) fn reserved(&self, level: u32, large: bool) -> u64 {
        let masks = if large { &self.reserved_large } else { &self.reserved };
        masks.get(level as usize - 1).copied().unwrap_or(0)
    }
}

impl Regime {
    /// Whether a page with these rights lets an access through (SDM vol. 3, 4.6.1).
    pub(crate) const fn permits(&self, rights: Rights, access: Access, privilege: Privilege) -> bool {
        let user_mode = matches!(privilege, Privilege::User);
        if user_mode && !rights.user {
            return false;
        }
        match access {
            Access::Execute => !rights.no_execute && (user_mode || !rights.user || !self.smep),
            Access::Read | Access::Write => {
                let smap = self.smap && rights.user && matches!(privilege, Privilege::Supervisor);
                let writable = rights.writable || !user_mode && !self.write_protect;
                !smap && (writable || matches!(access, Access::Read))
            }
        }
    }

    /// The bits of the error code that describe the access (SDM vol. 3, 4.7).
    pub(crate) const fn error_bits(&self, access: Access, privilege: Privilege) -> u32 {
        let what = match access {
            Access::Read => 0,
            Access::Write => pf::WRITE,
            Access::Execute if self.reports_fetch => pf::FETCH,
            Access::Execute => 0,
        };
        what | if matches!(privilege, Privilege::User) { pf::USER } else { 0 }
    }
}

/// What all entries on the way to a page allow together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    pub(crate) user: bool,
    pub(crate) writable: bool,
    pub(crate) no_execute: bool,
}

impl Rights {
    /// Everything.
    pub(crate) const ALL: Self = Self { user: true, writable: true, no_execute: false };

    /// Takes away what an entry does not allow. A set bit 63 is NX here: without EFER.NXE it was reserved.
    #[inline(always)]
    pub(crate) const fn restrict(&mut self, entry: u64) {
        self.user &= entry & pte::US != 0;
        self.writable &= entry & pte::RW != 0;
        self.no_execute |= entry & pte::NX != 0;
    }
}

type Formats = (u8, [u64; 4], [u64; 4]);

/// 32-bit paging (SDM vol. 3, 4.3, tables 4-4 to 4-6).
const fn legacy_formats(pse: bool, features: &PagingFeatures) -> Formats {
    let no_pat = if features.pat { 0 } else { u64::MAX };
    // With PSE-36, bits 20:13 of a 4 MiB page's entry hold address bits 39:32, as far as the processor has them.
    let address_bits = match (features.pse36, features.phys_bits) {
        (false, _) | (true, ..32) => 32,
        (true, 32..40) => features.phys_bits as u32,
        (true, 40..) => 40,
    };
    let large = bit_range(address_bits - 19, 21) | no_pat & pte::PAT_LARGE;
    (if pse { 0b10 } else { 0 }, [no_pat & pte::PS, 0, 0, 0], [0, large, 0, 0])
}

/// PAE paging (SDM vol. 3, 4.4, tables 4-9 to 4-11) and 4-level paging (4.5, tables 4-15 to 4-20).
const fn wide_formats(mode: PagingMode, nxe: bool, features: &PagingFeatures) -> Formats {
    let no_pat = if features.pat { 0 } else { u64::MAX };
    let four_level = matches!(mode, PagingMode::FourLevel);
    let gib_pages = four_level && features.gib_pages;
    // Above the physical address PAE has nothing but NX; 4-level paging ignores bits 62:52.
    let top = if four_level { 51 } else { 62 };
    let any = bit_range(features.phys_bits as u32, top) | if nxe { 0 } else { pte::NX };
    let large = any | no_pat & pte::PAT_LARGE;
    let gib = if gib_pages { 0 } else { pte::PS };
    (
        if gib_pages { 0b110 } else { 0b10 },
        [any | no_pat & pte::PS, any, any | gib, any | pte::PS],
        [0, large | bit_range(PAGE_SHIFT + 1, 20), large | bit_range(PAGE_SHIFT + 1, 29), 0],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEATURES: PagingFeatures =
        PagingFeatures { phys_bits: 40, gib_pages: true, pse36: true, pat: true };

    #[test]
    fn bit_ranges() {
        assert_eq!(bit_range(0, 63), u64::MAX);
        assert_eq!(bit_range(13, 20), 0x1f_e000);
        assert_eq!(bit_range(52, 51), 0);
    }

    #[test]
    fn pse_36_reserves_what_it_cannot_address() {
        let large =
            |phys_bits, pse36| legacy_formats(true, &PagingFeatures { phys_bits, pse36, ..FEATURES }).2[1];
        assert_eq!(large(46, true), 1 << 21);
        assert_eq!(large(36, true), bit_range(17, 21));
        assert_eq!(large(36, false), bit_range(13, 21));
    }

    #[test]
    fn pcid_is_zero_unless_enabled() {
        let long = efer::LMA | efer::LME;
        let c = |cr4| PagingContext::new(cr0::PG | cr0::PE, 0x1234, cr4, long, [0; 4], &FEATURES);
        assert_eq!(c(cr4::PAE).pcid(), 0);
        assert_eq!(c(cr4::PAE | cr4::PCIDE).pcid(), 0x234);
    }

    /// Every combination of SDM vol. 3, 4.6.1, against its wording.
    #[test]
    fn access_rights() {
        for bits in 0..64u32 {
            let bit = |n: u32| bits >> n & 1 != 0;
            let rights = Rights { user: bit(0), writable: bit(1), no_execute: bit(2) };
            let (wp, smep, smap) = (bit(3), bit(4), bit(5));
            let cr0 = cr0::PG | cr0::PE | if wp { cr0::WP } else { 0 };
            let cr4 = cr4::PAE | if smep { cr4::SMEP } else { 0 } | if smap { cr4::SMAP } else { 0 };
            let regime = PagingContext::new(cr0, 0, cr4, efer::LMA | efer::NXE, [0; 4], &FEATURES).regime;
            let ok = |access, privilege| regime.permits(rights, access, privilege);
            use Access::{Execute, Read, Write};
            use Privilege::{Supervisor, SupervisorAc, User};
            // "For supervisor-mode accesses": data may be read from any supervisor-mode address, from a user-mode
            // address unless SMAP is on and EFLAGS.AC clear.
            let data = |ac: bool| !rights.user || !smap || ac;
            assert_eq!(ok(Read, Supervisor), data(false));
            assert_eq!(ok(Read, SupervisorAc), data(true));
            assert_eq!(ok(Write, Supervisor), data(false) && (!wp || rights.writable));
            assert_eq!(ok(Write, SupervisorAc), data(true) && (!wp || rights.writable));
            for p in [Supervisor, SupervisorAc] {
                let forbidden = rights.no_execute || rights.user && smep;
                assert_eq!(ok(Execute, p), !forbidden);
            }
            // "For user-mode accesses".
            assert_eq!(ok(Read, User), rights.user);
            assert_eq!(ok(Write, User), rights.user && rights.writable);
            assert_eq!(ok(Execute, User), rights.user && !rights.no_execute);
        }
    }
}
