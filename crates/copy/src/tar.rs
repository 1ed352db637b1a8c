//! The archive format of tar(1): POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; of GNU's extensions long
//! names and large numbers, which are read and not written.
//!
//! An archive is a row of entries, each a block of 512 bytes that says what it is and so many blocks with its contents, and ends with a
//! block of zeros.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::CopyError;

const BLOCK: usize = 512;
/// Names and extended headers are not longer.
const LONGEST: u64 = 64 << 10;
/// From here on a file's length does not fit into eleven octal digits.
const LARGE: u64 = 1 << 33;

/// The fields of a header: where they begin, and how long they are.
const NAME: (usize, usize) = (0, 100);
const MODE: (usize, usize) = (100, 8);
const SIZE: (usize, usize) = (124, 12);
const TIME: (usize, usize) = (136, 12);
const CHECKSUM: (usize, usize) = (148, 8);
const KIND: usize = 156;
const LINK: (usize, usize) = (157, 100);
const MAGIC: (usize, usize) = (257, 8);
const PREFIX: (usize, usize) = (345, 155);

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// Another name of an entry that came before.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A device or the like.
    Special,
}

/// An entry, but for its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Its permissions.
    pub mode: u32,
    /// When it was changed, in seconds since 1970.
    pub time: u64,
    /// The length of its contents.
    pub bytes: u64,
    /// Where a link leads.
    pub link: PathBuf,
}

/// Writes an archive.
pub struct Writer<W>(W);

impl<W: Write> Writer<W> {
    /// To here.
    pub fn new(to: W) -> Self {
        Self(to)
    }

    /// Begins an entry; as many bytes as it says have to follow, see [`Self::contents`].
    ///
    /// # Errors
    /// If nobody takes it.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        let (path, link) = (entry.path.as_os_str().as_bytes(), entry.link.as_os_str().as_bytes());
        let mut records = Vec::new();
        for (key, value, fits) in [
            ("path", path, path.len() <= NAME.1),
            ("linkpath", link, link.len() <= LINK.1),
            ("size", entry.bytes.to_string().as_bytes(), entry.bytes < LARGE),
        ] {
            if !fits {
                records.extend(record(key, value));
            }
        }
        if !records.is_empty() {
            self.0.write_all(&header(b"pax", b'x', 0o644, 0, records.len() as u64, b""))?;
            self.contents(&mut records.as_slice(), records.len() as u64)?;
        }
        let kind = match entry.kind {
            Kind::File | Kind::Special => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::Directory => b'5',
        };
        let bytes = if entry.bytes < LARGE { entry.bytes } else { 0 };
        self.0.write_all(&header(path, kind, entry.mode, entry.time, bytes, link))
    }

    /// Writes an entry's contents: exactly so many bytes, if need be zeros, for a file may be cut off while it is read.
    ///
    /// # Errors
    /// If they cannot be read, or nobody takes them.
    pub fn contents(&mut self, from: &mut dyn Read, bytes: u64) -> io::Result<()> {
        let copied = io::copy(&mut from.take(bytes), &mut self.0)?;
        io::copy(&mut io::repeat(0).take(bytes - copied + padding(bytes)), &mut self.0).map(drop)
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// If nobody takes it.
    pub fn finish(mut self) -> io::Result<()> {
        self.0.write_all(&[0; 2 * BLOCK])?;
        self.0.flush()
    }
}

/// What fills an entry's last block.
fn padding(bytes: u64) -> u64 {
    bytes.wrapping_neg() % BLOCK as u64
}

/// A record of an extended header begins with its own length in decimal digits.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + " =\n".len();
    let mut total = rest + 1;
    while rest + total.to_string().len() != total {
        total += 1;
    }
    [format!("{total} {key}=").as_bytes(), value, b"\n"].concat()
}

