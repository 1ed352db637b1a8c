//! Whether an image's refcounts say what its tables say.
//!
//! All tables are walked once and every cluster that they lead to is counted. No table is entered twice, so the walk is no
//! longer than the file, whatever stands in it. A table that anything else leads to, another table's entry or data, makes the image corrupt: what
//! is right there nobody can say.

use std::io;

use super::Problem;
use super::entry::{self, Place};
use super::file::{Clusters, index};
use super::header::Header;
use super::refcounts::Refcounts;

/// The most clusters that are counted: 256 MiB of counts, 8 TiB of file with clusters of 64 KiB.
const MOST: u64 = 1 << 27;

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Clusters that nothing leads to, though their counts say so: lost space, and nothing else.
    pub leaks: u64,
    /// Clusters with too low a count: contents may be lost if the image is written.
    pub low: u64,
    /// Entries that lead nowhere, and tables that are used twice.
    pub wrong: u64,
}

/// What the tables lead to.
pub(super) struct Check {
    counts: Vec<u16>,
    wrong: u64,
}

impl Check {
    /// Walks an image's tables.
    pub(super) fn of(
        clusters: &Clusters,
        header: &Header,
        l1: &[u64],
        refcounts: &Refcounts,
    ) -> Result<Self, Problem> {
        if refcounts.end() > MOST {
            return Err(Problem::NotWritable("not been closed and is too large to be checked here"));
        }
        let mut check = Self { counts: vec![0; index(refcounts.end())], wrong: 0 };
        let bits = clusters.bits;
        let (table, len, blocks) = refcounts.own(clusters);
        let mut tables = vec![
            (0, 1),
            (header.l1_at >> bits, (header.l1_entries * 8).div_ceil(clusters.bytes())),
            (table >> bits, len),
        ];
        tables.extend(blocks.filter(|block| *block != 0).map(|block| (block >> bits, 1)));
        for (first, clusters) in &tables {
            check.count(*first, *clusters);
        }
        for table in l1.iter().map(|entry| entry::table(*entry, bits)) {
            match table {
                Some(0) => {}
                Some(table) if check.count(table >> bits, 1) == 1 => {
                    tables.push((table >> bits, 1));
                    check.l2_table(clusters, table)?;
                }
                _ => check.wrong += 1,
            }
        }
        for (first, clusters) in tables {
            check.wrong +=
                (first..first.saturating_add(clusters)).map(|table| check.times_more(table)).sum::<u64>();
        }
        Ok(check)
    }

    /// How often more than once something leads to a cluster.
    fn times_more(&self, cluster: u64) -> u64 {
        self.counts.get(index(cluster)).map_or(0, |count| count.saturating_sub(1).into())
    }

    /// Counts what an L2 table leads to.
    fn l2_table(&mut self, clusters: &Clusters, table: u64) -> io::Result<()> {
        for entry in clusters.read_entries(table, clusters.l2_entries())? {
            let Some(place) = Place::of(entry, clusters.bits) else {
                self.wrong += 1;
                continue;
            };
            if let Some((first, last)) = place.in_file(clusters.bytes()) {
                let first = first >> clusters.bits;
                self.count(first, (last >> clusters.bits) - first + 1);
            }
        }
        Ok(())
    }

    /// Counts clusters once more; returns how often the last one has been.
    fn count(&mut self, first: u64, clusters: u64) -> u16 {
        let mut times = 0;
        for cluster in first..first.saturating_add(clusters) {
            match self.counts.get_mut(index(cluster)) {
                Some(count) => {
                    *count = count.saturating_add(1);
                    times = *count;
                }
                None => {
                    self.wrong += 1;
                    return 0;
                }
            }
        }
        times
    }

    /// Compares with the counts that the image has, a block at a time. `act` gets the place of each block in which they
    /// differ, and what should be there.
    fn compare(
        &self,
        clusters: &Clusters,
        refcounts: &Refcounts,
        mut act: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<Report> {
        let mut report = Report { wrong: self.wrong, ..Report::default() };
        let mut found = vec![0; index(clusters.bytes())];
        for (number, wanted) in self.counts.chunks(found.len() / 2).enumerate() {
            let first = (number * (found.len() / 2)) as u64;
            let Some(place) = refcounts.place(clusters, first) else {
                report.wrong += wanted.iter().filter(|count| **count != 0).count() as u64;
                continue;
            };
            clusters.read(&mut found, place)?;
            let mut right: Vec<u8> = wanted.iter().flat_map(|count| count.to_be_bytes()).collect();
            right.resize(found.len(), 0);
            if right == found {
                continue;
            }
            let pairs = found.as_chunks().0.iter().zip(right.as_chunks().0).take(wanted.len());
            for (has, should) in pairs.map(|(a, b)| (u16::from_be_bytes(*a), u16::from_be_bytes(*b))) {
                report.leaks += u64::from(has > should);
                report.low += u64::from(has < should);
            }
            act(place, &right)?;
        }
        Ok(report)
    }

    /// What is wrong with the image.
    pub(super) fn report(&self, clusters: &Clusters, refcounts: &Refcounts) -> Result<Report, Problem> {
        Ok(self.compare(clusters, refcounts, |_, _| Ok(()))?)
    }

    /// Makes the counts right; false, and nothing is changed, if the tables themselves are wrong.
    pub(super) fn repair(&self, clusters: &Clusters, refcounts: &Refcounts) -> io::Result<bool> {
        if self.compare(clusters, refcounts, |_, _| Ok(()))?.wrong != 0 {
            return Ok(false);
        }
        self.compare(clusters, refcounts, |place, right| clusters.write(right, place))?;
        clusters.barrier()?;
        Ok(true)
    }
}
