//! What a package list says of one package, as `apt-cache show` prints it (deb-control(5)).

/// The fields that are of use here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Control {
    /// The package's name.
    pub(super) package: String,
    /// Its version.
    pub(super) version: String,
    /// The size of its file in bytes; 0 if the list does not say.
    pub(super) size: u64,
    /// The names of the packages that it depends on, first alternatives only.
    pub(super) depends: Vec<String>,
}

impl Control {
    /// Reads the first paragraph of `text`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let paragraph = text.trim_start().split("\n\n").next()?;
        let field = |name: &str| {
            paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
        };
        Some(Self {
            package: field("Package").filter(|name| is_package_name(name))?.to_owned(),
            version: field("Version").filter(|version| is_version(version))?.to_owned(),
            size: field("Size").and_then(|size| size.parse().ok()).unwrap_or(0),
            depends: field("Depends").map(first_alternatives).unwrap_or_default(),
        })
    }

    /// The name of its cache entry; a version's colon is written as dpkg writes it in file names.
    pub(super) fn entry_name(&self) -> String {
        format!("{}_{}", self.package, self.version.replace(':', "%3a"))
    }
}

/// The package and the version whose cache entry has this name.
pub(super) fn of_entry_name(name: &str) -> Option<(String, String)> {
    let (package, version) = name.split_once('_')?;
    let version = version.replace("%3a", ":");
    (is_package_name(package) && is_version(&version)).then(|| (package.to_owned(), version))
}

/// The package names in a Depends field, without versions and without what follows a `|`.
fn first_alternatives(depends: &str) -> Vec<String> {
    depends
        .split(',')
        .filter_map(|item| item.split(['|', '(', ':', ' ']).find(|word| !word.is_empty()))
        .filter(|name| is_package_name(name))
        .map(str::to_owned)
        .collect()
}

/// Whether `name` is a package name (Debian Policy, 5.6.1), and so neither an option nor a path.
pub(super) fn is_package_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
    name.len() >= 2
        && name.bytes().all(good)
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
}

/// Whether `version` is a version (Debian Policy, 5.6.12), and so no path.
fn is_version(version: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b".+-~:".contains(&byte);
    version.bytes().all(good) && version.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: &str = "\
Package: linux-image-cloud-amd64
Source: linux-signed-amd64 (6.1.192+2)
Version: 6.1.192-2
Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)
Size: 1504
Description-en: Linux for x86-64 cloud (meta-package)
 This package depends on the latest Linux kernel and modules.

Package: linux-image-cloud-amd64
Version: 6.1.176-1
";

    #[test]
    fn the_first_paragraph_counts() {
        let control = Control::parse(META).unwrap();
        assert_eq!(control.version, "6.1.192-2");
        assert_eq!(control.size, 1504);
        assert_eq!(control.depends, ["linux-image-6.1.0-56-cloud-amd64"]);
        assert_eq!(control.entry_name(), "linux-image-cloud-amd64_6.1.192-2");
        assert_eq!(of_entry_name("a-b_1%3a2-3"), Some(("a-b".into(), "1:2-3".into())));
        assert!(of_entry_name("newest-cloud-kernel").is_none() && of_entry_name("a_../b").is_none());
        assert_eq!(Control::parse(""), None);
        assert_eq!(Control::parse("Package: a\nVersion: 1/../2\n"), None);
    }

    #[test]
    fn alternatives_and_versions_are_cut_off() {
        let names =
            first_alternatives("kmod, linux-base (>= 4.3~), a1:any | b2, initramfs-tools (>= 1) | tiny");
        assert_eq!(names, ["kmod", "linux-base", "a1", "initramfs-tools"]);
    }

    #[test]
    fn names_are_neither_options_nor_paths() {
        assert!(is_package_name("linux-image-6.12.117+deb12-cloud-amd64"));
        for bad in ["", "a", "-y", "--allow-unauthenticated", "../x", "a/b", "A", "a b", "./x.deb"] {
            assert!(!is_package_name(bad), "{bad:?}");
        }
    }
}
