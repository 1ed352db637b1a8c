//! Who uses a cluster, and which are free.
//!
//! A table in memory leads to blocks in the file, which hold 16 bits for each cluster. A count is raised before anything
//! leads to the cluster, and lowered after nothing does any more; so a process that dies at any point leaves counts that are
//! right or too high. Too high a count is lost space, too low a count would be lost data.
//!
//! Free clusters are looked for from the file's beginning to its end once, and then taken from its end. Clusters that become
//! free on the way are found if they are ahead; the others are found by whoever opens the image next.

use std::io;

use super::file::{Clusters, WINDOW, index};
use super::header::REFCOUNT_TABLE_AT;

/// The most entries of the table, as QEMU has it.
const MOST_ENTRIES: usize = 1 << 20;

/// How many windows of counts are searched; what is free behind them is left, so that nobody waits for long.
const SEARCH: u32 = 1 << 16;

/// Clusters that belong to whoever asked for them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allocation {
    /// Where they begin.
    pub(super) at: u64,
    /// How many there are.
    pub(super) clusters: u64,
    /// Whether nothing has ever been written to them, so that they are zeros.
    pub(super) fresh: bool,
}

/// The table and the search.
#[derive(Debug)]
pub(super) struct Refcounts {
    at: u64,
    table: Vec<u64>,
    /// No free cluster is looked for before this one.
    next: u64,
    /// The first cluster behind the end of the file.
    end: u64,
    /// How many windows have been searched.
    searched: u32,
}

impl Refcounts {
    /// The counts of an image whose table is where the header says.
    pub(super) fn new(file: &Clusters, at: u64, clusters: u64, file_bytes: u64) -> io::Result<Self> {
        let table = file.read_entries(at, clusters * file.l2_entries())?;
        Ok(Self { at, table, next: 0, end: file_bytes.div_ceil(file.bytes()), searched: 0 })
    }

    /// How many clusters a block has counts for.
    fn per_block(file: &Clusters) -> u64 {
        file.bytes() / 2
    }

    /// Where the count of a cluster is, if there is a block for it.
    pub(super) fn place(&self, file: &Clusters, cluster: u64) -> Option<u64> {
        let block = *self.table.get(index(cluster / Self::per_block(file)))?;
        let at = file.start(block & !(1 << 63));
        (at != 0).then(|| at + cluster % Self::per_block(file) * 2)
    }

    /// The table's own place, and those of its blocks.
    pub(super) fn own(&self, file: &Clusters) -> (u64, u64, impl Iterator<Item = u64>) {
        (self.at, (self.table.len() as u64).div_ceil(file.l2_entries()), self.table.iter().copied())
    }

    /// The first cluster behind the end of the file.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Takes up to `most` clusters, one after the other.
    pub(super) fn allocate(&mut self, file: &Clusters, most: u64) -> io::Result<Allocation> {
        loop {
            if self.searched == SEARCH && self.end / Self::per_block(file) < self.table.len() as u64 {
                self.next = self.next.max(self.end);
            }
            let Some(place) = self.place(file, self.next) else {
                self.add_block(file)?;
                continue;
            };
            let per_block = Self::per_block(file);
            let left = per_block - self.next % per_block;
            // Behind the end nothing is in use, whatever the counts say.
            let (used, free) = if self.next >= self.end {
                (0, left.min(most))
            } else {
                self.searched = (self.searched + 1).min(SEARCH);
                find(file, place, left.min(self.end - self.next), most)?
            };
            if free != 0 {
                file.write(&1u16.to_be_bytes().repeat(index(free)), place + used * 2)?;
            }
            let first = self.next + used;
            let fresh = first >= self.end;
            self.next = first + free;
            self.end = self.end.max(self.next);
            if free != 0 {
                return Ok(Allocation { at: first << file.bits, clusters: free, fresh });
            }
        }
    }