fn header(path: &[u8], kind: u8, mode: u32, time: u64, bytes: u64, link: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |(at, len): (usize, usize), value: &[u8]| {
        for (to, from) in block.iter_mut().skip(at).take(len).zip(value) {
            *to = *from;
        }
    };
    put(NAME, path);
    put(MODE, format!("{:07o}", mode & 0o7777).as_bytes());
    // Owner and group are who receives it.
    put((108, 16), b"0000000\x000000000\x00");
    put(SIZE, format!("{bytes:011o}").as_bytes());
    put(TIME, format!("{:011o}", time.min(LARGE - 1)).as_bytes());
    put((KIND, 1), &[kind]);
    put(LINK, link);
    put(MAGIC, b"ustar\x0000");
    let sum = checksum(&block);
    for (to, from) in block.iter_mut().skip(CHECKSUM.0).zip(format!("{sum:06o}\0 ").into_bytes()) {
        *to = from;
    }
    block
}

/// The sum of all bytes, with spaces for the sum itself.
fn checksum(block: &[u8; BLOCK]) -> u32 {
    let own = CHECKSUM.0..CHECKSUM.0 + CHECKSUM.1;
    let bytes = block.iter().enumerate();
    bytes.map(|(at, byte)| if own.contains(&at) { u32::from(b' ') } else { u32::from(*byte) }).sum()
}

/// Reads an archive.
pub struct Reader<R> {
    from: R,
    /// What is left of the present entry's contents, and of its last block.
    left: u64,
    padding: u64,
}

/// What comes before an entry and is meant for it.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    bytes: Option<u64>,
}

impl<R: Read> Reader<R> {
    /// From here.
    pub fn new(from: R) -> Self {
        Self { from, left: 0, padding: 0 }
    }

    /// The next entry; none at the end.
    ///
    /// # Errors
    /// If there is none.
    pub fn entry(&mut self) -> Result<Option<Entry>, CopyError> {
        let mut extended = Extended::default();
        loop {
            self.skip()?;
            let mut block = [0; BLOCK];
            self.from.read_exact(&mut block).map_err(CopyError::CutShort)?;
            if block.iter().all(|byte| *byte == 0) {
                // Who sends the rest is not to find that nobody takes it.
                io::copy(&mut self.from, &mut io::sink()).map_err(CopyError::CutShort)?;
                return Ok(None);
            }
            let stated = number(field(&block, CHECKSUM));
            if stated != Some(u64::from(checksum(&block))) {
                return Err(CopyError::Damaged("a checksum is wrong"));
            }
            let bytes = number(field(&block, SIZE)).ok_or(CopyError::Damaged("a length is none"))?;
            let kind = block.get(KIND).copied().unwrap_or(0);
            self.begin(bytes);
            match kind {
                b'x' => self.records(&mut extended)?,
                b'g' => {}
                b'L' => extended.path = Some(self.text()?),
                b'K' => extended.link = Some(self.text()?),
                _ => return self.entry_of(&block, kind, extended).map(Some),
            }
        }
    }

    fn entry_of(&mut self, block: &[u8; BLOCK], kind: u8, extended: Extended) -> Result<Entry, CopyError> {
        let kind = match kind {
            b'0' | b'7' | 0 => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'5' => Kind::Directory,
            _ => Kind::Special,
        };
        if let Some(bytes) = extended.bytes {
            self.begin(bytes);
        }
        // Whatever else has a length has no contents (POSIX: it is ignored for them).
        if !matches!(kind, Kind::File | Kind::Special) {
            self.begin(0);
        }
        let path = extended.path.unwrap_or_else(|| {
            let (prefix, name) = (text(field(block, PREFIX)), text(field(block, NAME)));
            let is_posix = field(block, MAGIC) == b"ustar\x0000";
            if is_posix && !prefix.is_empty() { [prefix, b"/", name].concat() } else { name.to_vec() }
        });
        let link = extended.link.unwrap_or_else(|| text(field(block, LINK)).to_vec());
        // Before there were directories in the format, a slash said it.
        let kind = if kind == Kind::File && path.ends_with(b"/") { Kind::Directory } else { kind };
        Ok(Entry {
            path: path_of(path)?,
            kind,
            mode: number(field(block, MODE)).unwrap_or(0o644) as u32 & 0o7777,
            time: number(field(block, TIME)).unwrap_or(0),
            bytes: self.left,
            link: path_of(link)?,
        })
    }

