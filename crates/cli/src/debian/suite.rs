//! Debian's suites, as far as the machine's apt has sources for them.

use std::fmt::Write;

use super::apt::{Apt, AptError};

/// What `apt-get indextargets` is to print: a line for each part of a source, its fields apart by tabs.
const FORMAT: &str = "$(CREATED_BY)\t$(ORIGIN)\t$(CODENAME)\t$(SUITE)\t$(RELEASE)\t$(COMPONENT)\t$(SITE)";
/// What has packages in it.
const PACKAGES: &str = "Packages";
/// Who signs it.
const ORIGIN: &str = "Debian";
/// What a suite's own fixes are called.
const FIXES: [&str; 2] = ["-security", "-updates"];

/// A part of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    codename: String,
    suite: String,
    release: String,
    component: String,
    site: String,
}

/// A suite with its fixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Suite {
    codename: String,
    parts: Vec<Part>,
}

impl Suite {
    /// The suite that is wanted, by its codename or its name, or else the machine's own, or the first that there is.
    ///
    /// # Errors
    /// If the machine's apt has no source for it.
    pub(super) fn find(apt: &Apt, wanted: Option<&str>) -> Result<Self, AptError> {
        let output = apt.output("apt-get", &["indextargets", "--format", FORMAT])?;
        let own = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let own = own.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        Self::choose(&String::from_utf8_lossy(&output.stdout), wanted, own)
    }

    fn choose(targets: &str, wanted: Option<&str>, own: Option<&str>) -> Result<Self, AptError> {
        let all: Vec<Part> = targets.lines().filter_map(parse).collect();
        let base = |part: &&Part| !FIXES.iter().any(|fixes| part.codename.ends_with(fixes));
        let named =
            |name: &str| all.iter().filter(base).find(|part| part.codename == name || part.suite == name);
        let found = match wanted {
            Some(name) => named(name),
            None => own.and_then(named).or_else(|| all.iter().find(base)),
        };
        let Some(found) = found else {
            let mut offered: Vec<_> = all.iter().filter(base).map(|part| part.codename.clone()).collect();
            offered.dedup();
            return Err(AptError::NoSuite { wanted: wanted.map(str::to_owned), offered });
        };
        let codename = found.codename.clone();
        let belongs = |part: &Part| {
            part.codename.strip_prefix(&codename).is_some_and(|rest| rest.is_empty() || FIXES.contains(&rest))
        };
        let parts = all.iter().filter(|part| belongs(part)).cloned().collect();
        Ok(Self { codename, parts })
    }

    /// Its codename.
    pub(super) fn codename(&self) -> &str {
        &self.codename
    }

    /// What lets apt see this suite and nothing else (apt_preferences(5)).
    pub(super) fn preferences(&self) -> String {
        let fixes = FIXES.map(|fixes| format!("{}{fixes}", self.codename));
        let mut text = String::new();
        for name in [&self.codename].into_iter().chain(&fixes) {
            let _ = write!(text, "Package: *\nPin: release n={name}\nPin-Priority: 500\n\n");
        }
        text + "Package: *\nPin: release *\nPin-Priority: -1\n"
    }

    /// Its sources, for the guest's own apt (sources.list(5)): those that it can reach, without anybody's password.
    pub(super) fn sources(&self) -> String {
        let mut lines = Vec::new();
        for Part { release, component, site, .. } in &self.parts {
            let reachable = ["http://", "https://"].iter().any(|scheme| site.starts_with(scheme));
            let line = format!("deb {site} {release} {component}\n");
            if reachable && !site.contains('@') && !lines.contains(&line) {
                lines.push(line);
            }
        }
        lines.concat()
    }
}

fn parse(line: &str) -> Option<Part> {
    let fields: Vec<&str> = line.split('\t').collect();
    let &[PACKAGES, ORIGIN, codename, suite, release, component, site] = fields.as_slice() else {
        return None;
    };
    let is_word = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    // What has no codename is not on this machine yet.
    let [codename, suite, release, component, site] =
        [codename, suite, release, component, site].map(str::to_owned);
    is_word(&codename).then_some(Part { codename, suite, release, component, site })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: &str = "\
Packages\tDebian\ttrixie\tstable\ttrixie\tmain\thttp://mirror/debian
DEP-11\tDebian\ttrixie\tstable\ttrixie\tmain\thttp://mirror/debian
Packages\tDebian\tbookworm\toldstable\tbookworm\tmain\thttp://mirror/debian
Packages\tDebian\tbookworm\toldstable\tbookworm\tnon-free\thttp://mirror/debian
Packages\tDebian\tbookworm-security\toldstable-security\tbookworm-security\tmain\thttp://me:secret@mirror/s
Packages\tDebian Backports\tbookworm-backports\toldstable-backports\tbookworm-backports\tmain\thttp://mirror/debian
Packages\tNode\tnodistro\t\tnodistro\tmain\thttp://other
Packages\tDebian\t\t\tsid\tmain\thttp://mirror/debian
";

    fn chosen(wanted: Option<&str>, own: Option<&str>) -> Result<String, AptError> {
        Suite::choose(TARGETS, wanted, own).map(|suite| suite.codename)
    }

    #[test]
    fn a_suite_is_named_or_the_machines_own() {
        assert_eq!(chosen(None, Some("bookworm")).unwrap(), "bookworm");
        assert_eq!(chosen(None, Some("noble")).unwrap(), "trixie");
        assert_eq!(chosen(Some("oldstable"), None).unwrap(), "bookworm");
        for absent in ["sid", "bookworm-security", "bookworm-backports", "nodistro", ""] {
            let error = chosen(Some(absent), Some("bookworm")).unwrap_err();
            let AptError::NoSuite { offered, .. } = &error else { panic!("{error}") };
            assert_eq!(offered, &["trixie", "bookworm"]);
        }
        assert!(Suite::choose("", None, None).unwrap_err().to_string().contains("no suite of Debian"));
    }

    #[test]
    fn its_fixes_belong_to_it_and_nobody_elses_packages_do() {
        let suite = Suite::choose(TARGETS, Some("bookworm"), None).unwrap();
        let sources = "deb http://mirror/debian bookworm main\ndeb http://mirror/debian bookworm non-free\n";
        assert_eq!(suite.sources(), sources);
        let preferences = suite.preferences();
        assert!(preferences.contains("n=bookworm-security\nPin-Priority: 500"));
        assert!(preferences.ends_with("Pin: release *\nPin-Priority: -1\n"));
    }
}
