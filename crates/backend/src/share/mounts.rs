//! Which file systems are files, and which are views of the host's kernel.

use std::os::fd::AsFd;

use rustix::io::Errno;

/// Magic numbers of file systems that the kernel makes up (statfs(2), Linux `include/uapi/linux/magic.h`). Through them one
/// sees or changes the host and its processes, this one among them.
const KERNELS: [u64; 17] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x1cd1,      // devpts
    0x0187,      // autofs
    0x27_e0eb,   // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xf97c_ff8c, // selinuxfs
    0xcafe_4a11, // bpf
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0x6265_6570, // configfs
    0x6573_5543, // fusectl
    0x4249_4e4d, // binfmt_misc
    0x1980_0202, // mqueue
];

/// Whether what is open belongs to such a file system.
///
/// # Errors
/// As fstatfs(2).
pub(super) fn belongs_to_kernel(file: impl AsFd) -> Result<bool, Errno> {
    let kind = rustix::fs::fstatfs(file)?.f_type;
    Ok(KERNELS.contains(&kind.cast_unsigned()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn proc_is_the_kernels_and_files_are_not() {
        assert_eq!(belongs_to_kernel(File::open("/proc").unwrap()), Ok(true));
        assert_eq!(belongs_to_kernel(tempfile::tempfile().unwrap()), Ok(false));
    }
}
