//! The header, as bytes (QEMU's docs/interop/qcow2.txt, "Header" and "Header extensions").
//!
//! Numbers are big-endian. What is read here is only what the bytes say and what makes them impossible; whether tables lie
//! inside the file is asked by whoever reads those.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::Problem;

/// "QFI\xfb".
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// The longest first cluster.
pub(super) const MOST_BYTES: usize = 2 << 20;
/// Where the refcount table's place is: its offset and its length in clusters.
pub(super) const REFCOUNT_TABLE_AT: u64 = 48;
/// Where the incompatible features are.
pub(super) const INCOMPATIBLE_AT: u64 = 72;
/// Where the features are that whoever does not know them has to clear.
pub(super) const AUTOCLEAR_AT: u64 = 88;
/// The incompatible feature that refcounts may be wrong.
pub(super) const DIRTY: u64 = 1;

const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// The only width of refcounts that is written: 16 bits.
pub(super) const REFCOUNT_ORDER: u32 = 4;
/// The bytes of tables that are held in memory.
pub(super) const MOST_L1_BYTES: u64 = 32 << 20;
const MOST_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// The longest name of a backing file.
pub(super) const MOST_NAME: usize = 1023;
/// The bytes of version 3's header that all have.
const HEADER: u32 = 104;
/// The header extension that says what format the backing file has.
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// What an image is made upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its name, as the image has it.
    pub name: OsString,
    /// Its format, if the image says.
    pub format: Option<String>,
}

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    /// The disk's size.
    pub(super) bytes: u64,
    pub(super) l1_at: u64,
    /// How many entries the L1 table has: those that the disk needs, or more if the disk was larger.
    pub(super) l1_entries: u64,
    pub(super) refcount_table_at: u64,
    pub(super) refcount_table_clusters: u64,
    pub(super) refcount_order: u32,
    pub(super) snapshots: u32,
    pub(super) incompatible: u64,
    pub(super) autoclear: u64,
    pub(super) backing: Option<Backing>,
}

/// The number at a place, if the bytes reach that far.
fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A number of ours that is small.
fn low32(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

const SHORT: Problem = Problem::Damaged("its header is cut off");

impl Header {
    /// Understands the first bytes of an image: its first cluster, or as much of it as there is.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        if !bytes.starts_with(&MAGIC) {
            return Err(Problem::Damaged("it does not begin as one"));
        }
        let word = |at| be32(bytes, at).ok_or(SHORT);
        let long = |at| be64(bytes, at).ok_or(SHORT);
        let version = word(4)?;
        let (incompatible, autoclear, refcount_order, header) = match version {
            2 => (0, 0, REFCOUNT_ORDER, 72),
            3 => (long(72)?, long(88)?, word(96)?, word(100)?),
            _ => return Err(Problem::Unsupported("a version other than 2 and 3")),
        };
        refuse_unknown(incompatible, word(32)?)?;
        let cluster_bits = word(20)?;
        if !(9..=21).contains(&cluster_bits) || refcount_order > 6 || (version == 3 && header < HEADER) {
            return Err(Problem::Damaged("its header has numbers that no image has"));
        }
        let cluster = bytes.get(..1 << cluster_bits).unwrap_or(bytes);
        let disk = long(24)?;
        // A cluster of entries, a cluster of data each.
        let (l1_entries, needed) = (u64::from(word(36)?), disk.div_ceil(1 << (2 * cluster_bits - 3)));
        let refcount_table_clusters = u64::from(word(56)?);
        if disk == 0 || !disk.is_multiple_of(512) || l1_entries < needed {
            return Err(Problem::Damaged("its size is no disk's, or its tables are too small for it"));
        }
        if l1_entries * 8 > MOST_L1_BYTES
            || refcount_table_clusters << cluster_bits > MOST_REFCOUNT_TABLE_BYTES
        {
            return Err(Problem::Unsupported("tables of this size"));
        }
        let (l1_at, refcount_table_at) = (long(40)?, long(48)?);
        let is_nowhere = l1_at == 0 || refcount_table_at == 0 || refcount_table_clusters == 0;
        if is_nowhere || !(l1_at | refcount_table_at).is_multiple_of(1 << cluster_bits) {
            return Err(Problem::Damaged("its tables are not where tables can be"));
        }
        Ok(Self {
            version,
            cluster_bits,
            bytes: disk,
            l1_at,
            l1_entries,
            refcount_table_at,
            refcount_table_clusters,
            refcount_order,
            snapshots: word(60)?,
            incompatible,
            autoclear,
            backing: backing(cluster, long(8)?, word(16)?, header)?,
        })
    }

    /// A new image's header: version 3, with everything where [`super::create`] puts it.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::from(MAGIC);
        let mut extensions = Vec::new();
        let (mut name_at, mut name) = (0, &[][..]);
        if let Some(backing) = &self.backing {
            name = backing.name.as_encoded_bytes();
            if let Some(format) = &backing.format {
                extensions.extend(BACKING_FORMAT.to_be_bytes());
                extensions.extend(low32(format.len() as u64).to_be_bytes());
                extensions.extend(format.as_bytes());
                extensions.resize(extensions.len().next_multiple_of(8), 0);
            }
            name_at = u64::from(HEADER) + extensions.len() as u64 + 8;
        }
        bytes.extend(self.version.to_be_bytes());
        bytes.extend(name_at.to_be_bytes());
        bytes.extend(low32(name.len() as u64).to_be_bytes());
        bytes.extend(self.cluster_bits.to_be_bytes());
        bytes.extend(self.bytes.to_be_bytes());
        bytes.extend(0u32.to_be_bytes());
        bytes.extend(low32(self.l1_entries).to_be_bytes());
        bytes.extend(self.l1_at.to_be_bytes());
        bytes.extend(self.refcount_table_at.to_be_bytes());
        bytes.extend(low32(self.refcount_table_clusters).to_be_bytes());
        // No snapshots; no features.
        bytes.extend([0; 4 + 8 + 8 + 8 + 8]);
        bytes.extend(self.refcount_order.to_be_bytes());
        bytes.extend(HEADER.to_be_bytes());
        bytes.extend(extensions);
        bytes.extend([0; 8]);
        bytes.extend(name);
        bytes
    }
}

