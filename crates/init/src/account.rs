//! Users and groups, as the guest's `/etc/passwd` and `/etc/group` have them (passwd(5), group(5)).

use crate::Failure;

/// To setresuid(2) and setresgid(2), no change: a command would run as root.
const NOBODYS: u32 = u32::MAX;

/// Who runs a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The groups that it belongs to beside `gid`.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
    pub(crate) shell: String,
}

/// The files that know accounts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Those of the root. What is not there knows nobody.
    pub(crate) fn read() -> Self {
        let read = |path| {
            std::fs::read(path).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
        };
        Self { passwd: read("/etc/passwd"), group: read("/etc/group") }
    }

    /// The account that `USER[:GROUP]` means, each by name or number.
    pub(crate) fn find(&self, text: &str) -> Result<Account, Failure> {
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let mut account =
            self.user(user).ok_or_else(|| Failure(format!("there is no user '{user}' in the guest")))?;
        if let Some(group) = group {
            account.gid = self
                .group(group)
                .ok_or_else(|| Failure(format!("there is no group '{group}' in the guest")))?;
            account.groups = Vec::new();
        }
        if [account.uid, account.gid].contains(&NOBODYS) {
            return Err(Failure(format!("no user or group has the number {NOBODYS}, which '{text}' means")));
        }
        Ok(account)
    }

    fn user(&self, wanted: &str) -> Option<Account> {
        let number = wanted.parse::<u32>().ok();
        for line in self.passwd.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            let &[name, _, uid, gid, _, home, shell] = fields.as_slice() else { continue };
            let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse()) else { continue };
            if name == wanted || Some(uid) == number {
                return Some(Account {
                    name: name.to_owned(),
                    uid,
                    gid,
                    groups: self.groups_of(name),
                    home: home.to_owned(),
                    shell: shell.to_owned(),
                });
            }
        }
        // A number needs no name.
        number.map(|uid| Account {
            name: wanted.to_owned(),
            uid,
            gid: uid,
            groups: Vec::new(),
            home: "/".to_owned(),
            shell: String::new(),
        })
    }

    fn group(&self, wanted: &str) -> Option<u32> {
        let named = self.group.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(wanted)).then(|| fields.nth(1))?
        });
        named.unwrap_or(wanted).parse().ok()
    }

    fn groups_of(&self, user: &str) -> Vec<u32> {
        let group = |line: &str| {
            let mut fields = line.split(':').skip(2);
            let gid = fields.next()?.parse().ok()?;
            fields.next()?.split(',').any(|member| member == user).then_some(gid)
        };
        self.group.lines().filter_map(group).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_groups() {
        let accounts = Accounts {
            passwd: "# comment\nroot:x:0:0:root:/root:/bin/bash\nann:x:1000:100:Ann,,:/home/ann:/bin/sh\n"
                .into(),
            group: "root:x:0:\nusers:x:100:\naudio:x:29:bob,ann\nvideo:x:44:annie\n".into(),
        };
        let ann = accounts.find("ann").unwrap();
        assert_eq!(
            (ann.uid, ann.gid, ann.groups.as_slice(), ann.home.as_str()),
            (1000, 100, &[29][..], "/home/ann")
        );
        assert_eq!(accounts.find("1000").unwrap(), ann);
        let other = accounts.find("ann:audio").unwrap();
        assert_eq!((other.gid, other.groups), (29, vec![]));
        let number = accounts.find("4711").unwrap();
        assert_eq!((number.uid, number.gid, number.home.as_str()), (4711, 4711, "/"));
        assert_eq!(accounts.find("4711:5").unwrap().gid, 5);
        assert!(accounts.find("bob").is_err() && accounts.find("ann:nobody").is_err());
        assert!(Accounts::default().find("0").is_ok());
        for nobody in ["4294967295", "4294967295:0", "0:4294967295"] {
            assert!(accounts.find(nobody).is_err(), "{nobody}");
        }
    }
}