    /// The contents of the entry that was last read.
    pub fn contents(&mut self) -> impl Read {
        Contents(self)
    }

    fn begin(&mut self, bytes: u64) {
        (self.left, self.padding) = (bytes, padding(bytes));
    }

    /// Passes what is left of an entry.
    fn skip(&mut self) -> Result<(), CopyError> {
        for part in [self.left, self.padding] {
            io::copy(&mut (&mut self.from).take(part), &mut io::sink()).map_err(CopyError::CutShort)?;
        }
        self.begin(0);
        Ok(())
    }

    /// The contents of an entry that is meant for the next one.
    fn text(&mut self) -> Result<Vec<u8>, CopyError> {
        if self.left > LONGEST {
            return Err(CopyError::Damaged("a name is too long"));
        }
        let mut bytes = Vec::new();
        Contents(self).read_to_end(&mut bytes).map_err(CopyError::CutShort)?;
        bytes.truncate(text(&bytes).len());
        Ok(bytes)
    }

    fn records(&mut self, extended: &mut Extended) -> Result<(), CopyError> {
        let bytes = self.text()?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (key, value, behind) =
                next_record(rest).ok_or(CopyError::Damaged("an extended header is none"))?;
            match key {
                b"path" => extended.path = Some(value.to_vec()),
                b"linkpath" => extended.link = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    extended.bytes = Some(size.ok_or(CopyError::Damaged("a length is none"))?);
                }
                _ => {}
            }
            rest = behind;
        }
        Ok(())
    }
}

/// Of one entry, to its end.
struct Contents<'a, R>(&'a mut Reader<R>);

impl<R: Read> Read for Contents<'_, R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.0.left).unwrap_or(usize::MAX).min(to.len());
        let Some(to) = to.get_mut(..most).filter(|to| !to.is_empty()) else { return Ok(0) };
        let read = self.0.from.read(to)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.left -= read as u64;
        Ok(read)
    }
}

