//! A disk that is a qcow2 image, version 2 or 3 (QEMU's docs/interop/qcow2.txt).
//!
//! The disk is cut into clusters. A table of tables (L1, L2) says where each of them is: in the file, compressed in the file,
//! nowhere because it is zeros, or in what the image is made upon, its backing file. Refcounts say which clusters of the file
//! are in use ([`refcounts`]).
//!
//! **What dies at any point leaves an image that is right.** Every change goes to the file at once and in this order: a
//! cluster's refcount is raised; its contents are written, both what the guest wrote and what shows through around it; the
//! L2 entry that leads to it is written. The host's kernel keeps that order for whoever opens the file after the process was
//! killed: at worst a cluster is lost that nothing leads to. It does not keep it for whoever opens it after the host has lost
//! power; so the image is marked dirty before its tables change, the mark is taken away when it is closed, and an image with
//! the mark has its refcounts checked against its tables before it is written again ([`check`]), by Umbra and by QEMU alike.
//! Lost clusters come back that way too. A new table is made durable before anything leads to it, since a table of old
//! contents would be worse than wrong counts.
//!
//! **Nothing of the image is cached** but the L1 table and the refcount table, whose sizes are bounded, and one decompressed
//! cluster: the kernel's page cache holds L2 tables as well as we could, and nothing has to be kept in step or written back.
//!
//! **A cluster stays where it is.** Zeros and discarded ranges become holes in the file, and the cluster is the disk's still.
//! So a cluster that belongs to one place of the disk alone is read and written with no lock at all. Only compressed
//! clusters and those that are shared are left behind, by writes to them; whoever reads holds `reading`, and whoever
//! gives a cluster up waits for all those who began before.

mod check;
mod compressed;
mod entry;
mod file;
mod header;
mod refcounts;
#[cfg(test)]
mod tests;
mod write;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use host::io::{Sources, Targets};

pub use check::Report;
pub use header::{Backing, MAGIC};

use crate::{Disk, Extent, zeros};
use compressed::Last;
use entry::Place;
use file::{Clusters, WINDOW, index};
use header::Header;
use refcounts::Refcounts;
use write::New;

/// Why an image cannot be used, or not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It says what cannot be.
    #[error("the image is damaged: {0}; see what 'qemu-img check -r all' makes of it")]
    Damaged(&'static str),
    /// It has what is not known here.
    #[error("the image has {0}, which Umbra cannot read: make a plain copy with 'qemu-img convert -O qcow2'")]
    Unsupported(&'static str),
    /// It can be read.
    #[error(
        "the image has {0}, which Umbra does not write: add ',ro' or ',overlay', or make a plain copy with 'qemu-img convert -O qcow2'"
    )]
    NotWritable(&'static str),
    /// The host did not do it.
    #[error("the host cannot read or write it ({0})")]
    Host(io::ErrorKind),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Host(error.kind())
    }
}

/// A run of bytes that are in one place.
#[derive(Clone, Copy, Debug)]
struct Run {
    place: Place,
    len: u64,
}

/// An image.
pub struct Qcow2 {
    clusters: Clusters,
    header: Header,
    l1: Vec<AtomicU64>,
    below: Option<Arc<dyn Disk>>,
    last: Last,
    /// Held while entries of L2 tables are read or written, which the kernel may do byte by byte.
    entries: RwLock<()>,
    /// What changes tables; none if the image is only read.
    tables: Option<Mutex<Tables>>,
    /// Held by whoever reads clusters that he does not own.
    reading: RwLock<()>,
}

/// What changes tables.
#[derive(Debug)]
struct Tables {
    refcounts: Refcounts,
    /// The image is marked dirty.
    marked: bool,
    /// Some change has not come to its end, so the mark is to stay.
    broken: bool,
}

/// What an image says that it is made upon.
pub(crate) fn backing(file: &File) -> Result<Option<Backing>, Problem> {
    Ok(read_header(file)?.backing)
}

fn read_header(file: &File) -> Result<Header, Problem> {
    let mut bytes = vec![0; header::MOST_BYTES];
    let have = Targets::of(&mut bytes).read_up_to(file.as_fd(), 0)?;
    bytes.truncate(index(have));
    Header::parse(&bytes)
}

