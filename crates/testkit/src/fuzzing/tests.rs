//! Every target on the inputs that are kept, and on a few random ones.

use std::path::Path;

use super::*;
use crate::oracle::random::Random;

/// Says which input it was, should the target panic.
struct Context<'a>(&'a str, String);

impl Drop for Context<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("target {}: {}", self.0, self.1);
        }
    }
}

fn regress(name: &str, random_inputs: u64) {
    let target = target(name).expect("a target of that name");
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(name);
    for entry in std::fs::read_dir(&seeds).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        let bytes = std::fs::read(&path).expect("a readable file");
        let _context = Context(name, path.display().to_string());
        (target.body)(&bytes);
    }
    for index in 0..random_inputs {
        let mut random = Random::new(0x756d_6272_6121, index);
        let length = random.below(target.max_len as u64 + 1);
        let bytes: Vec<u8> = (0..length).map(|_| random.bits().to_le_bytes()[0]).collect();
        let _context = Context(name, format!("random input {index}"));
        (target.body)(&bytes);
    }
}

macro_rules! regressions {
    ($($name:ident: $count:expr),* $(,)?) => {$(
        #[test]
        fn $name() {
            regress(stringify!($name), $count);
        }
    )*};
}

regressions! {
    interp_code: 400,
    lockstep_code: 400,
    page_tables: 400,
    cpu_state: 400,
    records: 400,
    loaders: 300,
    devices: 400,
    disk_image: 300,
    file_sharing: 200,
    virtio_driver: 400,
    native_unit: 400,
    nvme_driver: 300,
    control_socket: 400,
    specs: 400,
    user_net: 400,
}

#[test]
fn names_are_those_of_the_binaries() {
    for target in &TARGETS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/fuzz_targets");
        assert!(path.join(format!("{}.rs", target.name)).is_file(), "{}", target.name);
    }
}
