//! The techniques of memory virtualization, behind one trait.
//!
//! A guest-virtual address leads through two maps to a machine frame: the guest's page table, which is the guest's, and the
//! P2M, which is ours. A *technique* is a way to compose the two quickly. All of them answer the same question, asked at
//! each miss of the TLB ([`crate::Tlb`]) and so of the tables that translated code looks addresses up in, and must give an
//! answer that a processor's page walk and TLB could have given. `docs/design/0007-memory-virtualization.md` has an example
//! of each.
//!
//! | technique | the composite | kept right by |
//! |---|---|---|
//! | [`Technique::Walk`] | none: both maps are looked up at every miss | nothing to keep |
//! | [`Technique::Nested`] | none: the guest's table is walked, each reference through a host table | P2M changes |
//! | [`Technique::Vtlb`] | a tree for each address space of each vCPU | the guest's own invalidations |
//! | [`Technique::Eager`] | a shadow of each guest table, for all vCPUs | a trace: each write to a table is mirrored |
//! | [`Technique::Lazy`] | the same | the first write ends the trace; brought into step where TLBs are invalidated |
//!
//! Faults are *true* if the guest's own walk faults: those are injected, and only a walk of the guest's table says so. All
//! others are *hidden*: a missing entry, a first write to a clean page, a frame that the P2M takes back, a write to a
//! traced frame.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memory::{GuestMemory, P2mEntry};

use crate::nested::{HostTable, Nested};
use crate::shadow::{Shadow, Shadowed, Step};
use crate::tlb::{Invalidation, Tlb};
use crate::vtlb::Vtlb;
use crate::walk::{Miss, PageFault, PageSize, Path, Translation, walk_through};

/// How guest-virtual addresses are translated to machine frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Technique {
    /// The guest's table is walked at each miss, and its result looked up in the P2M: in effect a virtual TLB that is no
    /// larger than the engine's own.
    #[default]
    Walk,
    /// A virtual TLB: filled at hidden faults, emptied as the architecture says.
    Vtlb,
    /// Shadow page tables; the first write to a guest table puts its shadow out of step until the next invalidation.
    Lazy,
    /// Shadow page tables; each write to a guest table is mirrored at once.
    Eager,
    /// A two-dimensional walk through a host table of pages up to this size.
    Nested(PageSize),
}

/// Each technique, nested paging with each size of page.
#[cfg(test)]
pub(crate) const ALL: [Technique; 7] = [
    Technique::Walk,
    Technique::Vtlb,
    Technique::Lazy,
    Technique::Eager,
    Technique::Nested(PageSize::Kib4),
    Technique::Nested(PageSize::Mib2),
    Technique::Nested(PageSize::Gib1),
];

/// Where an access leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// What the guest's table says.
    pub translation: Translation,
    /// What the P2M says of the frame that it leads to.
    pub entry: P2mEntry,
}

impl Reached {
    /// With what the P2M says now.
    pub(crate) fn looked_up(translation: Translation, memory: &GuestMemory) -> Self {
        Self { translation, entry: memory.entry(translation.gpa.frame()) }
    }
}

/// One vCPU's end of a technique.
pub trait Strategy: Send {
    /// Translates an access that is not in the TLB. Accessed and dirty bits of the guest's table are set as a processor
    /// sets them.
    ///
    /// # Errors
    /// If the guest's own table does not allow it.
    fn translate(&mut self, miss: &Miss<'_>, stats: &mut MmuStats) -> Result<Reached, PageFault>;

    /// The guest invalidates, on this vCPU; in particular [`Invalidation::Switch`] before each access in another address
    /// space.
    fn invalidate(&mut self, what: Invalidation);

    /// CR3 is being loaded: the address space of this PCID becomes the current one, emptied unless it is to be kept.
    fn load_root(&mut self, pcid: u16, keep: bool) {
        if !keep {
            self.invalidate(Invalidation::Space(pcid));
        }
        self.invalidate(Invalidation::Switch(pcid));
    }
}

/// What the MMU of one vCPU counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmuStats {
    /// Loads and stores whose page the TLB had. Those of translated code, which has TLBs of its own, are not among them.
    pub hits: u64,
    /// TLB misses that ended in a translation.
    pub fills: u64,
    /// True faults: TLB misses that became the guest's page faults.
    pub faults: u64,
    /// Times an address space, or all, was emptied because the guest said so.
    pub flushes: u64,
    /// Single pages invalidated.
    pub invalidations: u64,
    /// Switches to another root.
    pub switches: u64,
    /// Times that changes of guest memory were acted on.
    pub epochs: u64,
    /// TLB misses that a shadow or virtual TLB answered.
    pub shadow_hits: u64,
    /// Hidden faults: no entry, or one that allowed too little.
    pub hidden_fill: u64,
    /// Hidden faults: a first write, which the guest's table has to show.
    pub hidden_dirty: u64,
    /// Hidden faults: a write to a traced frame.
    pub hidden_trace: u64,
    /// Hidden faults: a frame that the P2M, or the host table made of it, did not have ready.
    pub hidden_p2m: u64,
    /// References to entries of the guest's tables.
    pub guest_references: u64,
    /// References to entries of shadow or host tables.
    pub host_references: u64,
}

