//! The user of a container's process, resolved from the image's user, the security contexts of pod and
//! container, and the image's `/etc/passwd` and `/etc/group`, as the kubelet and containerd's CRI plugin do
//! together.
//!
//! Two rules are stricter than there: an entry of `passwd` or `group` whose id is not a number or out of
//! range never becomes id 0, and the files' size is limited before they are parsed.

use berth_core::model::{Container, Pod};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The largest `passwd` or `group` file that is read, in bytes.
pub const MAX_USER_FILE_BYTES: usize = 10 << 20;

/// Maximum id that runc accepts.
const MAX_ID: u32 = i32::MAX as u32;

/// User and groups of a container's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// The user id.
    pub uid: u32,
    /// The primary group id.
    pub gid: u32,
    /// All groups, sorted, including the primary one.
    pub additional_gids: Vec<u32>,
}

/// Reason why no user can be resolved. Each is a `CreateContainerConfigError` or `CreateContainerError` of
/// the container, never of the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// `runAsNonRoot` with `runAsUser: 0`.
    #[error("container's runAsUser breaks non-root policy")]
    RunAsUserIsRoot,
    /// `runAsNonRoot` and the image's user is 0 or unset.
    #[error("container has runAsNonRoot and image will run as root")]
    ImageIsRoot,
    /// `runAsNonRoot`, and the image names its user by name: only the image itself says which id the name
    /// has.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({0}), cannot verify user is non-root"
    )]
    NonNumericUser(String),
    /// An id beyond the runtime's range.
    #[error("{what} {text:?} is out of range, ids are 0 to {MAX_ID}")]
    OutOfRange {
        /// Place of the id.
        what: &'static str,
        /// The id as written.
        text: String,
    },
    /// The image names a user that its `/etc/passwd` does not have.
    #[error("image user {0:?} is not in the image's /etc/passwd")]
    NoSuchUser(String),
    /// An entry that is needed has an unusable id.
    #[error("the image's {file} has an unusable id in the entry of {name:?}")]
    BadEntry {
        /// `/etc/passwd` or `/etc/group`.
        file: &'static str,
        /// The entry's name.
        name: String,
    },
    /// The user database exceeds any legitimate size.
    #[error("the image's {file} has {bytes} bytes, more than {MAX_USER_FILE_BYTES}")]
    FileTooLarge {
        /// `/etc/passwd` or `/etc/group`.
        file: &'static str,
        /// Size of the file in bytes.
        bytes: usize,
    },
}

/// The image's user databases; `None` where the file is missing.
#[derive(Debug, Clone, Copy, Default)]
pub struct UserFiles<'a> {
    /// Text of `/etc/passwd`.
    pub passwd: Option<&'a str>,
    /// Text of `/etc/group`.
    pub group: Option<&'a str>,
}

enum Wanted<'a> {
    Uid(u32),
    Name(&'a str),
}

struct Entry<'a> {
    name: &'a str,
    /// `None` where the field is not a number in range.
    uid: Option<u32>,
    gid: Option<u32>,
}

fn id(text: &str) -> Option<u32> {
    text.parse::<u32>().ok().filter(|v| *v <= MAX_ID)
}

fn bounded<'a>(file: &'static str, text: Option<&'a str>) -> Result<&'a str, UserError> {
    let text = text.unwrap_or_default();
    if text.len() > MAX_USER_FILE_BYTES {
        return Err(UserError::FileTooLarge { file, bytes: text.len() });
    }
    Ok(text)
}

fn passwd_entries(text: &str) -> impl Iterator<Item = Entry<'_>> {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().unwrap_or_default();
        fields.next();
        Entry { name, uid: fields.next().and_then(id), gid: fields.next().and_then(id) }
    })
}

/// The groups that list `user` as a member, except the group with the user's own name.
fn groups_of(text: &str, user: &str) -> Result<Vec<u32>, UserError> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let mut fields = line.split(':');
        let name = fields.next().unwrap_or_default();
        fields.next();
        let gid = fields.next().and_then(id);
        let members = fields.next().unwrap_or_default();
        if name != user && members.split(',').any(|m| m == user) {
            found.push(gid.ok_or_else(|| UserError::BadEntry { file: "/etc/group", name: name.to_owned() })?);
        }
    }
    Ok(found)
}

/// The user that the image requests: the part before `:`; empty means root.
fn image_user(text: &str) -> Result<Wanted<'_>, UserError> {
    let user = text.split(':').next().unwrap_or_default();
    if user.is_empty() {
        return Ok(Wanted::Uid(0));
    }
    let digits = user.strip_prefix(['+', '-']).unwrap_or(user);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(Wanted::Name(user));
    }
    let uid = id(user).ok_or_else(|| UserError::OutOfRange { what: "image user", text: user.to_owned() })?;
    Ok(Wanted::Uid(uid))
}

