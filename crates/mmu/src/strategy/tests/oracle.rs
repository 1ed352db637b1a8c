//! What a processor may do: its TLB and its paging-structure caches (SDM vol. 3, 4.10), as a judge of outcomes.
//!
//! Every change of a paging-structure entry has a time, and so has every invalidation. A translation that is not what the
//! tables say now is *allowed* if a processor could have it in its TLB. That is: there are times
//!
//! > t₁ ≤ t₂ ≤ … ≤ tₙ,  one for each level,
//!
//! at which the entries had the values that make it up, all of them with the accessed bit set (and, for a write, D in the
//! last), such that
//!
//! - at each of them CR3 was loaded on this vCPU with this PCID (with any, if the page is global);
//! - from t₁ to tₙ nothing invalidated this PCID's paging-structure caches, since until tₙ the upper entries were there only
//!   (4.10.3.1; any INVLPG does, 4.10.4.1);
//! - since tₙ nothing invalidated the page.
//!
//! An upper entry that is newer than a lower one is not among this, except if both were there at one time.

use std::collections::HashMap;

use x86::paging::pte;
use x86::{Gpa, Gva, PAGE_SHIFT};

use crate::context::{Access, PagingContext, Privilege, Rights};
use crate::tlb::Invalidation;
use crate::walk::{PageSize, page_base};

/// When; one for each action.
pub(super) type Time = u32;

/// Something that a vCPU was told.
#[derive(Clone, Copy, Debug)]
struct Told {
    at: Time,
    what: Invalidation,
    /// The PCID that was current.
    pcid: u16,
}

/// CR3 from a time on.
#[derive(Clone, Copy, Debug)]
struct Loaded {
    from: Time,
    root: u64,
    pcid: u16,
}

#[derive(Clone, Debug, Default)]
struct Vcpu {
    told: Vec<Told>,
    loaded: Vec<Loaded>,
}

/// What there was to see.
#[derive(Clone, Debug, Default)]
pub(super) struct Oracle {
    /// By address: the values of an entry, each from a time on.
    entries: HashMap<u64, Vec<(Time, u64)>>,
    vcpus: [Vcpu; 2],
}

/// An access and its outcome: the guest frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome<'a> {
    pub(super) context: &'a PagingContext,
    pub(super) va: Gva,
    pub(super) access: Access,
    pub(super) privilege: Privilege,
    pub(super) gfn: u64,
}

/// A half-open stretch of time.
#[derive(Clone, Copy, Debug)]
struct Span {
    from: Time,
    to: Time,
}

/// A way down the tables, so far.
#[derive(Clone, Copy)]
struct Way {
    table: u64,
    level: u32,
    rights: Rights,
    /// The earliest time of the last entry.
    at: Time,
}

impl Oracle {
    /// An entry has a value from now on.
    pub(super) fn see(&mut self, now: Time, at: u64, value: u64) {
        let history = self.entries.entry(at).or_default();
        if history.last().is_none_or(|&(_, last)| last != value) {
            history.push((now, value));
        }
    }

    pub(super) fn tell(&mut self, vcpu: usize, now: Time, what: Invalidation, pcid: u16) {
        self.vcpus[vcpu].told.push(Told { at: now, what, pcid });
    }

    pub(super) fn load(&mut self, vcpu: usize, now: Time, root: u64, pcid: u16) {
        self.vcpus[vcpu].loaded.push(Loaded { from: now, root, pcid });
    }

    /// Whether a processor could have done this.
    pub(super) fn allows(&self, vcpu: usize, now: Time, outcome: &Outcome<'_>) -> bool {
        let pcid = outcome.context.pcid();
        [false, true].into_iter().any(|global| {
            // Stretches in which nothing invalidated the paging-structure caches.
            let mut ends: Vec<Time> = self.vcpus[vcpu]
                .told
                .iter()
                .filter(|told| match told.what {
                    Invalidation::All | Invalidation::NonGlobal => true,
                    Invalidation::Page(_) => global || told.pcid == pcid,
                    Invalidation::Space(of) => global || of == pcid,
                    Invalidation::PageOf(..) | Invalidation::Switch(_) => false,
                })
                .map(|told| told.at)
                .collect();
            ends.push(now + 1);
            let mut from = 0;
            ends.into_iter().any(|to| {
                let span = Span { from, to };
                from = to;
                self.in_span(vcpu, span, global, outcome)
            })
        })
    }

