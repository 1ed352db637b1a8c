//! The public keys of whoever may log in to a guest by ssh.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// A key's file is not longer.
const LONGEST: u64 = 16 << 10;
/// What keys are called (sshd(8), AUTHORIZED_KEYS FILE FORMAT).
const KINDS: [&str; 3] = ["ssh-", "ecdsa-", "sk-"];

/// The keys in these files, or where there are none, in the user's `~/.ssh/*.pub`.
///
/// # Errors
/// If a file that was named holds none.
pub(crate) fn read(named: &[PathBuf]) -> Result<Vec<String>> {
    if !named.is_empty() {
        return named.iter().map(|path| key_of(path)).collect();
    }
    let Some(home) = std::env::var_os("HOME") else { return Ok(Vec::new()) };
    let mut paths: Vec<PathBuf> = fs::read_dir(Path::new(&home).join(".ssh"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|item| item.path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "pub"));
    paths.sort();
    // What is there and is no key, nobody has asked for.
    Ok(paths.iter().filter_map(|path| key_of(path).ok()).collect())
}

fn key_of(path: &Path) -> Result<String> {
    let shown = path.display();
    let mut text = String::new();
    // One byte more than a key has says that it is none, also if there is no end.
    fs::File::open(path)
        .and_then(|file| file.take(LONGEST + 1).read_to_string(&mut text))
        .with_context(|| format!("cannot read the key '{shown}'"))?;
    ensure!(
        !text.contains("PRIVATE KEY"),
        "'{shown}' is a private key, which must not go into a guest: give the public one, '{shown}.pub'"
    );
    let line = text.lines().map(str::trim).find(|line| KINDS.iter().any(|kind| line.starts_with(kind)));
    let line = line.filter(|line| text.len() as u64 <= LONGEST && !line.contains(char::is_control));
    Ok(line.with_context(|| format!("'{shown}' is no public key of ssh: 'ssh-keygen' makes one"))?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_keys_are_read_and_private_ones_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let good = file("a.pub", "# mine\nssh-ed25519 AAAA= me@here\n");
        assert_eq!(read(&[good]).unwrap(), ["ssh-ed25519 AAAA= me@here"]);
        let private = file("a", "-----BEGIN OPENSSH PRIVATE KEY-----\n");
        assert!(read(&[private]).unwrap_err().to_string().contains("a.pub'"));
        for text in ["", "hello\n", "ssh-rsa A\0B\n"] {
            assert!(read(&[file("b.pub", text)]).is_err(), "{text:?}");
        }
        assert!(read(&[dir.path().join("absent")]).is_err());
        assert!(read(&["/dev/zero".into()]).is_err(), "there is no end to it");
    }
}