fn field(block: &[u8; BLOCK], (at, len): (usize, usize)) -> &[u8] {
    block.get(at..at + len).unwrap_or_default()
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits, or with the first bit set a number of that many bytes (GNU).
fn number(field: &[u8]) -> Option<u64> {
    if let [0x80, digits @ ..] = field {
        let (high, low) = digits.split_at_checked(digits.len().checked_sub(8)?)?;
        let low = <[u8; 8]>::try_from(low).ok()?;
        return high.iter().all(|byte| *byte == 0).then_some(u64::from_be_bytes(low));
    }
    let digits = std::str::from_utf8(text(field)).ok()?.trim_matches(' ');
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

/// The key and the value of a record, and what is behind it.
fn next_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let len: usize = std::str::from_utf8(bytes.get(..space)?).ok()?.parse().ok()?;
    let record = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((record.get(..equals)?, record.get(equals + 1..)?, bytes.get(len..)?))
}

fn path_of(bytes: Vec<u8>) -> Result<PathBuf, CopyError> {
    if bytes.contains(&0) {
        return Err(CopyError::Damaged("a name has a NUL in it"));
    }
    Ok(Path::new(&OsString::from_vec(bytes)).to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn file(path: &str, bytes: u64) -> Entry {
        Entry { path: path.into(), kind: Kind::File, mode: 0o644, time: 1, bytes, link: PathBuf::new() }
    }

    #[test]
    fn entries_come_back_whatever_their_names() {
        let long = "d/".repeat(200) + "f";
        let link = Entry { kind: Kind::Symlink, link: long.clone().into(), ..file("link", 0) };
        let directory = Entry { kind: Kind::Directory, mode: 0o755, ..file("d", 0) };
        let sent = [file("a", 3), directory, file(&long, 513), link, file(&"x".repeat(100), 0)];
        let mut archive = Vec::new();
        let mut writer = Writer::new(&mut archive);
        for entry in &sent {
            writer.entry(entry).unwrap();
            writer.contents(&mut io::repeat(b'x'), entry.bytes).unwrap();
        }
        writer.finish().unwrap();
        let mut reader = Reader::new(archive.as_slice());
        for entry in &sent {
            assert_eq!(reader.entry().unwrap().as_ref(), Some(entry));
            let mut contents = Vec::new();
            reader.contents().read_to_end(&mut contents).unwrap();
            assert!(contents == vec![b'x'; entry.bytes as usize]);
        }
        assert_eq!(reader.entry().unwrap(), None);
        assert!(matches!(
            {
                Reader::new(&archive[..700]).entry().unwrap();
                Reader::new(&archive[..100]).entry()
            },
            Err(CopyError::CutShort(_))
        ));
    }

    #[test]
    fn large_files_have_a_length() {
        let mut archive = Vec::new();
        Writer::new(&mut archive).entry(&file("a", LARGE)).unwrap();
        assert_eq!(Reader::new(archive.as_slice()).entry().unwrap().unwrap().bytes, LARGE);
        let mut field = [0_u8; 12];
        (field[0], field[11]) = (0x80, 7);
        assert_eq!((number(&field), number(b"0000644\0"), number(b"x")), (Some(7), Some(0o644), None));
    }

    #[test]
    fn tar_reads_what_is_written_and_the_other_way() {
        let dir = tempfile::tempdir().unwrap();
        let (long, path) = ("n".repeat(150), dir.path().join("a.tar"));
        let mut writer = Writer::new(std::fs::File::create(&path).unwrap());
        writer.entry(&file(&long, 5)).unwrap();
        writer.contents(&mut &b"hello"[..], 5).unwrap();
        writer.finish().unwrap();
        let tar = |args: &[&str]| {
            Command::new("tar").args(args).arg(&path).current_dir(dir.path()).output().unwrap()
        };
        assert!(tar(&["-xf"]).status.success());
        assert_eq!(std::fs::read(dir.path().join(&long)).unwrap(), b"hello");
        for format in ["gnu", "pax", "ustar", "v7"] {
            let (name, made) = (if format == "v7" { "short" } else { &long }, dir.path().join("b.tar"));
            let name = if format == "ustar" { "short" } else { name };
            std::fs::write(dir.path().join(name), "there").unwrap();
            let status = Command::new("tar")
                .args(["-c", "--format", format, "-f"])
                .args([made.as_os_str(), name.as_ref()])
                .current_dir(dir.path())
                .status();
            assert!(status.unwrap().success());
            let mut reader = Reader::new(std::fs::File::open(made).unwrap());
            let entry = reader.entry().unwrap().unwrap();
            assert_eq!((entry.path.to_str().unwrap(), entry.bytes), (name, 5), "{format}");
            assert_eq!(reader.entry().unwrap(), None);
        }
    }

    proptest! {
        #[test]
        fn nonsense_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut reader = Reader::new(bytes.as_slice());
            while let Ok(Some(_)) = reader.entry() {}
        }

        #[test]
        fn fields_of_any_kind_are_survived(kind: u8, size in "[0-9 \\PC]{0,11}", body in proptest::collection::vec(any::<u8>(), 512..1024)) {
            let mut block = header(b"a", kind, 0, 0, 0, b"");
            block[SIZE.0..SIZE.0 + SIZE.1].fill(0);
            let size = &size.as_bytes()[..size.len().min(SIZE.1)];
            block[SIZE.0..SIZE.0 + size.len()].copy_from_slice(size);
            let sum = checksum(&block);
            block[CHECKSUM.0..CHECKSUM.0 + CHECKSUM.1].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            let archive = [&block[..], &body].concat();
            let mut reader = Reader::new(archive.as_slice());
            while let Ok(Some(_)) = reader.entry() {}
        }
    }
}