/// Refuses what cannot be read without being understood.
fn refuse_unknown(incompatible: u64, encryption: u32) -> Result<(), Problem> {
    let refusals = [
        (encryption != 0, "encryption"),
        (incompatible & EXTERNAL_DATA != 0, "a data file of its own"),
        (incompatible & COMPRESSION_TYPE != 0, "compression other than zlib"),
        (incompatible & EXTENDED_L2 != 0, "subclusters"),
        (incompatible & !(DIRTY | CORRUPT) != 0, "a feature that is not known here"),
    ];
    match refusals.into_iter().find(|(is, _)| *is) {
        Some((_, what)) => Err(Problem::Unsupported(what)),
        None if incompatible & CORRUPT != 0 => Err(Problem::Damaged("it is marked as corrupt")),
        None => Ok(()),
    }
}

/// What the image is made upon: its name lies in the first cluster, its format in a header extension.
fn backing(cluster: &[u8], at: u64, len: u32, header: u32) -> Result<Option<Backing>, Problem> {
    if at == 0 {
        return Ok(None);
    }
    const WRONG: Problem = Problem::Damaged("it does not say right what it is made upon");
    let at = usize::try_from(at).map_err(|_| WRONG)?;
    if len == 0 || len as usize > MOST_NAME {
        return Err(WRONG);
    }
    let name = cluster.get(at..).and_then(|rest| rest.get(..len as usize)).ok_or(WRONG)?;
    if name.contains(&0) {
        return Err(WRONG);
    }
    Ok(Some(Backing { name: OsString::from_vec(name.to_vec()), format: format(cluster, header as usize) }))
}

/// The backing file's format, out of the header extensions from `at` on.
fn format(cluster: &[u8], mut at: usize) -> Option<String> {
    loop {
        let (kind, len) = (be32(cluster, at)?, be32(cluster, at.checked_add(4)?)? as usize);
        let data = cluster.get(at.checked_add(8)?..)?.get(..len)?;
        match kind {
            0 => return None,
            BACKING_FORMAT => return Some(String::from_utf8_lossy(data).into_owned()),
            _ => at = at.checked_add(8)?.checked_add(len.checked_next_multiple_of(8)?)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            version: 3,
            cluster_bits: 16,
            bytes: 3 << 30,
            l1_at: 3 << 16,
            l1_entries: 6,
            refcount_table_at: 1 << 16,
            refcount_table_clusters: 1,
            refcount_order: 4,
            snapshots: 0,
            incompatible: 0,
            autoclear: 0,
            backing: None,
        }
    }

    #[test]
    fn what_is_written_is_understood() {
        for format in [None, Some("raw".to_owned()), Some("eightlet".to_owned())] {
            let backing = Some(Backing { name: "base of it".into(), format });
            let header = Header { backing, ..header() };
            assert_eq!(Header::parse(&header.bytes()), Ok(header));
        }
        assert_eq!(Header::parse(&header().bytes()), Ok(header()));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = header().bytes();
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            Header::parse(&bytes)
        };
        assert_eq!(with(23, 16).unwrap(), header());
        for (at, value) in [
            (0, b'X'),
            (7, 4),
            (23, 8),
            (23, 22),
            (35, 1),
            (31, 1),
            (24, 0x7f),
            (47, 1),
            (55, 1),
            (45, 0),
            (53, 0),
            (59, 0),
            (56, 0xff),
            (79, 2),
            (79, 4),
            (79, 8),
            (79, 16),
            (72, 1),
            (99, 7),
            (103, 8),
        ] {
            assert!(with(at, value).is_err(), "{at} {value}");
        }
        for len in 0..104 {
            assert!(Header::parse(&good[..len]).is_err(), "{len}");
        }
    }
}