impl Qcow2 {
    /// Opens an image that is a file of `file_bytes` bytes and stands on `below`. What is written to it outlives a crash of
    /// the host if `durable`.
    ///
    /// # Errors
    /// If it is damaged, or has what cannot be read, or not be written.
    pub fn open(
        file: File,
        file_bytes: u64,
        below: Option<Arc<dyn Disk>>,
        read_only: bool,
        durable: bool,
    ) -> Result<Self, Problem> {
        let header = read_header(&file)?;
        let clusters = Clusters { file, bits: header.cluster_bits, durable };
        if header.l1_at.saturating_add(header.l1_entries * 8) > file_bytes {
            return Err(Problem::Damaged("its L1 table lies behind its end"));
        }
        let l1 = clusters.read_entries(header.l1_at, header.l1_entries)?;
        let tables =
            if read_only { None } else { Some(Mutex::new(writable(&clusters, &header, &l1, file_bytes)?)) };
        let l1 = l1.into_iter().map(AtomicU64::new).collect();
        Ok(Self {
            clusters,
            header,
            l1,
            below,
            last: Last::default(),
            entries: RwLock::default(),
            tables,
            reading: RwLock::default(),
        })
    }

    /// Where the L2 table is that has the entry of an offset, if there is one.
    fn l2_table(&self, offset: u64) -> io::Result<Option<u64>> {
        let number = offset / (self.clusters.l2_entries() << self.clusters.bits);
        let entry = self.l1.get(index(number)).map_or(0, |entry| entry.load(Ordering::Acquire));
        let at = entry::table(entry, self.clusters.bits).ok_or_else(damaged)?;
        Ok(Some(at).filter(|at| *at != 0))
    }

    /// Which entry of its L2 table is an offset's.
    fn l2_number(&self, offset: u64) -> u64 {
        (offset >> self.clusters.bits) % self.clusters.l2_entries()
    }

    /// Where the bytes from `offset` on are, `most` of them at most and those that one L2 table has at most.
    fn look_up(&self, offset: u64, most: u64) -> io::Result<Run> {
        let clusters = &self.clusters;
        let (inside, number) = (clusters.inside(offset), self.l2_number(offset));
        let touched = (inside + most).div_ceil(clusters.bytes()).min(clusters.l2_entries() - number);
        let Some(table) = self.l2_table(offset)? else {
            return Ok(Run { place: Place::Below, len: most.min((touched << clusters.bits) - inside) });
        };
        let entries = {
            let _whole = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            clusters.read_entries(table + number * 8, touched.min(WINDOW))?
        };
        let mut places = entries.iter().map(|entry| Place::of(*entry, clusters.bits));
        let first = places.next().flatten().ok_or_else(damaged)?;
        let mut end = clusters.bytes();
        for place in places {
            let goes_on = place.is_some_and(|place| first.goes_on(place, end));
            if !goes_on {
                break;
            }
            end += clusters.bytes();
        }
        let place = if let Place::Own(at) = first { Place::Own(at + inside) } else { first };
        Ok(Run { place, len: most.min(end - inside) })
    }

    /// Reads one run.
    fn read_run(&self, offset: u64, place: Place, to: &Targets<'_>) -> io::Result<()> {
        let inside = self.clusters.inside(offset);
        match place {
            Place::Own(at) => to.read_zero_padded(self.clusters.fd(), at),
            Place::Shared(at) => to.read_zero_padded(self.clusters.fd(), at + inside),
            Place::Zeros(_) => {
                to.zero();
                Ok(())
            }
            Place::Compressed { at, len } => {
                let cluster = self.last.cluster(&self.clusters, at, len)?;
                to.copy_from(cluster.get(index(inside)..).unwrap_or_default());
                Ok(())
            }
            Place::Below => self.read_below(offset, to),
        }
    }

    /// Reads what the image is made upon, which may be shorter, and is zeros if there is nothing.
    fn read_below(&self, offset: u64, to: &Targets<'_>) -> io::Result<()> {
        let have = self.below.as_ref().map_or(0, |below| below.bytes().saturating_sub(offset));
        match &self.below {
            Some(below) if have >= to.bytes() => return below.read(offset, to),
            Some(below) if have > 0 => below.read(offset, &to.part(0, have))?,
            _ => {}
        }
        to.part(have, to.bytes()).zero();
        Ok(())
    }

