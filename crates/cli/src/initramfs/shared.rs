//! The initial RAM disk of a guest whose root is shared: drivers, settings, and the program that does the rest ([`init`]).

use ::init::{MODULES, SETTINGS, Settings};
use ::initramfs::Archive;

use crate::debian::Module;

/// The first process, as the build made it.
const INIT: &[u8] = include_bytes!(env!("UMBRA_INIT"));

/// Makes the archive.
pub(crate) fn build(settings: &Settings, modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "umbra"] {
        archive.directory(directory);
    }
    // What the first messages go to, before devtmpfs is there.
    archive.character_device("dev/console", 5, 1);
    archive.program("init", INIT);
    archive.file(SETTINGS.trim_start_matches('/'), &settings.encode());
    super::add_modules(&mut archive, MODULES, modules);
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_process_needs_no_libraries() {
        // An interpreter is named by a program header of type 3 (PT_INTERP).
        let word = |at: usize, len: usize| {
            INIT[at..at + len].iter().rev().fold(0, |word: usize, byte| word << 8 | usize::from(*byte))
        };
        assert_eq!(&INIT[..4], b"\x7fELF");
        let (table, size, count) = (word(32, 8), word(54, 2), word(56, 2));
        assert!(count > 2 && (0..count).all(|number| word(table + number * size, 4) != 3));
    }

    #[test]
    fn everything_is_where_it_is_looked_for() {
        let module = Module { name: "fuse".into(), bytes: b"ELF".to_vec() };
        let bytes = build(&Settings { hostname: "h".into(), ..Settings::default() }, &[module]);
        let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
        assert!(has(b"umbra/modules/00-fuse.ko\0") && has(b"umbra/settings\0") && has(b"hostname=h\0"));
    }
}