    fn in_span(&self, vcpu: usize, span: Span, global: bool, outcome: &Outcome<'_>) -> bool {
        let rights = Rights { user: true, writable: true, no_execute: false };
        let loads = &self.vcpus[vcpu].loaded;
        (0..loads.len()).any(|i| {
            let (load, end) = (loads[i], loads.get(i + 1).map_or(Time::MAX, |next| next.from));
            let at = load.from.max(span.from);
            let fits = (global || load.pcid == outcome.context.pcid()) && at < span.to.min(end);
            fits && {
                let way = Way { table: load.root & pte::ADDRESS, level: 4, rights, at };
                self.down(vcpu, span, global, outcome, way)
            }
        })
    }

    fn down(&self, vcpu: usize, span: Span, global: bool, outcome: &Outcome<'_>, way: Way) -> bool {
        let format = &outcome.context.regime.format;
        let shift = format.shift(way.level);
        let at = way.table + (outcome.va.0 >> shift & 511) * 8;
        let Some(history) = self.entries.get(&at) else { return false };
        (0..history.len()).any(|i| {
            let (from, entry) = history[i];
            let until = history.get(i + 1).map_or(span.to, |&(next, _)| next.min(span.to));
            // A value that an access has just set is there at the time of the access.
            let Some(time) = self.loaded_at(vcpu, global, outcome, from.max(way.at), until) else {
                return false;
            };
            let large = format.is_large(way.level, entry);
            let used = pte::P | pte::A;
            if entry & used != used || entry & format.reserved(way.level, large) != 0 {
                return false;
            }
            let rights = Rights {
                user: way.rights.user && entry & pte::US != 0,
                writable: way.rights.writable && entry & pte::RW != 0,
                no_execute: way.rights.no_execute || entry & pte::NX != 0,
            };
            if !large && way.level > 1 {
                let next = Way { table: entry & pte::ADDRESS, level: way.level - 1, rights, at: time };
                return self.down(vcpu, span, global, outcome, next);
            }
            let size = PageSize::of_shift(shift);
            let is_global = outcome.context.regime.global_pages && entry & pte::G != 0;
            let Gpa(base) = page_base(size, entry);
            is_global == global
                && (base + (outcome.va.0 & ((1 << shift) - 1))) >> PAGE_SHIFT == outcome.gfn
                && outcome.context.regime.permits(rights, outcome.access, outcome.privilege)
                && (outcome.access != Access::Write || entry & pte::D != 0)
                && {
                    let last = self.last_told(vcpu, global, outcome, shift);
                    self.loaded_at(vcpu, global, outcome, time.max(last), until).is_some()
                }
        })
    }

    /// The first time in a stretch at which this vCPU could read entries for this PCID.
    fn loaded_at(
        &self,
        vcpu: usize,
        global: bool,
        outcome: &Outcome<'_>,
        from: Time,
        to: Time,
    ) -> Option<Time> {
        let loads = &self.vcpus[vcpu].loaded;
        (0..loads.len()).find_map(|i| {
            let end = loads.get(i + 1).map_or(Time::MAX, |next| next.from);
            let at = from.max(loads[i].from);
            let fits = global || loads[i].pcid == outcome.context.pcid();
            (fits && at < end.min(to)).then_some(at)
        })
    }

    /// When the page was last invalidated.
    fn last_told(&self, vcpu: usize, global: bool, outcome: &Outcome<'_>, shift: u32) -> Time {
        let pcid = outcome.context.pcid();
        let concerns = |told: &&Told| match told.what {
            Invalidation::All => true,
            Invalidation::NonGlobal => !global,
            Invalidation::Space(of) => !global && of == pcid,
            Invalidation::Page(va) => (global || told.pcid == pcid) && (va.0 ^ outcome.va.0) >> shift == 0,
            Invalidation::PageOf(of, va) => !global && of == pcid && (va.0 ^ outcome.va.0) >> shift == 0,
            Invalidation::Switch(_) => false,
        };
        self.vcpus[vcpu].told.iter().filter(concerns).map(|told| told.at).max().unwrap_or(0)
    }
}
