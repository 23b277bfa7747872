//! A lab: hosts on a bridge. Every lab has names and directories of its own, so that tests run side by side.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::DirBuilderExt;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::host::{Address, Host};
use crate::output::Output;
use crate::requirements::tool;
use crate::{require_root_and_tools, sweep, users};

/// Labs made by this process.
static LABS: AtomicU32 = AtomicU32::new(0);

/// Hosts on a bridge that has a network namespace of its own: nothing reaches the machine's network, or from there.
/// Dropping the lab ends every process in it and removes it.
#[derive(Debug)]
pub struct Lab {
    name: String,
    hosts: Vec<Host>,
    leave: bool,
}

impl Lab {
    /// Makes a lab with the named hosts: the first at 192.0.2.1 and `2001:db8::1`, the second at 192.0.2.2 and so on.
    /// Names are 1 to 10 letters or digits.
    #[track_caller]
    pub fn new(hosts: &[&str]) -> Self {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        Self::named(&sweep::name(std::process::id(), number), hosts)
    }

    /// Makes a lab whose name is known beforehand, for a person who looks around in it. There can be one of the name at
    /// a time, and [`sweep`](crate::sweep()) lets it be.
    #[track_caller]
    pub fn named(name: &str, hosts: &[&str]) -> Self {
        require_root_and_tools();
        users::ensure_users();
        sweep::sweep();
        let directory = sweep::directory(name);
        // Not `create_dir_all`: a lab of that name must not exist.
        let made = fs::DirBuilder::new().mode(0o755).create(&directory);
        made.unwrap_or_else(|error| {
            panic!("cannot make {}: {error}; is lab {name} up?", directory.display())
        });
        let mut lab = Self { name: name.into(), hosts: Vec::new(), leave: false };

        ip(&["netns", "add", name]);
        ip(&["-n", name, "link", "add", "bridge", "type", "bridge"]);
        ip(&["-n", name, "link", "set", "bridge", "up"]);
        for (number, host) in (1..).zip(hosts) {
            let host = lab.add_host(host, number);
            lab.hosts.push(host);
        }
        lab
    }

    #[track_caller]
    fn add_host(&self, name: &str, number: u8) -> Host {
        assert!(
            (1..=10).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric()),
            "{name:?} is no name for a host: 1 to 10 letters or digits"
        );
        let netns = format!("{}-{name}", self.name);
        let address = Address {
            v4: Ipv4Addr::new(192, 0, 2, number),
            v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)),
        };
        ip(&["netns", "add", &netns]);
        let bridge = ["-n", &self.name, "link"];
        ip(&[&bridge[..], &["add", "name", name, "type", "veth", "peer", "name", "eth0", "netns", &netns]]
            .concat());
        ip(&[&bridge[..], &["set", "dev", name, "master", "bridge", "up"]].concat());
        ip(&["-n", &netns, "link", "set", "lo", "up"]);
        ip(&["-n", &netns, "link", "set", "eth0", "up"]);
        ip(&["-n", &netns, "address", "add", &format!("{}/24", address.v4), "dev", "eth0"]);
        // Without duplicate address detection, which would make the address wait for a second.
        ip(&["-n", &netns, "address", "add", &format!("{}/64", address.v6), "dev", "eth0", "nodad"]);
        Host::new(name, netns, address, &sweep::directory(&self.name).join(name))
    }

    /// Returns the lab's name, which is also that of the bridge's network namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the host `name`.
    #[track_caller]
    pub fn host(&self, name: &str) -> &Host {
        let host = self.hosts.iter().find(|host| host.name() == name);
        host.unwrap_or_else(|| panic!("no host {name} in lab {}", self.name))
    }

    /// Pulls the cable of `host` out of the bridge.
    #[track_caller]
    pub fn unplug(&self, host: &Host) {
        ip(&["-n", &self.name, "link", "set", "dev", host.name(), "down"]);
    }

    /// Plugs the cable of `host` in again.
    #[track_caller]
    pub fn plug(&self, host: &Host) {
        ip(&["-n", &self.name, "link", "set", "dev", host.name(), "up"]);
    }

    /// Leaves the lab running when this process ends; [`remove`](crate::remove) takes it down. Daemons are to be left
    /// by [`Daemon::leave`](crate::Daemon::leave).
    pub fn leave(mut self) {
        self.leave = true;
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.leave {
            return;
        }
        let removed = sweep::remove(&self.name);
        // A panic while panicking would abort the process and hide the first one.
        if let (Err(error), false) = (removed, std::thread::panicking()) {
            panic!("cannot take down lab {}: {error}", self.name);
        }
    }
}

#[track_caller]
fn ip(arguments: &[&str]) {
    let line = [&["ip"], arguments].concat();
    Output::of(tool("ip").args(arguments), &line).expect_success();
}

#[cfg(test)]
#[path = "lab_tests.rs"]
mod root_netns;
