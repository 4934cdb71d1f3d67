//! Users and groups out of `/etc/passwd` and `/etc/group` (passwd(5), group(5)), without the C library's name services:
//! those would need shared objects that a static program cannot load.
//!
//! A name counts before a number, as everywhere. A number without an entry is allowed. Group 0 is never given to
//! another user silently: where nothing says the group, it is [`NOBODY_GROUP`].

use super::{invalid, not_found, shown};
use guestline_protocol::RemoteError;
use std::path::PathBuf;

/// `nogroup`, the group of a user without an entry.
const NOBODY_GROUP: u32 = 65534;

/// The shell of a user whose entry names none (passwd(5)).
const SHELL: &[u8] = b"/bin/sh";

/// Where users and groups are listed.
#[derive(Debug, Clone)]
pub(crate) struct AccountFiles {
    pub(crate) passwd: PathBuf,
    pub(crate) group: PathBuf,
}

impl Default for AccountFiles {
    fn default() -> Self {
        Self { passwd: "/etc/passwd".into(), group: "/etc/group".into() }
    }
}

/// What a command runs as; what is `None` stays as the agent has it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) groups: Option<Vec<u32>>,
    pub(super) variables: Vec<(&'static [u8], Vec<u8>)>,
}

struct User {
    name: Vec<u8>,
    uid: u32,
    gid: u32,
    home: Vec<u8>,
    shell: Vec<u8>,
}

struct Group {
    name: Vec<u8>,
    gid: u32,
    members: Vec<Vec<u8>>,
}

impl AccountFiles {
    /// Finds out what to become.
    ///
    /// # Errors
    /// `NotFound` for a name that is in no file, `Invalid` for a number that is none of a user or group.
    pub(super) fn resolve(
        &self,
        user: Option<&str>,
        group: Option<&str>,
        groups: Option<&[String]>,
    ) -> Result<Account, RemoteError> {
        if user.is_none() && group.is_none() && groups.is_none() {
            return Ok(Account::default());
        }
        let listed = self.groups();
        let user = user.map(|name| self.user(name)).transpose()?;
        let gid = match group {
            Some(name) => Some(self.gid(&listed, name)?),
            None => user.as_ref().map(|user| user.gid),
        };
        let groups = match (groups, &user, gid) {
            (Some(names), _, _) => {
                let gids = names.iter().map(|name| self.gid(&listed, name));
                Some(gids.collect::<Result<_, _>>()?)
            }
            (None, Some(user), Some(gid)) => Some(supplementary(&listed, user, gid)),
            _ => None,
        };
        let variables = user.as_ref().map(variables).unwrap_or_default();
        Ok(Account { uid: user.map(|user| user.uid), gid, groups, variables })
    }

    fn user(&self, name: &str) -> Result<User, RemoteError> {
        let mut users: Vec<User> = lines(&self.passwd, user_entry);
        let number = number(name);
        let named = users.iter().position(|user| user.name == name.as_bytes());
        let found = named.or_else(|| users.iter().position(|user| Some(user.uid) == number));
        if let Some(index) = found {
            return Ok(users.swap_remove(index));
        }
        let uid = match number {
            Some(u32::MAX) => {
                return Err(invalid(format!(
                    "`{}` is no number of a user",
                    shown(name.as_bytes())
                )));
            }
            Some(uid) => uid,
            // An image without accounts has its root all the same.
            None if name == "root" => 0,
            None => return Err(not_found("user", name, &self.passwd)),
        };
        let gid = if uid == 0 { 0 } else { NOBODY_GROUP };
        let home = if name == "root" { b"/root".to_vec() } else { b"/".to_vec() };
        Ok(User { name: name.into(), uid, gid, home, shell: SHELL.to_vec() })
    }

    fn groups(&self) -> Vec<Group> {
        lines(&self.group, group_entry)
    }

    fn gid(&self, groups: &[Group], name: &str) -> Result<u32, RemoteError> {
        if let Some(group) = groups.iter().find(|group| group.name == name.as_bytes()) {
            return Ok(group.gid);
        }
        match number(name) {
            Some(u32::MAX) => {
                Err(invalid(format!("`{}` is no number of a group", shown(name.as_bytes()))))
            }
            Some(gid) => Ok(gid),
            None if name == "root" => Ok(0),
            None => Err(not_found("group", name, &self.group)),
        }
    }
}

/// What initgroups(3) gives: the group itself, then those that list the user.
fn supplementary(groups: &[Group], user: &User, gid: u32) -> Vec<u32> {
    let mut gids = vec![gid];
    for group in groups {
        if group.members.contains(&user.name) && !gids.contains(&group.gid) {
            gids.push(group.gid);
        }
    }
    gids
}

fn variables(user: &User) -> Vec<(&'static [u8], Vec<u8>)> {
    vec![
        (b"HOME", user.home.clone()),
        (b"USER", user.name.clone()),
        (b"LOGNAME", user.name.clone()),
        (b"SHELL", user.shell.clone()),
    ]
}

fn lines<T>(path: &PathBuf, entry: fn(&[&[u8]]) -> Option<T>) -> Vec<T> {
    // A file that is not there has no entries: what is looked for is then not found in it.
    let bytes = std::fs::read(path).unwrap_or_default();
    let lines = bytes.split(|byte| *byte == b'\n');
    lines.filter_map(|line| entry(&line.split(|byte| *byte == b':').collect::<Vec<_>>())).collect()
}

/// `name:password:UID:GID:comment:home:shell`.
fn user_entry(fields: &[&[u8]]) -> Option<User> {
    let [name, _, uid, gid, _, home, shell] = fields else { return None };
    let or = |field: &[u8], other: &[u8]| {
        if field.is_empty() { other.to_vec() } else { field.to_vec() }
    };
    Some(User {
        name: name.to_vec(),
        uid: number(core::str::from_utf8(uid).ok()?)?,
        gid: number(core::str::from_utf8(gid).ok()?)?,
        home: or(home, b"/"),
        shell: or(shell, SHELL),
    })
}

