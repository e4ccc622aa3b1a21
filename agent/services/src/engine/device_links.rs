//! The devices with attached programs, and the devices that must get or lose them. Pure: the kernel side is
//! [`super::datapath`].
//!
//! The links of a gone pod's device stay for [`KEEP`]. The pod's CNI plugin deletes the device meanwhile, and the kernel the
//! links with it. Removing a link of a live device holds the kernel's RTNL lock for an RCU grace period (some 20 ms), for
//! which the plugin would have to wait. A dead link is removed without that lock.
//!
//! Invariant: a device of a pod counts as attached only with the links of a pod's device, and an uplink only with
//! the links of an uplink. So a device that changes its role gets the links of the new role.

use berth_core::time::Boottime;
use berth_ebpf_loader::DeviceRole;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Time for which the links of a gone pod's device stay.
pub(super) const KEEP: Duration = Duration::from_secs(10);

/// Devices with links of this node's programs, by index.
#[derive(Debug, Default)]
pub(super) struct DeviceLinks {
    /// DeviceRole of each device's links; `None` where a part of the links is missing.
    attached: BTreeMap<u32, Option<DeviceRole>>,
    /// Devices of gone pods, with the time at which they lose their links.
    leaving: BTreeMap<u32, Boottime>,
}

/// The devices that no role wants.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unwanted {
    /// Those that lose their links now.
    pub(super) now: Vec<u32>,
    /// The time at which the next ones do.
    pub(super) next: Option<Boottime>,
}

impl DeviceLinks {
    /// Takes over the links that the pins show. Links of a pod's device count only for the devices of known
    /// pods, and of pods that were known: the pod of another device may not have been observed yet.
    pub(super) fn read(&mut self, pinned: BTreeMap<u32, Option<DeviceRole>>, pods: &BTreeSet<u32>) {
        self.attached = pinned;
        self.leaving.retain(|index, _| self.attached.contains_key(index));
        let known = |index: &u32| pods.contains(index) || self.leaving.contains_key(index);
        self.attached.retain(|index, role| *role != Some(DeviceRole::Pod) || known(index));
    }

    /// Notes the attachment of a device.
    pub(super) fn attached(&mut self, index: u32, role: DeviceRole) {
        self.attached.insert(index, Some(role));
    }

    /// Notes the detachment of a device.
    pub(super) fn detached(&mut self, index: u32) {
        self.attached.remove(&index);
        self.leaving.remove(&index);
    }

    /// The devices among `wanted` that lack the links of their role.
    pub(super) fn missing(
        &self,
        wanted: impl IntoIterator<Item = (u32, DeviceRole)>,
    ) -> Vec<(u32, DeviceRole)> {
        let lacks = |(index, role): &(u32, DeviceRole)| self.attached.get(index) != Some(&Some(*role));
        wanted.into_iter().filter(lacks).collect()
    }

    /// The devices with links that are not among `wanted`: devices of gone pods once their time is over, and former uplinks
    /// at once.
    pub(super) fn unwanted(&mut self, wanted: &BTreeMap<u32, DeviceRole>, now: Boottime) -> Unwanted {
        self.leaving.retain(|index, _| !wanted.contains_key(index));
        let mut unwanted = Unwanted::default();
        for (index, role) in self.attached.iter().filter(|(index, _)| !wanted.contains_key(index)) {
            if *role != Some(DeviceRole::Pod) {
                unwanted.now.push(*index);
                continue;
            }
            let end = *self.leaving.entry(*index).or_insert(now + KEEP);
            if end <= now {
                unwanted.now.push(*index);
            } else {
                unwanted.next = Some(unwanted.next.map_or(end, |next| next.min(end)));
            }
        }
        unwanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Boottime = Boottime(Duration::from_secs(100));

    fn links(pinned: &[(u32, Option<DeviceRole>)], pods: &[u32]) -> DeviceLinks {
        let mut links = DeviceLinks::default();
        links.read(pinned.iter().copied().collect(), &pods.iter().copied().collect());
        links
    }

    #[test]
    fn a_device_that_changes_its_role_gets_the_links_of_the_new_role() {
        let mut links = links(&[(2, Some(DeviceRole::Uplink)), (3, Some(DeviceRole::Pod))], &[3]);
        assert_eq!(links.missing([(2, DeviceRole::Uplink), (3, DeviceRole::Pod)]), []);
        assert_eq!(
            links.missing([(2, DeviceRole::Pod), (3, DeviceRole::Uplink)]),
            [(2, DeviceRole::Pod), (3, DeviceRole::Uplink)]
        );
        links.attached(2, DeviceRole::Pod);
        assert_eq!(links.missing([(2, DeviceRole::Pod)]), []);
    }

    #[test]
    fn a_device_with_a_part_of_its_links_gets_the_rest_and_loses_them_only_where_no_role_wants_it() {
        let mut links = links(&[(2, None), (4, None)], &[]);
        assert_eq!(links.missing([(2, DeviceRole::Uplink)]), [(2, DeviceRole::Uplink)]);
        assert_eq!(links.unwanted(&BTreeMap::from([(2, DeviceRole::Uplink)]), NOW).now, [4]);
    }

    #[test]
    fn links_of_a_pod_that_is_not_observed_yet_stay() {
        let mut links = links(&[(5, Some(DeviceRole::Pod)), (6, Some(DeviceRole::Uplink))], &[]);
        assert_eq!(links.unwanted(&BTreeMap::new(), NOW).now, [6]);
        assert_eq!(links.missing([(5, DeviceRole::Pod)]), [(5, DeviceRole::Pod)]);
    }

    #[test]
    fn a_detached_device_is_unwanted_no_more() {
        let mut links = links(&[(7, Some(DeviceRole::Uplink))], &[]);
        links.detached(7);
        assert_eq!(links.unwanted(&BTreeMap::new(), NOW), Unwanted::default());
    }

    #[test]
    fn the_device_of_a_gone_pod_keeps_its_links_while_the_plugin_deletes_it() {
        let pods = [(3, Some(DeviceRole::Pod)), (4, Some(DeviceRole::Pod))];
        let mut links = links(&pods, &[3, 4]);
        let wanted = BTreeMap::from([(4, DeviceRole::Pod)]);
        let kept = |until| Unwanted { now: Vec::new(), next: Some(until) };
        assert_eq!(links.unwanted(&wanted, NOW), kept(NOW + KEEP));
        let later = NOW + Duration::from_secs(1);
        assert_eq!(links.unwanted(&BTreeMap::new(), later), kept(NOW + KEEP), "the first of two ends");
        assert_eq!(links.unwanted(&wanted, NOW + KEEP).now, [3]);
        links.detached(3);
        // Pod 4 was seen again meanwhile: its time begins anew.
        assert_eq!(links.unwanted(&BTreeMap::new(), NOW + KEEP), kept(NOW + KEEP + KEEP));
        // A reading of the pins does not make it the device of a pod that was never observed.
        links.read([(4, Some(DeviceRole::Pod))].into(), &BTreeSet::new());
        assert_eq!(links.unwanted(&BTreeMap::new(), NOW + KEEP + KEEP).now, [4]);
    }
}