impl MmuStats {
    /// Each with its name and what it counts.
    pub fn list(&self) -> [(&'static str, u64, &'static str); 14] {
        [
            ("tlb.hits", self.hits, "interpreted loads and stores whose page the TLB had"),
            ("tlb.fills", self.fills, "TLB misses that were resolved"),
            ("tlb.faults", self.faults, "TLB misses that became page faults: true faults"),
            ("tlb.flushes", self.flushes, "times that an address space, or all, was emptied"),
            ("tlb.invalidations", self.invalidations, "single pages invalidated"),
            ("tlb.switches", self.switches, "switches of address space"),
            ("tlb.epochs", self.epochs, "times that memory changed beneath the TLB"),
            ("mmu.hits", self.shadow_hits, "TLB misses that a shadow or virtual TLB answered"),
            ("mmu.hidden.fill", self.hidden_fill, "hidden faults: an entry was missing"),
            ("mmu.hidden.dirty", self.hidden_dirty, "hidden faults: the first write to a clean page"),
            ("mmu.hidden.trace", self.hidden_trace, "hidden faults: a write to a traced page table"),
            ("mmu.hidden.p2m", self.hidden_p2m, "hidden faults: a frame that the host had to make ready"),
            ("mmu.guest_refs", self.guest_references, "references to the guest's page tables"),
            ("mmu.host_refs", self.host_references, "references to shadow or host tables"),
        ]
    }
}

/// What a VM's memory virtualization holds and did, besides what its vCPUs count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmuFigures {
    /// Tables, of shadows or of the host's.
    pub tables: u64,
    /// The memory that they take, in bytes.
    pub bytes: u64,
    /// Tables given up for want of room.
    pub evictions: u64,
    /// Writes to traced guest tables.
    pub traced_writes: u64,
    /// Tables whose trace was ended by too many writes.
    pub lost_traces: u64,
    /// Tables brought into step.
    pub resyncs: u64,
}

impl MmuFigures {
    /// Each with its name and what it counts.
    pub fn list(&self) -> [(&'static str, u64, &'static str); 6] {
        [
            ("mmu.tables", self.tables, "shadow or host tables that all vCPUs share"),
            ("mmu.table_bytes", self.bytes, "memory that they take"),
            ("mmu.evictions", self.evictions, "tables given up for want of room"),
            ("mmu.traced_writes", self.traced_writes, "writes to traced page tables"),
            (
                "mmu.lost_traces",
                self.lost_traces,
                "page tables no longer traced because they were written too often",
            ),
            ("mmu.resyncs", self.resyncs, "page tables brought back into step"),
        ]
    }
}

/// What the vCPUs have in common.
#[derive(Clone)]
enum Common {
    Nothing,
    Shadow(Arc<Mutex<Shadow>>),
    Host(Arc<Mutex<HostTable>>),
}

/// A VM's memory virtualization. Clones are the same one.
#[derive(Clone)]
pub struct Mmu {
    technique: Technique,
    memory: Arc<GuestMemory>,
    common: Common,
}

impl Mmu {
    /// Virtualizes this memory by this technique. There is one at a time for a memory.
    pub fn new(memory: Arc<GuestMemory>, technique: Technique) -> Self {
        let shadow = |step| Common::Shadow(Arc::new(Mutex::new(Shadow::new(&memory, step))));
        let common = match technique {
            Technique::Walk | Technique::Vtlb => Common::Nothing,
            Technique::Eager => shadow(Step::Eager),
            Technique::Lazy => shadow(Step::Lazy),
            Technique::Nested(largest) => {
                Common::Host(Arc::new(Mutex::new(HostTable::new(&memory, largest))))
            }
        };
        Self { technique, memory, common }
    }

    /// The TLB of one more vCPU, empty.
    pub fn tlb(&self) -> Tlb {
        let memory = self.memory.clone();
        let strategy: Box<dyn Strategy> = match (&self.common, self.technique) {
            (Common::Shadow(shadow), _) => Box::new(Shadowed::new(memory, shadow.clone())),
            (Common::Host(host), _) => Box::new(Nested::new(memory, host.clone())),
            (Common::Nothing, Technique::Vtlb) => Box::new(Vtlb::new(memory)),
            (Common::Nothing, _) => Box::new(Walk { memory }),
        };
        Tlb::with_strategy(self.memory.clone(), strategy)
    }

    /// The memory that it virtualizes.
    pub const fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// What it holds, and did.
    pub fn figures(&self) -> MmuFigures {
        let figures = match &self.common {
            Common::Nothing => MmuFigures::default(),
            Common::Shadow(shadow) => lock(shadow).figures(),
            Common::Host(host) => lock(host).figures(),
        };
        MmuFigures { traced_writes: self.memory.traced_writes(), ..figures }
    }
}

impl fmt::Debug for Mmu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mmu({:?})", self.technique)
    }
}

pub(crate) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic left behind is dropped translations at worst.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Walks the guest's table and counts the references; inlined as [`walk_through`] is.
#[inline(always)]
pub(crate) fn walk_guest(
    memory: &GuestMemory,
    miss: &Miss<'_>,
    stats: &mut MmuStats,
) -> Result<(Translation, Path), PageFault> {
    let (translation, path) = walk_through(&mut { memory }, miss)?;
    stats.guest_references += path.entries().len() as u64;
    Ok((translation, path))
}

/// [`Technique::Walk`].
struct Walk {
    memory: Arc<GuestMemory>,
}

impl Strategy for Walk {
    fn translate(&mut self, miss: &Miss<'_>, stats: &mut MmuStats) -> Result<Reached, PageFault> {
        let (translation, _) = walk_guest(&self.memory, miss, stats)?;
        Ok(Reached::looked_up(translation, &self.memory))
    }

    fn invalidate(&mut self, _: Invalidation) {}
}

#[cfg(test)]
mod tests;