/// `name:password:GID:members`.
fn group_entry(fields: &[&[u8]]) -> Option<Group> {
    let [name, _, gid, members] = fields else { return None };
    let members = members.split(|byte| *byte == b',').map(<[u8]>::to_vec).collect();
    let gid = number(core::str::from_utf8(gid).ok()?)?;
    Some(Group { name: name.to_vec(), gid, members })
}

/// Digits only: `+5` is no number.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestline_protocol::ErrorKind;

    fn files(name: &str) -> AccountFiles {
        let folder = std::env::temp_dir().join(format!("accounts-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let files = AccountFiles { passwd: folder.join("passwd"), group: folder.join("group") };
        let passwd = "root:x:0:0:root:/root:/bin/bash\n# a comment\nbroken:x:a:b:::\n\
                      anna:x:1000:1000:Anna,,,:/home/anna:/bin/zsh\n\
                      bare:x:1001:0:::\n1000:x:77:78::/n:/bin/n\nshort:x:1\n";
        let group = "root:x:0:\nanna:x:1000:\nvideo:x:44:bob,anna\ndocker:x:999:anna\n\
                     odd:x:zz:anna\nbobs:x:45:bob\n";
        std::fs::write(&files.passwd, passwd).unwrap();
        std::fs::write(&files.group, group).unwrap();
        files
    }

    fn variable(account: &Account, name: &str) -> String {
        let found = account.variables.iter().find(|(known, _)| *known == name.as_bytes());
        String::from_utf8(found.unwrap().1.clone()).unwrap()
    }

    #[test]
    fn a_name_gives_all_that_a_login_has() {
        let account = files("name").resolve(Some("anna"), None, None).unwrap();
        assert_eq!((account.uid, account.gid), (Some(1000), Some(1000)));
        assert_eq!(account.groups, Some(vec![1000, 44, 999]));
        assert_eq!(variable(&account, "HOME"), "/home/anna");
        assert_eq!(variable(&account, "USER"), "anna");
        assert_eq!(variable(&account, "LOGNAME"), "anna");
        assert_eq!(variable(&account, "SHELL"), "/bin/zsh");
    }

    #[test]
    fn a_name_of_digits_counts_before_the_number() {
        let account = files("digits").resolve(Some("1000"), None, None).unwrap();
        assert_eq!((account.uid, account.gid), (Some(77), Some(78)));
        assert_eq!(variable(&account, "USER"), "1000");
    }

    #[test]
    fn a_number_with_an_entry_is_that_user() {
        let account = files("entry").resolve(Some("1001"), None, None).unwrap();
        assert_eq!((account.uid, account.gid), (Some(1001), Some(0)));
        assert_eq!(variable(&account, "USER"), "bare");
        assert_eq!(variable(&account, "HOME"), "/");
        assert_eq!(variable(&account, "SHELL"), "/bin/sh");
    }

    #[test]
    fn a_number_without_an_entry_does_not_get_group_0() {
        let account = files("number").resolve(Some("4242"), None, None).unwrap();
        assert_eq!((account.uid, account.gid), (Some(4242), Some(NOBODY_GROUP)));
        assert_eq!(account.groups, Some(vec![NOBODY_GROUP]));
        assert_eq!(variable(&account, "HOME"), "/");
        let account = files("number").resolve(Some("4242"), Some("video"), None).unwrap();
        assert_eq!((account.gid, account.groups), (Some(44), Some(vec![44])));
    }

    #[test]
    fn a_group_replaces_the_users_own_and_groups_the_others() {
        let files = files("group");
        let account = files.resolve(Some("anna"), Some("docker"), None).unwrap();
        assert_eq!((account.gid, account.groups), (Some(999), Some(vec![999, 44])));
        let names = ["bobs".to_owned(), "7".to_owned()];
        let account = files.resolve(Some("anna"), None, Some(&names)).unwrap();
        assert_eq!((account.gid, account.groups), (Some(1000), Some(vec![45, 7])));
        let account = files.resolve(Some("anna"), None, Some(&[])).unwrap();
        assert_eq!(account.groups, Some(vec![]));
        let account = files.resolve(None, Some("video"), None).unwrap();
        assert_eq!((account.uid, account.gid, account.groups), (None, Some(44), None));
        assert!(account.variables.is_empty());
    }

    #[test]
    fn what_is_in_no_file_is_named() {
        let files = files("missing");
        let error = files.resolve(Some("x"), None, None).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert_eq!(error.message, format!("no user `x` in {}", files.passwd.display()));
        let error = files.resolve(None, Some("x"), None).unwrap_err();
        assert_eq!(error.message, format!("no group `x` in {}", files.group.display()));
        let error = files.resolve(None, None, Some(&["".to_owned()])).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        for user in ["4294967295", "-1", "+5", "4294967296", "", "broken", "short", " 5"] {
            let error = files.resolve(Some(user), None, None).unwrap_err();
            assert!(matches!(error.kind, ErrorKind::NotFound | ErrorKind::Invalid), "{user}");
        }
    }

    #[test]
    fn root_is_known_without_files() {
        let files = AccountFiles { passwd: "/nowhere/p".into(), group: "/nowhere/g".into() };
        let account = files.resolve(Some("root"), None, None).unwrap();
        assert_eq!((account.uid, account.gid), (Some(0), Some(0)));
        assert_eq!(variable(&account, "HOME"), "/root");
        assert_eq!(files.resolve(Some("0"), None, None).unwrap().gid, Some(0));
    }
}
