//! Names of generated code for Linux's profiler.
//!
//! `perf` knows no symbol for code that was made at run time. It looks for `/tmp/perf-PID.map`, a line for each piece
//! of code: start and size in hexadecimal, name (Linux, `tools/perf/Documentation/jit-interface.txt`). It reads the file when it reports,
//! so of code that was replaced, the last name wins.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::HostError;

/// This process's map.
#[derive(Debug)]
pub struct PerfMap(Mutex<File>);

/// The map, made anew by the first who asks.
///
/// # Errors
/// If the file cannot be made.
pub fn map() -> Result<&'static PerfMap, HostError> {
    static MAP: OnceLock<PerfMap> = OnceLock::new();
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(map) = MAP.get() {
        return Ok(map);
    }
    let path = PathBuf::from(format!("/tmp/perf-{}.map", std::process::id()));
    // What an earlier process of this number left. Anybody may put something in our place there, hence a new file.
    let _ = fs::remove_file(&path);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let file = file.map_err(|source| HostError::PerfMap { path, source })?;
    Ok(MAP.get_or_init(|| PerfMap(Mutex::new(file))))
}

impl PerfMap {
    /// Names the code at these addresses. A name that cannot be written is a name that the profile lacks.
    pub fn add(&self, code: &Range<u64>, name: &str) {
        let line = format!("{:x} {:x} {name}\n", code.start, code.end.saturating_sub(code.start));
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_perf_expects_them() {
        map().unwrap().add(&(0x7f00_0000_1000..0x7f00_0000_1040), "guest:user:0x401000");
        assert!(std::ptr::eq(map().unwrap(), map().unwrap()));
        let path = format!("/tmp/perf-{}.map", std::process::id());
        assert_eq!(fs::read_to_string(&path).unwrap(), "7f0000001000 40 guest:user:0x401000\n");
        fs::remove_file(path).unwrap();
    }
}
