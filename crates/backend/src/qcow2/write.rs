//! Writing where the disk has no cluster of its own yet, which changes tables.
//!
//! One thread at a time does it. Each step goes to the file before the next one begins; see the module's top for why that
//! order and no other.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use host::io::{Sources, Targets};

use super::entry::{self, Place};
use super::file::{WINDOW, index};
use super::header::{DIRTY, INCOMPATIBLE_AT};
use super::{Qcow2, Run, Tables};

/// What is to be written.
pub(super) enum New<'a> {
    /// Bytes.
    Bytes(Sources<'a>),
    /// So many zeros.
    Zeros(u64),
}

impl New<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(from) => from.bytes(),
            Self::Zeros(len) => *len,
        }
    }
}

impl Qcow2 {
    /// What changes tables, if they may be changed.
    pub(super) fn writable(&self) -> io::Result<&Mutex<Tables>> {
        self.tables.as_ref().ok_or_else(|| io::ErrorKind::ReadOnlyFilesystem.into())
    }

    /// Writes the beginning of `new`; returns how much of it.
    pub(super) fn put(&self, offset: u64, new: &New<'_>) -> io::Result<u64> {
        self.change(|tables| {
            // Somebody else may have been here since.
            let run = self.look_up(offset, new.len())?;
            match run.place {
                Place::Own(at) => self.put_into(at, new, run.len).map(|()| run.len),
                _ => self.put_anew(tables, offset, run, new),
            }
        })
    }

    /// Makes the beginning of a range zeros; returns how much of it. Whole clusters need none of the file for that.
    pub(super) fn put_zeros(&self, offset: u64, len: u64) -> io::Result<u64> {
        let clusters = &self.clusters;
        let whole = self.header.version >= 3 && clusters.inside(offset) == 0 && len >= clusters.bytes();
        if !whole {
            let part = clusters.bytes() - clusters.inside(offset);
            return self.put(offset, &New::Zeros(len.min(part)));
        }
        self.change(|tables| {
            let run = self.look_up(offset, clusters.start(len))?;
            if let Place::Own(at) = run.place {
                return clusters.zero(at, run.len, true).map(|()| run.len);
            }
            let table = self.l2_for_writing(tables, offset)?;
            let count = (run.len >> clusters.bits).min(WINDOW);
            let zeros = std::iter::repeat_n(entry::ZERO, index(count));
            self.enter(table, offset, zeros)?;
            self.leave(tables, run.place)?;
            Ok(count << clusters.bits)
        })
    }

    /// Changes tables, with the image marked meanwhile and until it is closed.
    fn change(&self, act: impl FnOnce(&mut Tables) -> io::Result<u64>) -> io::Result<u64> {
        let mut tables: MutexGuard<'_, Tables> =
            self.writable()?.lock().unwrap_or_else(PoisonError::into_inner);
        if !tables.marked && self.header.version >= 3 {
            self.mark(DIRTY)?;
            tables.marked = true;
        }
        let done = act(&mut tables);
        tables.broken |= done.is_err();
        done
    }

    /// Says in the header whether refcounts may be wrong.
    fn mark(&self, dirty: u64) -> io::Result<()> {
        self.clusters.write_entries([dirty].into_iter(), INCOMPATIBLE_AT)?;
        self.clusters.barrier()
    }

    /// Writes the beginning of `new` into clusters that the disk has.
    fn put_into(&self, at: u64, new: &New<'_>, len: u64) -> io::Result<()> {
        match new {
            New::Bytes(from) => self.clusters.write_from(&from.part(0, len), at),
            New::Zeros(_) => self.clusters.zero(at, len, true),
        }
    }

    /// Writes the beginning of `new` into clusters that the disk has not had before.
    fn put_anew(&self, tables: &mut Tables, offset: u64, run: Run, new: &New<'_>) -> io::Result<u64> {
        let clusters = &self.clusters;
        let inside = clusters.inside(offset);
        let table = self.l2_for_writing(tables, offset)?;
        let wanted = (inside + run.len).div_ceil(clusters.bytes()).min(WINDOW);
        let got = tables.refcounts.allocate(clusters, wanted)?;
        let end = got.clusters << clusters.bits;
        let len = run.len.min(end - inside);
        // What is around it, in the first cluster and in the last.
        let after = inside + len;
        if !got.fresh {
            clusters.zero(got.at, inside, true)?;
            clusters.zero(got.at + after, end - after, true)?;
        } else if matches!(new, New::Zeros(_)) {
            // Holes do not make a file longer.
            clusters.write(&[0], got.at + end - 1)?;
        }
        self.copy(run.place, offset - inside, inside, got.at)?;
        self.copy(run.place, offset + len, end - after, got.at + after)?;
        self.put_into(got.at + inside, new, len)?;
        let entries = (0..got.clusters).map(|number| entry::OWN | (got.at + (number << clusters.bits)));
        self.enter(table, offset, entries)?;
        self.leave(tables, run.place)?;
        Ok(len)
    }

    /// Writes entries into an L2 table, from an offset's on.
    fn enter(&self, table: u64, offset: u64, entries: impl Iterator<Item = u64>) -> io::Result<()> {
        let _whole = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        self.clusters.write_entries(entries, table + self.l2_number(offset) * 8)
    }

    /// Copies what a place shows from `offset` on to `at`, unless that is zeros, which are there already.
    fn copy(&self, place: Place, offset: u64, len: u64, at: u64) -> io::Result<()> {
        let shows = match place {
            Place::Below => self.below.is_some(),
            Place::Zeros(_) => false,
            Place::Own(_) | Place::Shared(_) | Place::Compressed { .. } => true,
        };
        if !shows || len == 0 {
            return Ok(());
        }
        let mut bytes = vec![0; index(len)];
        self.read_run(offset, place, &Targets::of(&mut bytes))?;
        self.clusters.write(&bytes, at)
    }

    /// The L2 table of an offset, made if there is none.
    fn l2_for_writing(&self, tables: &mut Tables, offset: u64) -> io::Result<u64> {
        if let Some(table) = self.l2_table(offset)? {
            return Ok(table);
        }
        let clusters = &self.clusters;
        let table = tables.refcounts.allocate(clusters, 1)?.at;
        clusters.write(&vec![0; index(clusters.bytes())], table)?;
        clusters.barrier()?;
        let number = offset / (clusters.l2_entries() << clusters.bits);
        let entry = entry::OWN | table;
        clusters.write_entries([entry].into_iter(), self.header.l1_at + number * 8)?;
        if let Some(known) = self.l1.get(index(number)) {
            known.store(entry, Ordering::Release);
        }
        Ok(table)
    }

    /// Gives up what a place had of the file, once nobody reads there any more.
    fn leave(&self, tables: &mut Tables, place: Place) -> io::Result<()> {
        let Some((first, last)) = place.in_file(self.clusters.bytes()) else { return Ok(()) };
        let _nobody_reads = self.reading.write().unwrap_or_else(PoisonError::into_inner);
        let bits = self.clusters.bits;
        ((first >> bits)..=(last >> bits)).try_for_each(|it| tables.refcounts.lower(&self.clusters, it))
    }
}

impl Drop for Qcow2 {
    /// Takes the mark away, if all is as it should be.
    fn drop(&mut self) {
        let Some(tables) = &self.tables else { return };
        let closed = {
            let tables = tables.lock().unwrap_or_else(PoisonError::into_inner);
            tables.marked && !tables.broken
        };
        if closed && self.clusters.barrier().is_ok() {
            // With the mark the image is as good, only slower to open.
            let _ = self.mark(0);
        }
    }
}
