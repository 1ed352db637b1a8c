//! What a VM in the background printed: frames (see [`super::protocol`]) in a file, and when that is large, in a second, older
//! one. Standard output and standard error stay apart, in their order. The oldest are forgotten, so that no guest can fill the
//! host's memory, where these files usually are.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use control::Kind;

/// The newer file.
pub(super) const NEW: &str = "log";
/// The older one.
pub(super) const OLD: &str = "log.old";
/// How long a file becomes.
const LONGEST: u64 = 4 << 20;

/// Writes a log.
pub(super) struct Writer {
    directory: PathBuf,
    file: File,
    len: u64,
}

impl Writer {
    /// A new log in this directory.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn create(directory: &Path) -> io::Result<Self> {
        Ok(Self { directory: directory.to_owned(), file: File::create(directory.join(NEW))?, len: 0 })
    }

    /// Appends.
    ///
    /// # Errors
    /// If the host has no room.
    pub(super) fn write(&mut self, kind: Kind, bytes: &[u8]) -> io::Result<()> {
        if self.len >= LONGEST {
            std::fs::rename(self.directory.join(NEW), self.directory.join(OLD))?;
            *self = Self::create(&self.directory)?;
        }
        let written =
            control::send_frames(&mut self.file, kind, bytes).and_then(|()| self.file.stream_position());
        // Behind half a frame nobody finds the next one: that goes into a new file.
        self.len = *written.as_ref().unwrap_or(&LONGEST);
        written.map(drop)
    }
}

/// Reads a log, also one that is being written.
pub(super) struct Reader {
    directory: PathBuf,
    file: File,
    /// Up to where the frames of the file have been read.
    position: u64,
}

impl Reader {
    /// The log in this directory, from its beginning.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let file = File::open(directory.join(OLD)).or_else(|_| File::open(directory.join(NEW)))?;
        Ok(Self { directory: directory.to_owned(), file, position: 0 })
    }

    /// The next frame; none if there is no more by now.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn next(&mut self) -> io::Result<Option<(Kind, Vec<u8>)>> {
        loop {
            // Asked before the file is read to its end: nothing is appended to one that is not the newest any more.
            let newest = self.newest()?;
            if let Some(frame) = self.next_here()? {
                return Ok(Some(frame));
            }
            match newest {
                Some(newest) => (self.file, self.position) = (newest, 0),
                None => return Ok(None),
            }
        }
    }

    /// The newest file, if it is another than the one that is read.
    fn newest(&self) -> io::Result<Option<File>> {
        let Ok(newest) = File::open(self.directory.join(NEW)) else { return Ok(None) };
        let is_other = newest.metadata()?.ino() != self.file.metadata()?.ino();
        Ok(is_other.then_some(newest))
    }

    fn next_here(&mut self) -> io::Result<Option<(Kind, Vec<u8>)>> {
        self.file.seek(SeekFrom::Start(self.position))?;
        match control::read_frame(&mut self.file) {
            Ok(Some(frame)) => {
                self.position = self.file.stream_position()?;
                Ok(Some(frame))
            }
            // Half written: it will be whole.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            other => other,
        }
    }
}

/// The last lines.
pub(super) fn tail(frames: Vec<(Kind, Vec<u8>)>, lines: usize) -> Vec<(Kind, Vec<u8>)> {
    let mut left = lines;
    let mut is_last_byte = true;
    let mut kept = Vec::new();
    for (kind, bytes) in frames.into_iter().rev() {
        let mut from = bytes.len();
        while from > 0 {
            let is_end = bytes.get(from - 1) == Some(&b'\n');
            // The end of the last line begins no other.
            if is_end && !is_last_byte {
                left = left.saturating_sub(1);
            }
            if left == 0 {
                break;
            }
            is_last_byte = false;
            from -= 1;
        }
        kept.push((kind, bytes.get(from..).unwrap_or_default().to_vec()));
        if left == 0 {
            break;
        }
    }
    kept.reverse();
    kept
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_log_is_read_while_it_is_written_and_forgets_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Reader::open(dir.path()).is_err());
        let mut writer = Writer::create(dir.path()).unwrap();
        let mut reader = Reader::open(dir.path()).unwrap();
        assert!(reader.next().unwrap().is_none());
        let part = vec![b'x'; control::LARGEST_FRAME];
        let frames = 3 * LONGEST / part.len() as u64;
        for number in 0..frames {
            writer.write(Kind::Output, &part).unwrap();
            assert_eq!(reader.next().unwrap(), Some((Kind::Output, part.clone())), "{number}");
        }
        writer.write(Kind::Error, b"last").unwrap();
        assert_eq!(reader.next().unwrap(), Some((Kind::Error, b"last".to_vec())));
        assert!(reader.next().unwrap().is_none());
        let size = |name| std::fs::metadata(dir.path().join(name)).unwrap().len();
        assert!(size(OLD) + size(NEW) < 3 * LONGEST);
        let mut again = Reader::open(dir.path()).unwrap();
        let kept = std::iter::from_fn(|| again.next().unwrap()).count() as u64;
        assert!(kept < frames && kept > LONGEST / part.len() as u64);
    }

    #[test]
    fn what_did_not_fit_is_lost_and_nothing_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(dir.path()).unwrap();
        writer.write(Kind::Output, b"before").unwrap();
        let mut reader = Reader::open(dir.path()).unwrap();
        assert_eq!(reader.next().unwrap(), Some((Kind::Output, b"before".to_vec())));
        // The host has room for three bytes, and then for none.
        writer.file.write_all(&[Kind::Output as u8, 9, 0]).unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let file = std::mem::replace(&mut writer.file, full);
        assert!(writer.write(Kind::Output, b"lost").is_err());
        writer.file = file;
        writer.write(Kind::Error, b"after").unwrap();
        assert_eq!(reader.next().unwrap(), Some((Kind::Error, b"after".to_vec())));
        assert_eq!(reader.next().unwrap(), None);
    }

    #[test]
    fn half_a_frame_is_no_frame_yet() {
        let dir = tempfile::tempdir().unwrap();
        let mut frame = Vec::new();
        control::send_frames(&mut frame, Kind::Output, b"whole").unwrap();
        std::fs::write(dir.path().join(NEW), &frame[..7]).unwrap();
        let mut reader = Reader::open(dir.path()).unwrap();
        assert!(reader.next().unwrap().is_none());
        std::fs::write(dir.path().join(NEW), &frame).unwrap();
        assert_eq!(reader.next().unwrap(), Some((Kind::Output, b"whole".to_vec())));
    }

    #[test]
    fn the_last_lines_are_the_last_lines() {
        let log = || vec![(Kind::Output, b"one\ntw".to_vec()), (Kind::Error, b"o\nthree\n".to_vec())];
        let text = |lines| {
            let frames = tail(log(), lines);
            String::from_utf8(frames.into_iter().flat_map(|(_, bytes)| bytes).collect()).unwrap()
        };
        assert_eq!(text(0), "");
        assert_eq!(text(1), "three\n");
        assert_eq!(text(2), "two\nthree\n");
        assert_eq!((text(3), text(9)), ("one\ntwo\nthree\n".into(), "one\ntwo\nthree\n".into()));
        assert_eq!(tail(vec![(Kind::Output, b"a\nb".to_vec())], 1), [(Kind::Output, b"b".to_vec())]);
    }
}
