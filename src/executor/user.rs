//! Who a task's command runs as, by the node's `passwd` and `group` files.

use std::fs;

use rustix::process::{Gid, Uid};

/// A user as a process has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: Uid,
    pub gid: Gid,
    /// The groups that it is in beside its own.
    pub groups: Vec<Gid>,
    /// Its folder.
    pub home: String,
}

impl User {
    /// Finds `USER[:GROUP]`, each by name or number; root unless one is named.
    ///
    /// # Errors
    /// The sentence says what is missing.
    pub fn find(wanted: Option<&str>) -> Result<Self, String> {
        // A node without these files has numbers only.
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let group = fs::read_to_string("/etc/group").unwrap_or_default();
        Self::find_in(wanted.unwrap_or("0"), &passwd, &group)
    }

    fn find_in(wanted: &str, passwd: &str, group: &str) -> Result<Self, String> {
        let (user, chosen_group) = match wanted.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (wanted, None),
        };
        let number = user.parse::<u32>().ok();
        // name:password:uid:gid:comment:home:shell
        let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let mut entry = entry.filter(|fields| fields.len() >= 6);
        let entry = entry.find(|fields| match number {
            Some(_) => fields[2] == user,
            None => fields[0] == user,
        });
        let parse = |text: &str| text.parse::<u32>().ok();
        let uid = number.or_else(|| parse(entry.as_ref()?[2]));
        let uid = uid.ok_or_else(|| format!("there is no user '{user}' on this node"))?;
        let gid = match chosen_group {
            Some(name) => group_id(name, group)
                .ok_or_else(|| format!("there is no group '{name}' on this node"))?,
            None => entry.as_ref().and_then(|entry| parse(entry[3])).unwrap_or(0),
        };
        let name = entry.as_ref().map_or("", |entry| entry[0]);
        let groups = match chosen_group {
            Some(_) => Vec::new(),
            None => groups_with(name, group),
        };
        let home = entry.as_ref().map_or("/", |entry| entry[5]).to_owned();
        let [uid, gid] = [uid, gid];
        Ok(Self { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid), groups, home })
    }
}

/// name:password:gid:members
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        Some((name, fields.next()?.parse().ok()?, fields.next().unwrap_or("")))
    })
}

fn group_id(wanted: &str, group: &str) -> Option<u32> {
    wanted
        .parse()
        .ok()
        .or_else(|| groups(group).find(|(name, ..)| *name == wanted).map(|(_, gid, _)| gid))
}

fn groups_with(user: &str, group: &str) -> Vec<Gid> {
    let is_member = |members: &str| members.split(',').any(|member| member == user);
    let of_user = groups(group).filter(|(.., members)| !user.is_empty() && is_member(members));
    of_user.map(|(_, gid, _)| Gid::from_raw(gid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbent\nada:x:1000:1000:Ada:/home/ada:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nada:x:1000:\nnet:x:50:bob,ada\nbent:x:y:\n";

    #[test]
    fn names_and_numbers_are_found() {
        let find = |wanted: &str| {
            User::find_in(wanted, PASSWD, GROUP).map(|user| {
                let groups: Vec<u32> = user.groups.iter().map(|group| group.as_raw()).collect();
                (user.uid.as_raw(), user.gid.as_raw(), groups, user.home)
            })
        };
        assert_eq!(find("0"), Ok((0, 0, vec![], "/root".into())));
        assert_eq!(find("ada"), Ok((1000, 1000, vec![50], "/home/ada".into())));
        assert_eq!(find("1000"), Ok((1000, 1000, vec![50], "/home/ada".into())));
        assert_eq!(find("ada:net"), Ok((1000, 50, vec![], "/home/ada".into())));
        assert_eq!(find("77:88"), Ok((77, 88, vec![], "/".into())));
        assert_eq!(find("bob"), Err("there is no user 'bob' on this node".into()));
        assert_eq!(find("ada:x"), Err("there is no group 'x' on this node".into()));
    }
}
