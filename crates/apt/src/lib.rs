//! The machine's own apt, with settings of ours: nothing that is not signed by a key that the machine trusts is taken,
//! whatever the machine's configuration says, and none of its hooks run.
//!
//! The settings stand in a file given with `-c`, which apt reads after its own, so they win (apt.conf(5)).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What holds for everybody. As root, apt would drop to a user that cannot write to our directories.
const SETTINGS: &str = "\
APT::Get::AllowUnauthenticated \"false\";
APT::Sandbox::User \"root\";
Acquire::AllowInsecureRepositories \"false\";
Acquire::AllowDowngradeToInsecureRepositories \"false\";
Acquire::AllowWeakRepositories \"false\";
Acquire::Languages \"none\";
Acquire::Retries \"1\";
Acquire::http::Timeout \"20\";
Acquire::https::Timeout \"20\";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Update::Pre-Invoke;
#clear DPkg::Pre-Install-Pkgs;
";

/// apt, with its settings.
#[derive(Debug)]
pub struct Apt {
    settings: PathBuf,
}

impl Apt {
    /// Writes the settings to a file: what holds for everybody, then `more`, in apt's syntax.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn new(settings: PathBuf, more: &str) -> io::Result<Self> {
        fs::write(&settings, format!("{SETTINGS}{more}"))?;
        Ok(Self { settings })
    }

    /// One of its programs, to be given arguments. It speaks English and is told nothing on its standard input.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.settings).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }
}

/// The setting of a directory below `Dir`, such as `State::Lists`.
///
/// # Errors
/// If apt cannot be told such a path.
pub fn directory(name: &str, path: &Path) -> io::Result<String> {
    match path.to_str() {
        Some(path) if !path.contains(['"', '\n']) => Ok(format!("Dir::{name} \"{path}\";\n")),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "apt cannot be told a path with a quotation mark, or one that is not UTF-8",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_refuse_the_unsigned() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("apt.conf");
        let apt = Apt::new(file.clone(), &directory("Cache", dir.path()).unwrap()).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains("AllowUnauthenticated \"false\""));
        assert!(text.ends_with(&format!("Dir::Cache \"{}\";\n", dir.path().display())));
        let command = apt.command("apt-get");
        let args: Vec<_> = command.get_args().collect();
        assert_eq!(args, ["-c".as_ref(), file.as_os_str()]);
    }

    #[test]
    fn paths_that_would_end_the_setting_are_refused() {
        for path in ["/a\"b", "/a\nb"] {
            assert!(directory("Cache", Path::new(path)).is_err(), "{path:?}");
        }
    }
}
