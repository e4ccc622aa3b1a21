//! Devices: one tcx link each, at ingress, behind other programs there.

use crate::{
    Error, Pins, Result,
    attach::{open_link, open_program},
    pins::{list, pin_over, remove},
    sys::{LinkInfo, Target, info, link_create, link_update},
};
use std::{fmt, os::fd::AsFd};

const ATTACH_TCX_INGRESS: u32 = 46;

/// What a device is to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It brings what comes from outside.
    Uplink,
    /// The host's side of a pod's veth pair: it brings what the pod sends.
    Pod,
}

impl Role {
    const ALL: [Role; 2] = [Role::Uplink, Role::Pod];

    fn name(self) -> &'static str {
        match self {
            Role::Uplink => "uplink",
            Role::Pod => "pod",
        }
    }

    /// The program it gets.
    pub fn program(self) -> &'static str {
        match self {
            Role::Uplink => "tc_uplink",
            Role::Pod => "tc_pod",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A device that a program is pinned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLink {
    /// The device it was attached to.
    pub ifindex: u32,
    /// As what.
    pub role: Role,
    /// Whether the device is still there.
    pub live: bool,
    /// The kernel's id of the program.
    pub program: u32,
}

/// What [`adopt`] found.
pub(crate) enum Adoption {
    Kept,
    Swapped,
    /// There is no link, or its device is gone.
    Gone,
}

fn pin_name(ifindex: u32, role: Role) -> String {
    format!("tcx-{ifindex}-{role}")
}

/// The device of a pin in the directory of links.
pub(crate) fn parse_pin(name: &str) -> Option<(u32, Role)> {
    let (ifindex, role) = name.strip_prefix("tcx-")?.split_once('-')?;
    Some((ifindex.parse().ok()?, Role::ALL.into_iter().find(|known| known.name() == role)?))
}

/// Sees to it that the program of `role` runs for packets that come in by this device, and none of another role.
/// Adopts and swaps a link that is there; a device that took a dead one's index gets a new link.
///
/// # Errors
/// Nothing was prepared, there is no such device, or the kernel refuses.
pub fn attach_device(pins: &Pins, ifindex: u32, role: Role) -> Result<()> {
    if let Adoption::Gone = adopt(pins, ifindex, role)? {
        let name = pin_name(ifindex, role);
        let (program, _) = open_program(pins, role.program())?;
        let link = link_create(program.as_fd(), Target::Device(ifindex), ATTACH_TCX_INGRESS)
            .map_err(|source| Error::Link { op: "make", link: name.clone(), source })?;
        pin_over(link.as_fd(), &pins.links().join(name))?;
    }
    for other in Role::ALL.into_iter().filter(|other| *other != role) {
        remove(&pins.links().join(pin_name(ifindex, other)))?;
    }
    Ok(())
}

/// Brings a device's link to the prepared program.
pub(crate) fn adopt(pins: &Pins, ifindex: u32, role: Role) -> Result<Adoption> {
    let name = pin_name(ifindex, role);
    let failed = |op| {
        let link = name.clone();
        move |source| Error::Link { op, link, source }
    };
    let Some(link) = open_link(&pins.links().join(&name))? else { return Ok(Adoption::Gone) };
    let found: LinkInfo = info(link.as_fd()).map_err(failed("examine"))?;
    if found.ifindex() != ifindex {
        return Ok(Adoption::Gone);
    }
    let (program, id) = open_program(pins, role.program())?;
    if found.program == id {
        return Ok(Adoption::Kept);
    }
    match link_update(link.as_fd(), program.as_fd()) {
        Ok(()) => Ok(Adoption::Swapped),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOLINK | libc::ENOENT | libc::ENODEV)) => {
            Ok(Adoption::Gone)
        }
        Err(e) => Err(failed("update")(e)),
    }
}

/// Detaches our programs from a device, whether it is still there or not. Says whether there was one.
///
/// # Errors
/// The kernel refuses.
pub fn detach_device(pins: &Pins, ifindex: u32) -> Result<bool> {
    let mut was = false;
    for role in Role::ALL {
        was |= remove(&pins.links().join(pin_name(ifindex, role)))?;
    }
    Ok(was)
}

/// The devices that have a link, live or dead.
///
/// # Errors
/// The kernel refuses.
pub fn devices(pins: &Pins) -> Result<Vec<DeviceLink>> {
    let mut all = Vec::new();
    for (name, path) in list(&pins.links())? {
        let Some((ifindex, role)) = parse_pin(&name) else { continue };
        // Another process may detach meanwhile.
        let Some(link) = open_link(&path)? else { continue };
        let found: LinkInfo =
            info(link.as_fd()).map_err(|source| Error::Link { op: "examine", link: name, source })?;
        all.push(DeviceLink { ifindex, role, live: found.ifindex() == ifindex, program: found.program });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_name_their_devices() {
        for role in Role::ALL {
            assert_eq!(parse_pin(&pin_name(17, role)), Some((17, role)));
        }
        for other in ["connect4", "tcx-1", "tcx-x-pod", "tcx-1-bond", "tcx-1-pod-new"] {
            assert_eq!(parse_pin(other), None, "{other}");
        }
    }
}
