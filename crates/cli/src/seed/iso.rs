//! A volume with a few files in one directory, as ECMA-119 (ISO 9660) has it, with their real names, as the Rock Ridge Interchange Protocol
//! (IEEE P1282) has them.
//!
//! Sectors 0 to 15 are empty; 16 says what the volume is, 17 that this was all of that; 18 and 19 are the path table, in either order of
//! bytes; 20 is the directory; the files follow, each from the beginning of a sector.

/// A sector's bytes.
const SECTOR: usize = 2048;
const PATHS: [u32; 2] = [18, 19];
const DIRECTORY: u32 = 20;
/// The first of the files.
const FILES: u32 = 21;
/// The path table has one path, the root's.
const PATH_BYTES: u32 = 10;

/// Permissions of the directory and of files, with what they are (stat(2)).
const DIRECTORY_MODE: u32 = 0o04_0555;
const FILE_MODE: u32 = 0o10_0444;

/// Makes the volume. Names have at most 32 bytes, and the files at most half a sector of directory entries: a dozen.
pub(super) fn volume(label: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    let sectors = |bytes: usize| bytes.div_ceil(SECTOR) as u32;
    let total = FILES + files.iter().map(|(_, contents)| sectors(contents.len())).sum::<u32>();
    let mut image = vec![0; total as usize * SECTOR];
    let mut put = |sector: u32, bytes: &[u8]| {
        let at = sector as usize * SECTOR;
        if let Some(to) = image.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    };
    put(16, &primary(label, total));
    put(17, b"\xffCD001\x01");
    for (sector, root) in PATHS.into_iter().zip([DIRECTORY.to_le_bytes(), DIRECTORY.to_be_bytes()]) {
        // The root is its own parent, the first directory.
        let parent = if sector == PATHS[0] { [1, 0] } else { [0, 1] };
        put(sector, &[&[1, 0][..], &root, &parent, &[0, 0]].concat());
    }
    let mut directory =
        record(&[0], DIRECTORY, SECTOR as u32, true, &[announcement(), mode(DIRECTORY_MODE)].concat());
    directory.extend(record(&[1], DIRECTORY, SECTOR as u32, true, &mode(DIRECTORY_MODE)));
    let mut sector = FILES;
    for (number, (name, contents)) in files.iter().enumerate() {
        // What those see who know no longer names, in order.
        let short = format!("FILE{number:04}.;1");
        let extensions = [mode(FILE_MODE), real_name(name)].concat();
        directory.extend(record(short.as_bytes(), sector, contents.len() as u32, false, &extensions));
        put(sector, contents);
        sector += sectors(contents.len());
    }
    put(DIRECTORY, &directory);
    image
}

/// A number in both orders of bytes (7.3.3).
fn both(number: u32) -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (number.to_le_bytes(), number.to_be_bytes());
    [a, b, c, d, e, f, g, h]
}

/// The same for a number of two bytes (7.2.3).
fn both16(number: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (number.to_le_bytes(), number.to_be_bytes());
    [a, b, c, d]
}

/// The primary volume descriptor (8.4).
fn primary(label: &str, sectors: u32) -> Vec<u8> {
    let spaces = |bytes: usize| vec![b' '; bytes];
    let mut name = label.as_bytes().to_vec();
    name.resize(32, b' ');
    let table = [PATHS[0].to_le_bytes(), [0; 4], PATHS[1].to_be_bytes(), [0; 4]].concat();
    let no_date = [&[b'0'; 16][..], &[0]].concat();
    [
        b"\x01CD001\x01\0".to_vec(),
        spaces(32),
        name,
        vec![0; 8],
        both(sectors).to_vec(),
        vec![0; 32],
        both16(1).to_vec(),
        both16(1).to_vec(),
        both16(SECTOR as u16).to_vec(),
        both(PATH_BYTES).to_vec(),
        table,
        record(&[0], DIRECTORY, SECTOR as u32, true, &[]),
        // Who made it, of what, and which files say more: nobody.
        spaces(4 * 128 + 3 * 37),
        no_date.repeat(4),
        vec![1, 0],
    ]
    .concat()
}

/// A directory record (9.1) with what the extensions say of it.
fn record(name: &[u8], sector: u32, bytes: u32, directory: bool, extensions: &[u8]) -> Vec<u8> {
    // The first of January 1970.
    let date = [70, 1, 1, 0, 0, 0, 0];
    let flags = if directory { 2 } else { 0 };
    let mut record = [
        &[0, 0][..],
        &both(sector),
        &both(bytes),
        &date,
        &[flags, 0, 0],
        &both16(1),
        &[name.len() as u8],
        name,
    ]
    .concat();
    record.resize(record.len().next_multiple_of(2), 0);
    record.extend_from_slice(extensions);
    record.resize(record.len().next_multiple_of(2), 0);
    let len = record.len() as u8;
    if let Some(first) = record.first_mut() {
        *first = len;
    }
    record
}

/// That there are extensions (SUSP, SP), and which (ER).
fn announcement() -> Vec<u8> {
    const WHICH: &[u8] = b"RRIP_1991A";
    let header = [b'E', b'R', 8 + WHICH.len() as u8, 1, WHICH.len() as u8, 0, 0, 1];
    [&b"SP\x07\x01\xbe\xef\0"[..], &header, WHICH].concat()
}

/// Permissions (PX), of root's.
fn mode(mode: u32) -> Vec<u8> {
    [&b"PX\x24\x01"[..], &both(mode), &both(1), &both(0), &both(0)].concat()
}

/// The real name (NM).
fn real_name(name: &str) -> Vec<u8> {
    [&[b'N', b'M', 5 + name.len() as u8, 1, 0], name.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_where_the_standard_has_them() {
        let image = volume("cidata", &[("user-data", &[7; 3000]), ("meta-data", b"x")]);
        let at = |sector: usize, offset: usize, len: usize| &image[sector * SECTOR + offset..][..len];
        assert_eq!(image.len(), 24 * SECTOR);
        assert_eq!(
            (at(16, 0, 6), at(16, 40, 7), at(16, 128, 4)),
            (&b"\x01CD001"[..], &b"cidata "[..], &[0, 8, 8, 0][..])
        );
        assert_eq!((at(16, 80, 8), at(16, 881, 1)), (&both(24)[..], &[1][..]));
        // The root's record in the descriptor, and the same in the directory.
        assert_eq!(at(16, 158, 8), at(20, 2, 8));
        assert_eq!((at(16, 156, 1), at(17, 0, 6)), (&[34][..], &b"\xffCD001"[..]));
        let mut names = Vec::new();
        let mut directory = at(20, 0, SECTOR);
        while let Some(len) = directory.first().copied().filter(|len| *len > 0) {
            let (record, rest) = directory.split_at(usize::from(len));
            names.extend(record.windows(9).filter(|name| name.ends_with(b"-data")).map(<[u8]>::to_vec));
            directory = rest;
        }
        assert_eq!(names, [b"user-data", b"meta-data"]);
        assert_eq!((at(21, 0, 1), at(22, 951, 2), at(23, 0, 2)), (&[7][..], &[7, 0][..], &b"x\0"[..]));
    }
}
