//! What the techniques that compose the guest's table and the P2M in [`crate::tables`] have in common: when what they hold
//! answers a miss, what an entry may lead to, and what changes of memory take away.

use memory::{Change, FrameKind, GuestMemory, P2mEntry};
use x86::{Gfn, Mfn, PAGE_SHIFT};

use crate::context::Access;
use crate::strategy::{MmuStats, Reached, walk_guest};
use crate::tables::{Found, Tables, address, word};
use crate::walk::{Miss, PageFault, Path, Translation};

// ---- misses ------------------------------------------------------------------------------------------------------

/// Where an access leads, if what was found answers that.
pub(crate) fn answer(
    found: &Found,
    miss: &Miss<'_>,
    memory: &GuestMemory,
    stats: &mut MmuStats,
) -> Option<Reached> {
    stats.host_references += found.references;
    if !permits(found, miss) || miss.access == Access::Write && !found.dirty {
        return None;
    }
    stats.shadow_hits += 1;
    let translation = Translation {
        gpa: address(found, miss.va),
        page_size: found.size,
        global: miss.context.regime.global_pages && found.global,
        dirty: found.dirty,
        rights: found.rights,
    };
    if found.p2m_write {
        let entry = P2mEntry { kind: FrameKind::Ram, mfn: found.mfn };
        return Some(Reached { translation, entry });
    }
    Some(Reached::looked_up(translation, memory))
}

/// Walks the guest's table where what was found does not answer. If that succeeds, the fault was a hidden one, and counts.
pub(crate) fn resolve(
    found: Option<&Found>,
    miss: &Miss<'_>,
    memory: &GuestMemory,
    stats: &mut MmuStats,
) -> Result<(Translation, Path), PageFault> {
    let walked = walk_guest(memory, miss, stats)?;
    if found.is_some_and(|found| !found.dirty && permits(found, miss)) {
        stats.hidden_dirty += 1;
    } else {
        stats.hidden_fill += 1;
    }
    Ok(walked)
}

fn permits(found: &Found, miss: &Miss<'_>) -> bool {
    miss.context.regime.permits(found.rights, miss.access, miss.privilege)
}

// ---- the P2M -----------------------------------------------------------------------------------------------------

/// The run of machine frames of `1 << shift` bytes around a guest-physical address, if the P2M allows that: its first
/// frames, and P2M-write if it may be written.
pub(crate) fn run_around(memory: &GuestMemory, gfn: Gfn, shift: u32) -> Option<(Gfn, Mfn, u64)> {
    if shift == PAGE_SHIFT {
        let entry = memory.entry(gfn);
        return match entry.kind {
            FrameKind::Ram => Some((gfn, entry.mfn, word::P2M_WRITE)),
            FrameKind::ReadOnly | FrameKind::Shared => Some((gfn, entry.mfn, 0)),
            _ => None,
        };
    }
    let frames = 1 << (shift - PAGE_SHIFT);
    let first = Gfn(gfn.0 & !(frames - 1));
    Some((first, memory.run(first, frames)?, word::P2M_WRITE))
}

/// What has to be dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Heard {
    /// All.
    Everything,
    /// What leads to this guest frame.
    Frame(Gfn),
}

/// Hands what happened to the P2M since epoch `seen` to `act`. Code, the dirty log and traces concern the right to cache a
/// writable translation, for which memory is asked each time; compositions do not hold it.
#[inline]
pub(crate) fn hear(memory: &GuestMemory, seen: &mut u64, mut act: impl FnMut(Heard)) {
    let now = memory.epoch();
    if now == *seen {
        return;
    }
    let since = std::mem::replace(seen, now);
    for change in memory.changes(since, now) {
        match change {
            Change::Everything => act(Heard::Everything),
            Change::Remapped(gfn) => act(Heard::Frame(gfn)),
            Change::Logged | Change::Watched(_) | Change::Written(_) | Change::Nothing => {}
        }
    }
}

/// Drops from tables what changes of the P2M since epoch `seen` have made wrong.
pub(crate) fn keep_up<W>(tables: &mut Tables<W>, memory: &GuestMemory, seen: &mut u64) {
    hear(memory, seen, |heard| match heard {
        Heard::Everything => tables.remove_all(),
        Heard::Frame(gfn) => tables.drop_frame(gfn),
    });
}
