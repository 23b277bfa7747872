//! How a daemon becomes its service user: look the user and its groups up, acquire what needs root, then give root
//! up for good. A missing user or group is an error that says how to create it; there is no fallback.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Group, Uid, User};

/// Why a service user could not be found, or become.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivilegeError {
    /// The user does not exist.
    #[error("user {0} does not exist; create it with: systemd-sysusers (or: useradd --system {0})")]
    NoUser(String),
    /// The group does not exist.
    #[error("group {0} does not exist; create it with: systemd-sysusers (or: groupadd --system {0})")]
    NoGroup(String),
    /// The user database could not be read.
    #[error("cannot look up {name} in the user database: {source}")]
    Lookup {
        /// The user or group.
        name: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Neither root nor the service user.
    #[error("started as uid {uid}; start it as root or as user {user}")]
    WrongUser {
        /// Effective user id of this process.
        uid: Uid,
        /// The service user.
        user: String,
    },
    /// A capability that is needed is not there.
    #[error("capability {0} is missing; start as root, or give it with AmbientCapabilities={0} in the unit")]
    MissingCapability(Capability),
    /// A step of the drop failed.
    #[error("cannot {step}: {source}")]
    Drop {
        /// The step.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// A system user that a daemon runs as, and its primary group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceUser {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: Uid,
    /// Primary group.
    pub gid: Gid,
}

impl ServiceUser {
    /// Looks the user `name` up.
    pub fn lookup(name: &str) -> Result<Self, PrivilegeError> {
        let found = User::from_name(name)
            .map_err(|error| PrivilegeError::Lookup { name: name.into(), source: error.into() })?;
        let user = found.ok_or_else(|| PrivilegeError::NoUser(name.into()))?;
        Ok(Self { name: user.name, uid: user.uid, gid: user.gid })
    }
}

/// Looks the group `name` up.
pub fn group(name: &str) -> Result<Gid, PrivilegeError> {
    let found = Group::from_name(name)
        .map_err(|error| PrivilegeError::Lookup { name: name.into(), source: error.into() })?;
    found.map(|group| group.gid).ok_or_else(|| PrivilegeError::NoGroup(name.into()))
}

/// Whether this process may still acquire things as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Started as root: it drops by itself.
    Root,
    /// Started as the service user, as systemd does.
    Dropped,
}

/// Tells how this process was started, and refuses any user but root and `user`.
pub fn started_as(user: &ServiceUser) -> Result<Start, PrivilegeError> {
    match nix::unistd::geteuid() {
        uid if uid.is_root() => Ok(Start::Root),
        uid if uid == user.uid => Ok(Start::Dropped),
        uid => Err(PrivilegeError::WrongUser { uid, user: user.name.clone() }),
    }
}

/// Becomes `user` for good, keeping exactly `keep`: real, effective and saved ids, no supplementary groups, every
/// capability set reduced, `no_new_privs`, not dumpable. A process that is the service user already gives up what is
/// not in `keep` and checks that the rest is there.
///
/// Acts on the calling thread: call it before any other thread is started.
pub fn drop_to(user: &ServiceUser, keep: &[Capability]) -> Result<(), PrivilegeError> {
    let keep: CapsHashSet = keep.iter().copied().collect();
    if started_as(user)? == Start::Root {
        limit_bounding_set(&keep)?;
        switch_ids(user)?;
    } else {
        let held = caps::read(None, CapSet::Permitted).map_err(caps_error("read the capabilities"))?;
        if let Some(missing) = keep.iter().find(|capability| !held.contains(capability)) {
            return Err(PrivilegeError::MissingCapability(*missing));
        }
    }
    limit_capabilities(&keep)?;
    nix::sys::prctl::set_no_new_privs().map_err(errno("set no_new_privs"))?;
    nix::sys::prctl::set_dumpable(false).map_err(errno("forbid core dumps"))?;
    Ok(())
}

/// Returns the capabilities this process can use, sorted by name.
pub fn effective_capabilities() -> Result<Vec<Capability>, PrivilegeError> {
    let held = caps::read(None, CapSet::Effective).map_err(caps_error("read the capabilities"))?;
    let mut held: Vec<Capability> = held.into_iter().collect();
    held.sort_by_key(ToString::to_string);
    Ok(held)
}

fn limit_bounding_set(keep: &CapsHashSet) -> Result<(), PrivilegeError> {
    let step = "limit the bounding set";
    for capability in caps::read(None, CapSet::Bounding).map_err(caps_error(step))? {
        if !keep.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability).map_err(caps_error(step))?;
        }
    }
    Ok(())
}

fn switch_ids(user: &ServiceUser) -> Result<(), PrivilegeError> {
    // The permitted set would be emptied when the last id stops being 0 (capabilities(7)).
    nix::sys::prctl::set_keepcaps(true).map_err(errno("keep capabilities over the change of user"))?;
    nix::unistd::setgroups(&[]).map_err(errno("clear the supplementary groups"))?;
    nix::unistd::setresgid(user.gid, user.gid, user.gid).map_err(errno("set the group ids"))?;
    nix::unistd::setresuid(user.uid, user.uid, user.uid).map_err(errno("set the user ids"))?;
    nix::sys::prctl::set_keepcaps(false).map_err(errno("stop keeping capabilities"))
}

fn limit_capabilities(keep: &CapsHashSet) -> Result<(), PrivilegeError> {
    let none = CapsHashSet::new();
    // Ambient first: it may never exceed the other two. Permitted last: what is gone from it cannot be made effective.
    caps::set(None, CapSet::Ambient, &none).map_err(caps_error("clear the ambient set"))?;
    caps::set(None, CapSet::Inheritable, &none).map_err(caps_error("clear the inheritable set"))?;
    caps::set(None, CapSet::Effective, keep).map_err(caps_error("set the effective set"))?;
    caps::set(None, CapSet::Permitted, keep).map_err(caps_error("set the permitted set"))
}

fn errno(step: &'static str) -> impl FnOnce(nix::Error) -> PrivilegeError {
    move |error| PrivilegeError::Drop { step, source: error.into() }
}

fn caps_error(step: &'static str) -> impl FnOnce(caps::errors::CapsError) -> PrivilegeError {
    move |error| PrivilegeError::Drop { step, source: io::Error::other(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_user_or_group_is_named_with_the_way_to_create_it() {
        let user = ServiceUser::lookup("plexd-nobody-here").map_err(|error| error.to_string());
        let group = group("plexd-nobody-here").map_err(|error| error.to_string());
        let (Err(user), Err(group)) = (user, group) else { unreachable!("no such user or group") };
        assert!(user.contains("user plexd-nobody-here") && user.contains("systemd-sysusers"), "{user}");
        assert!(group.contains("group plexd-nobody-here") && group.contains("groupadd"), "{group}");
    }
}