    /// Makes a block for the next cluster, which has none, in that cluster itself.
    fn add_block(&mut self, file: &Clusters) -> io::Result<()> {
        let slot = self.next / Self::per_block(file);
        let Some(entry) = self.table.get_mut(index(slot)) else { return self.grow(file) };
        let block = self.next << file.bits;
        let own = self.next % Self::per_block(file) * 2;
        file.write(&vec![0; index(file.bytes())], block)?;
        file.write(&1u16.to_be_bytes(), block + own)?;
        file.barrier()?;
        file.write_entries([block].into_iter(), self.at + slot * 8)?;
        *entry = block;
        self.next += 1;
        self.end = self.end.max(self.next);
        Ok(())
    }

    /// Doubles the table. The new one stands behind everything that the old one has counts for, and behind the blocks with
    /// the counts of both, which nothing leads to until the header names the new table.
    fn grow(&mut self, file: &Clusters) -> io::Result<()> {
        let (per_block, first) = (Self::per_block(file), self.next);
        let (slot, old) = (self.table.len(), std::mem::take(&mut self.table));
        let grown = self.grown(file, first, &old);
        self.table = old;
        let (table, blocks) = grown?;
        let at = (first + blocks) << file.bits;
        let table_clusters = (table.len() as u64).div_ceil(file.l2_entries());
        file.write(&ones(blocks + table_clusters, blocks * per_block * 2), first << file.bits)?;
        file.write_entries(table.iter().copied(), at)?;
        file.barrier()?;
        let clusters = u32::try_from(table_clusters).map_err(|_| io::ErrorKind::StorageFull)?;
        file.write(&[&at.to_be_bytes()[..], &clusters.to_be_bytes()].concat(), REFCOUNT_TABLE_AT)?;
        file.barrier()?;
        let former = (self.at >> file.bits, (slot as u64).div_ceil(file.l2_entries()));
        (self.at, self.table) = (at, table);
        self.next = first + blocks + table_clusters;
        self.end = self.end.max(self.next);
        (former.0..former.0 + former.1).try_for_each(|cluster| self.lower(file, cluster))
    }

    /// The doubled table, and how many blocks of it are new: as many as it takes to count those blocks and the table.
    fn grown(&self, file: &Clusters, first: u64, old: &[u64]) -> io::Result<(Vec<u64>, u64)> {
        let mut table = old.to_vec();
        table.resize((old.len() * 2).max(1).next_multiple_of(index(file.l2_entries())), 0);
        let clusters = table.len() as u64 / file.l2_entries();
        let mut blocks = 1;
        while blocks * Self::per_block(file) < blocks + clusters {
            blocks += 1;
        }
        if table.len() > MOST_ENTRIES {
            return Err(io::ErrorKind::StorageFull.into());
        }
        for number in 0..blocks {
            let entry = table.get_mut(old.len() + index(number)).ok_or(io::ErrorKind::StorageFull)?;
            *entry = (first + number) << file.bits;
        }
        Ok((table, blocks))
    }

    /// Lowers the count of a cluster that nothing leads to any more.
    pub(super) fn lower(&self, file: &Clusters, cluster: u64) -> io::Result<()> {
        let Some(place) = self.place(file, cluster) else { return Ok(()) };
        let mut count = [0; 2];
        file.read(&mut count, place)?;
        match u16::from_be_bytes(count).checked_sub(1) {
            Some(less) => file.write(&less.to_be_bytes(), place),
            // The image was wrong already, on the dangerous side; it becomes no worse.
            None => Ok(()),
        }
    }
}

/// Counts of which the first `used` are 1, to fill so many bytes.
fn ones(used: u64, bytes: u64) -> Vec<u8> {
    let mut counts = 1u16.to_be_bytes().repeat(index(used));
    counts.resize(index(bytes), 0);
    counts
}

/// How many of the clusters from the one whose count is at `place` are in use, and how many behind those are free, `most` at
/// most; no more than `among` and a window of them are looked at.
fn find(file: &Clusters, place: u64, among: u64, most: u64) -> io::Result<(u64, u64)> {
    let mut bytes = vec![0; index(among.min(WINDOW) * 2)];
    file.read(&mut bytes, place)?;
    let counts = bytes.as_chunks::<2>().0;
    let used = counts.iter().take_while(|count| **count != [0; 2]).count();
    let free = counts.iter().skip(used).take_while(|count| **count == [0; 2]).count();
    Ok((used as u64, (free as u64).min(most)))
}