    /// Acts on each run of a range: `act` gets an offset and the run there, and returns how much of it is done.
    fn each_run(
        &self,
        offset: u64,
        len: u64,
        mut act: impl FnMut(u64, Run) -> io::Result<u64>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let run = self.look_up(offset + done, len - done)?;
            // Nothing is ever nothing; a loop that does not end would be worse.
            done += act(offset + done, run)?.max(1);
        }
        Ok(())
    }
}

/// Makes an image fit for writing: refuses what is not written, repairs what is marked, takes stale features away.
fn writable(clusters: &Clusters, header: &Header, l1: &[u64], file_bytes: u64) -> Result<Tables, Problem> {
    let (table_at, table_clusters) = (header.refcount_table_at, header.refcount_table_clusters);
    if header.refcount_order != header::REFCOUNT_ORDER {
        return Err(Problem::NotWritable("refcounts of an unusual width"));
    }
    if header.snapshots != 0 {
        return Err(Problem::NotWritable("snapshots inside"));
    }
    if l1.iter().any(|entry| *entry != 0 && entry & entry::OWN == 0) {
        return Err(Problem::NotWritable("tables that are used twice"));
    }
    if table_at.saturating_add(table_clusters << clusters.bits) > file_bytes {
        return Err(Problem::Damaged("its refcount table lies behind its end"));
    }
    let refcounts = Refcounts::new(clusters, table_at, table_clusters, file_bytes)?;
    // Before a cluster of theirs is free.
    if header.autoclear != 0 {
        clusters.write(&[0; 8], header::AUTOCLEAR_AT)?;
    }
    if header.incompatible & header::DIRTY != 0 {
        let found = check::Check::of(clusters, header, l1, &refcounts)?;
        if !found.repair(clusters, &refcounts)? {
            return Err(Problem::Damaged("its tables contradict each other"));
        }
    }
    let marked = header.incompatible & header::DIRTY != 0;
    Ok(Tables { refcounts, marked, broken: false })
}

/// Checks an image and changes nothing.
///
/// # Errors
/// If it cannot be read, or has what is not understood.
pub fn check(file: File, file_bytes: u64) -> Result<Report, Problem> {
    let (clusters, _, found, refcounts) = walk(file, file_bytes)?;
    found.report(&clusters, &refcounts)
}

/// Makes an image's refcounts say what its tables say, and takes the mark of an image that was not closed away. False, and nothing is
/// changed, if the tables contradict themselves.
///
/// # Errors
/// As [`check`]; or if it cannot be written.
pub fn repair(file: File, file_bytes: u64) -> Result<bool, Problem> {
    let (clusters, header, found, refcounts) = walk(file, file_bytes)?;
    let repaired = found.repair(&clusters, &refcounts)?;
    if repaired && header.incompatible & header::DIRTY != 0 {
        clusters
            .write_entries([header.incompatible & !header::DIRTY].into_iter(), header::INCOMPATIBLE_AT)?;
        clusters.barrier()?;
    }
    Ok(repaired)
}

/// Walks the tables of an image.
fn walk(file: File, file_bytes: u64) -> Result<(Clusters, Header, check::Check, Refcounts), Problem> {
    let header = read_header(&file)?;
    if header.refcount_order != header::REFCOUNT_ORDER || header.snapshots != 0 {
        return Err(Problem::Unsupported("snapshots or refcounts of an unusual width"));
    }
    // Bitmaps, for instance: what their clusters are is not known here, so they would count as lost.
    if header.autoclear != 0 {
        return Err(Problem::Unsupported("additions with clusters of their own, such as bitmaps"));
    }
    let clusters = Clusters { file, bits: header.cluster_bits, durable: true };
    let l1 = clusters.read_entries(header.l1_at, header.l1_entries)?;
    let (at, len) = (header.refcount_table_at, header.refcount_table_clusters);
    let refcounts = Refcounts::new(&clusters, at, len, file_bytes)?;
    let found = check::Check::of(&clusters, &header, &l1, &refcounts)?;
    Ok((clusters, header, found, refcounts))
}

/// What an image says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The format's version.
    pub version: u32,
    /// The disk's size.
    pub bytes: u64,
    /// The size of a cluster.
    pub cluster_bytes: u64,
    /// How many snapshots are inside.
    pub snapshots: u32,
    /// Whether it was closed; if not, its refcounts may be wrong.
    pub is_closed: bool,
    /// What it is made upon.
    pub backing: Option<Backing>,
}