fn checked(what: &'static str, value: u32) -> Result<u32, UserError> {
    if value > MAX_ID {
        return Err(UserError::OutOfRange { what, text: value.to_string() });
    }
    Ok(value)
}

/// Resolves the user at one start of a container. `runAsNonRoot` applies to the resolved id, at every start.
pub fn resolve_user(
    pod: &Pod,
    container: &Container,
    image_user_text: &str,
    files: UserFiles<'_>,
) -> Result<ResolvedUser, UserError> {
    let passwd = bounded("/etc/passwd", files.passwd)?;
    let group = bounded("/etc/group", files.group)?;
    let run_as_user = container.security.run_as_user.or(pod.security.run_as_user);
    let run_as_group = container.security.run_as_group.or(pod.security.run_as_group);
    let non_root = container.security.run_as_non_root.or(pod.security.run_as_non_root) == Some(true);

    let wanted = match run_as_user {
        Some(0) if non_root => return Err(UserError::RunAsUserIsRoot),
        Some(uid) => Wanted::Uid(checked("runAsUser", uid)?),
        None => match image_user(image_user_text)? {
            Wanted::Name(name) if non_root => return Err(UserError::NonNumericUser(name.to_owned())),
            other => other,
        },
    };

    // The entry decides the primary group (and a name's id); the first match counts.
    let entry = match &wanted {
        Wanted::Uid(uid) => passwd_entries(passwd).find(|e| e.uid == Some(*uid)),
        Wanted::Name(name) => Some(
            passwd_entries(passwd)
                .find(|e| e.name == *name)
                .ok_or_else(|| UserError::NoSuchUser((*name).to_owned()))?,
        ),
    };
    let bad = |e: &Entry<'_>| UserError::BadEntry { file: "/etc/passwd", name: e.name.to_owned() };
    let uid = match (&wanted, &entry) {
        (Wanted::Uid(uid), _) => *uid,
        (Wanted::Name(_), Some(e)) => e.uid.ok_or_else(|| bad(e))?,
        (Wanted::Name(name), None) => return Err(UserError::NoSuchUser((*name).to_owned())),
    };
    if non_root && uid == 0 {
        return Err(UserError::ImageIsRoot);
    }
    let gid = match (run_as_group, &entry) {
        (Some(gid), _) => checked("runAsGroup", gid)?,
        (None, Some(e)) => e.gid.ok_or_else(|| bad(e))?,
        (None, None) => 0,
    };

    let mut gids = BTreeSet::from([gid]);
    if !pod.security.supplemental_groups_strict {
        let name = match (&wanted, &entry) {
            (Wanted::Name(name), _) => Some(*name),
            (Wanted::Uid(_), Some(e)) => Some(e.name),
            (Wanted::Uid(_), None) => None,
        };
        if let Some(name) = name {
            gids.extend(groups_of(group, name)?);
        }
    }
    for value in pod.security.fs_group.iter().chain(&pod.security.supplemental_groups) {
        gids.insert(checked("group of the pod's security context", *value)?);
    }
    Ok(ResolvedUser { uid, gid, additional_gids: gids.into_iter().collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::testing::pod;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\nbad:x:12e4:5::/:\n\
                          huge:x:4294967296:5::/:\nodd:x:7:-1::/:\n\n+::::::\n";
    const GROUP: &str =
        "root:x:0:\nstaff:x:50:app,other\napp:x:1001:app\naudio:x:29:app\nbroken:x:many:odd\n";
    const FILES: UserFiles<'static> = UserFiles { passwd: Some(PASSWD), group: Some(GROUP) };

    fn resolve(image: &str, change: impl FnOnce(&mut Pod)) -> Result<ResolvedUser, UserError> {
        let mut pod = pod();
        change(&mut pod);
        resolve_user(&pod, &pod.containers[0], image, FILES)
    }

    fn ids(uid: u32, gid: u32, additional: &[u32]) -> Result<ResolvedUser, UserError> {
        Ok(ResolvedUser { uid, gid, additional_gids: additional.to_vec() })
    }

    #[test]
    fn image_and_contexts_resolve_as_the_kubelet_and_cri_do() {
        assert_eq!(resolve("", |_| {}), ids(0, 0, &[0]));
        assert_eq!(resolve("app", |_| {}), ids(1000, 1001, &[29, 50, 1001]));
        // The image's group is ignored.
        assert_eq!(resolve("app:root", |_| {}), ids(1000, 1001, &[29, 50, 1001]));
        assert_eq!(resolve("4242:50", |_| {}), ids(4242, 0, &[0]));
        assert_eq!(resolve("app", |p| p.security.run_as_user = Some(4242)), ids(4242, 0, &[0]));
        assert_eq!(resolve("", |p| p.security.run_as_group = Some(9)), ids(0, 9, &[9]));
        assert_eq!(
            resolve("app", |p| {
                p.security.run_as_user = Some(1);
                p.containers[0].security.run_as_user = Some(1000);
                p.security.fs_group = Some(5);
                p.security.supplemental_groups = vec![29, 3];
            }),
            ids(1000, 1001, &[3, 5, 29, 50, 1001])
        );
        assert_eq!(
            resolve("app", |p| {
                p.security.supplemental_groups_strict = true;
                p.security.supplemental_groups = vec![7];
            }),
            ids(1000, 1001, &[7, 1001])
        );
    }

    #[test]
    fn ids_are_checked_at_their_borders() {
        assert_eq!(resolve("2147483647", |_| {}), ids(2_147_483_647, 0, &[0]));
        for text in
            ["2147483648", "4294967295", "4294967296", "18446744073709551616", "-1", "99999999999999999999"]
        {
            assert_eq!(
                resolve(text, |_| {}),
                Err(UserError::OutOfRange { what: "image user", text: text.to_owned() })
            );
        }
        assert!(matches!(
            resolve("", |p| p.security.run_as_user = Some(1 << 31)),
            Err(UserError::OutOfRange { what: "runAsUser", .. })
        ));
        assert!(matches!(
            resolve("", |p| p.security.run_as_group = Some(u32::MAX)),
            Err(UserError::OutOfRange { what: "runAsGroup", .. })
        ));
        assert!(matches!(
            resolve("", |p| p.security.supplemental_groups = vec![1 << 31]),
            Err(UserError::OutOfRange { .. })
        ));
    }

    #[test]
    fn a_broken_entry_never_means_root() {
        for name in ["bad", "huge", "odd", "+"] {
            let got = resolve(name, |_| {});
            assert!(matches!(got, Err(UserError::BadEntry { file: "/etc/passwd", .. })), "{name}: {got:?}");
        }
        // Lookup by number finds no entry with this id, so the group is root's, as for any unknown id.
        assert_eq!(resolve("12", |_| {}), ids(12, 0, &[0]));
        let odd = UserFiles { passwd: Some("odd:x:7:7::/:\n"), group: Some(GROUP) };
        let pod = pod();
        assert_eq!(
            resolve_user(&pod, &pod.containers[0], "odd", odd),
            Err(UserError::BadEntry { file: "/etc/group", name: "broken".to_owned() })
        );
        assert_eq!(resolve("nobody", |_| {}), Err(UserError::NoSuchUser("nobody".to_owned())));
    }

    #[test]
    fn non_root_is_checked_on_the_user_that_comes_out() {
        let non_root = |p: &mut Pod| p.security.run_as_non_root = Some(true);
        assert_eq!(resolve("", non_root), Err(UserError::ImageIsRoot));
        assert_eq!(resolve("0:5", non_root), Err(UserError::ImageIsRoot));
        assert_eq!(resolve("00", non_root), Err(UserError::ImageIsRoot));
        assert_eq!(resolve("app", non_root), Err(UserError::NonNumericUser("app".to_owned())));
        assert_eq!(resolve("1000", non_root), ids(1000, 1001, &[29, 50, 1001]));
        assert_eq!(
            resolve("1000", |p| {
                non_root(p);
                p.containers[0].security.run_as_user = Some(0);
            }),
            Err(UserError::RunAsUserIsRoot)
        );
        // The container may override the pod's requirement.
        assert_eq!(
            resolve("", |p| {
                non_root(p);
                p.containers[0].security.run_as_non_root = Some(false);
            }),
            ids(0, 0, &[0])
        );
    }

    #[test]
    fn user_databases_are_bounded() {
        let big = "x".repeat(MAX_USER_FILE_BYTES + 1);
        let pod = pod();
        for files in
            [UserFiles { passwd: Some(&big), group: None }, UserFiles { passwd: None, group: Some(&big) }]
        {
            assert!(matches!(
                resolve_user(&pod, &pod.containers[0], "", files),
                Err(UserError::FileTooLarge { .. })
            ));
        }
    }

    proptest! {
        /// For any content of an image: no panic, and the result is in range, sorted and contains the primary
        /// group.
        #[test]
        fn any_database_gives_a_user_in_range_or_an_error(
            user in "[a-z0-9:+-]{0,12}",
            passwd in "([a-z]{0,3}:x?:-?[0-9]{0,11}:[0-9]{0,11}(:.{0,5}){0,3}\n?){0,6}",
            group in "([a-z]{0,3}:x?:[0-9a]{0,11}:([a-z]{1,3},?){0,3}\n?){0,6}",
            non_root: bool,
        ) {
            let mut pod = pod();
            pod.security.run_as_non_root = Some(non_root);
            let files = UserFiles { passwd: Some(&passwd), group: Some(&group) };
            if let Ok(got) = resolve_user(&pod, &pod.containers[0], &user, files) {
                prop_assert!(got.uid <= MAX_ID && got.gid <= MAX_ID);
                prop_assert!(!(non_root && got.uid == 0));
                prop_assert!(got.additional_gids.is_sorted() && got.additional_gids.contains(&got.gid));
            }
        }
    }
}
