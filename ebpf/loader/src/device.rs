//! Attachment to devices: two tcx links for each device. One is at ingress and depends on the device's role,
//! one is at egress. Both run behind other programs there.

use crate::{
    Error, Pins, Result,
    pins::{list, open_link, open_program, pin_over, remove},
    sys::{LinkInfo, Target, info, link_create, link_update},
};
use std::{fmt, os::fd::AsFd};

/// DeviceRole of a device on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceRole {
    /// A device that leads out of the node.
    Uplink,
    /// The host side of a pod's veth pair: packets that the pod sends arrive here.
    Pod,
}

impl DeviceRole {
    /// The places of programs at a device of this role. The program that translates answers back comes first,
    /// before the program that redirects requests.
    pub fn places(self) -> [Place; 2] {
        [Place::Out, self.place()]
    }

    fn place(self) -> Place {
        match self {
            DeviceRole::Uplink => Place::Uplink,
            DeviceRole::Pod => Place::Pod,
        }
    }
}

/// Place of a program at a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Egress, of any device.
    Out,
    /// Ingress of a pod's device.
    Pod,
    /// Ingress of an uplink.
    Uplink,
}

impl Place {
    const ALL: [Place; 3] = [Place::Out, Place::Pod, Place::Uplink];

    fn name(self) -> &'static str {
        match self {
            Place::Out => "out",
            Place::Pod => "pod",
            Place::Uplink => "uplink",
        }
    }

    /// The name of the program at this place.
    pub fn program(self) -> &'static str {
        match self {
            Place::Out => "tc_out",
            Place::Pod => "tc_pod",
            Place::Uplink => "tc_uplink",
        }
    }

    /// The kernel's `BPF_TCX_INGRESS` (46) or `BPF_TCX_EGRESS` (47).
    fn attach_type(self) -> u32 {
        match self {
            Place::Pod | Place::Uplink => 46,
            Place::Out => 47,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A device's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLink {
    /// The device that the link was created for.
    pub ifindex: u32,
    /// The place of the program.
    pub place: Place,
    /// Whether the device still exists.
    pub live: bool,
    /// The kernel's id of the program.
    pub program: u32,
}

/// Outcome of [`adopt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Adoption {
    Kept,
    Swapped,
    /// The link is missing, or its device is gone.
    Gone,
}

fn pin_name(ifindex: u32, place: Place) -> String {
    format!("tcx-{ifindex}-{place}")
}

/// The device and place that the name of a pin in the directory of links stands for.
pub(crate) fn parse_pin(name: &str) -> Option<(u32, Place)> {
    let (ifindex, place) = name.strip_prefix("tcx-")?.split_once('-')?;
    Some((ifindex.parse().ok()?, Place::ALL.into_iter().find(|known| known.name() == place)?))
}

/// Ensures that the programs of `role`, and of no other role, run for packets of this device. Adopts existing
/// links and swaps their programs; a device that reuses the index of a removed device gets new links. The
/// index is that of the calling thread's network namespace.
///
/// # Errors
/// No program is pinned, the device does not exist, or the kernel refuses.
pub fn attach_device(pins: &Pins, ifindex: u32, role: DeviceRole) -> Result<()> {
    let wanted = role.places();
    for place in wanted {
        if adopt(pins, ifindex, place)? == Adoption::Gone {
            make(pins, ifindex, place)?;
        }
    }
    for other in Place::ALL.into_iter().filter(|place| !wanted.contains(place)) {
        remove(&pins.links().join(pin_name(ifindex, other)))?;
    }
    Ok(())
}

fn make(pins: &Pins, ifindex: u32, place: Place) -> Result<()> {
    let name = pin_name(ifindex, place);
    let (program, _) = open_program(pins, place.program())?;
    let link = link_create(program.as_fd(), Target::Device(ifindex), place.attach_type())
        .map_err(|source| Error::Link { op: "make", link: name.clone(), source })?;
    pin_over(link.as_fd(), &pins.links().join(name))
}

/// Switches a device's link to the prepared program.
pub(crate) fn adopt(pins: &Pins, ifindex: u32, place: Place) -> Result<Adoption> {
    let name = pin_name(ifindex, place);
    let failed = |op| {
        let link = name.clone();
        move |source| Error::Link { op, link, source }
    };
    let Some(link) = open_link(&pins.links().join(&name))? else { return Ok(Adoption::Gone) };
    let found: LinkInfo = info(link.as_fd()).map_err(failed("examine"))?;
    if found.ifindex() != ifindex {
        return Ok(Adoption::Gone);
    }
    let (program, id) = open_program(pins, place.program())?;
    if found.program == id {
        return Ok(Adoption::Kept);
    }
    match link_update(link.as_fd(), program.as_fd()) {
        Ok(()) => Ok(Adoption::Swapped),
        // The device disappeared during the call.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOLINK | libc::ENOENT | libc::ENODEV)) => {
            Ok(Adoption::Gone)
        }
        Err(e) => Err(failed("update")(e)),
    }
}

/// Detaches this agent's programs from a device, which may be gone already. Returns whether there was a link.
///
/// # Errors
/// The kernel refuses.
pub fn detach_device(pins: &Pins, ifindex: u32) -> Result<bool> {
    let mut was = false;
    for place in Place::ALL.into_iter().rev() {
        was |= remove(&pins.links().join(pin_name(ifindex, place)))?;
    }
    Ok(was)
}

/// The links of all devices, live or dead, in the order of their pins' names.
///
/// # Errors
/// The kernel refuses.
pub fn devices(pins: &Pins) -> Result<Vec<DeviceLink>> {
    let mut all = Vec::new();
    for (name, _) in list(&pins.links())? {
        let Some((ifindex, place)) = parse_pin(&name) else { continue };
        // Another process may detach a device in the meantime.
        all.extend(device_link(pins, ifindex, place)?);
    }
    Ok(all)
}

/// A device's link at a place; `None` where it has none.
///
/// # Errors
/// The kernel refuses.
pub fn device_link(pins: &Pins, ifindex: u32, place: Place) -> Result<Option<DeviceLink>> {
    let name = pin_name(ifindex, place);
    let Some(link) = open_link(&pins.links().join(&name))? else { return Ok(None) };
    let found: LinkInfo =
        info(link.as_fd()).map_err(|source| Error::Link { op: "examine", link: name, source })?;
    Ok(Some(DeviceLink { ifindex, place, live: found.ifindex() == ifindex, program: found.program }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_name_their_devices() {
        for place in Place::ALL {
            assert_eq!(parse_pin(&pin_name(17, place)), Some((17, place)));
        }
        for other in ["connect4", "tcx-1", "tcx-x-pod", "tcx-1-bond", "tcx-1-pod-new"] {
            assert_eq!(parse_pin(other), None, "{other}");
        }
    }
}