/// What an image says of itself.
///
/// # Errors
/// If it is none, or not understood.
pub fn facts(file: &File) -> Result<Facts, Problem> {
    let header = read_header(file)?;
    Ok(Facts {
        version: header.version,
        bytes: header.bytes,
        cluster_bytes: 1 << header.cluster_bits,
        snapshots: header.snapshots,
        is_closed: header.incompatible & header::DIRTY == 0,
        backing: header.backing,
    })
}

/// The bits of an offset in a cluster of images that are made here.
const CLUSTER_BITS: u32 = 16;
/// The size of their clusters.
pub(crate) const CLUSTER_BYTES: usize = 1 << CLUSTER_BITS;

/// Makes an empty image of a disk of so many bytes in an empty file.
///
/// # Errors
/// If the host cannot write it, or no image can hold such a disk.
pub fn create(file: &File, bytes: u64, backing: Option<Backing>) -> io::Result<()> {
    let bits = CLUSTER_BITS;
    let clusters = Clusters { file: file.try_clone()?, bits, durable: true };
    if backing.as_ref().is_some_and(|backing| backing.name.len() > header::MOST_NAME) {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    // Whole clusters of entries.
    let l1_clusters = bytes.div_ceil(1 << (2 * bits - 3)).div_ceil(clusters.l2_entries());
    let l1_entries = l1_clusters * clusters.l2_entries();
    if l1_entries * 8 > header::MOST_L1_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let header = Header {
        version: 3,
        cluster_bits: bits,
        bytes,
        l1_at: 3 << bits,
        l1_entries,
        refcount_table_at: 1 << bits,
        refcount_table_clusters: 1,
        refcount_order: header::REFCOUNT_ORDER,
        snapshots: 0,
        incompatible: 0,
        autoclear: 0,
        backing,
    };
    // The header, the refcount table, its first block, the L1 table; the rest of the file is zeros.
    let used = 3 + l1_clusters;
    file.set_len(used << bits)?;
    clusters.write_entries([2 << bits].into_iter(), 1 << bits)?;
    clusters.write(&1u16.to_be_bytes().repeat(index(used)), 2 << bits)?;
    // What is not finished is no image.
    clusters.write(&header.bytes(), 0)
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a table of the image is damaged")
}

impl Disk for Qcow2 {
    fn bytes(&self) -> u64 {
        self.header.bytes
    }

    fn is_read_only(&self) -> bool {
        self.tables.is_none()
    }

    fn read(&self, offset: u64, to: &Targets<'_>) -> io::Result<()> {
        let _reading = self.reading.read().unwrap_or_else(PoisonError::into_inner);
        self.each_run(offset, to.bytes(), |at, run| {
            self.read_run(at, run.place, &to.part(at - offset, run.len))?;
            Ok(run.len)
        })
    }

    fn extent(&self, offset: u64, most: u64) -> io::Result<Extent> {
        let Run { place, len } = self.look_up(offset, most)?;
        let below = self.below.as_ref().filter(|_| place == Place::Below);
        let have = below.map_or(0, |below| below.bytes().saturating_sub(offset));
        match below {
            Some(below) if have > 0 => below.extent(offset, len.min(have)),
            _ => Ok(Extent { len, zeros: matches!(place, Place::Below | Place::Zeros(_)) }),
        }
    }

    fn write(&self, offset: u64, from: &Sources<'_>) -> io::Result<()> {
        self.each_run(offset, from.bytes(), |at, run| {
            let new = from.part(at - offset, run.len);
            match run.place {
                Place::Own(place) => self.clusters.write_from(&new, place).map(|()| run.len),
                _ => self.put(at, &New::Bytes(new)),
            }
        })
    }

    fn flush(&self) -> io::Result<()> {
        if self.tables.is_some() { self.clusters.barrier() } else { Ok(()) }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.writable()?;
        self.each_run(offset, len, |_, run| {
            if let Place::Own(at) = run.place {
                zeros::discard(&self.clusters.file, at, run.len)?;
            }
            Ok(run.len)
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.writable()?;
        self.each_run(offset, len, |at, run| match run.place {
            Place::Own(place) => self.clusters.zero(place, run.len, unmap).map(|()| run.len),
            Place::Zeros(_) => Ok(run.len),
            Place::Below if self.below.is_none() => Ok(run.len),
            _ => self.put_zeros(at, run.len),
        })
    }
}
