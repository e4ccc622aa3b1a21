//! The devices with attached programs, and the devices that must get or lose them. Pure: the kernel side is
//! [`super::datapath`].
//!
//! Invariant: a device of a pod counts as attached only with the links of a pod's device, and an uplink only with
//! the links of an uplink. So a device that changes its role gets the links of the new role.

use berth_ebpf_loader::DeviceRole;
use std::collections::{BTreeMap, BTreeSet};

/// Devices with links of this node's programs, by index.
#[derive(Debug, Default)]
pub(super) struct DeviceLinks {
    /// DeviceRole of each device's links; `None` where a part of the links is missing.
    attached: BTreeMap<u32, Option<DeviceRole>>,
}

impl DeviceLinks {
    /// Takes over the links that the pins show. Links of a pod's device count only for the devices of known
    /// pods: the pod of another device may not have been observed yet.
    pub(super) fn read(&mut self, pinned: BTreeMap<u32, Option<DeviceRole>>, pods: &BTreeSet<u32>) {
        self.attached = pinned;
        self.attached.retain(|index, role| *role != Some(DeviceRole::Pod) || pods.contains(index));
    }

    /// Notes the attachment of a device.
    pub(super) fn attached(&mut self, index: u32, role: DeviceRole) {
        self.attached.insert(index, Some(role));
    }

    /// Notes the detachment of a device.
    pub(super) fn detached(&mut self, index: u32) {
        self.attached.remove(&index);
    }

    /// The devices among `wanted` that lack the links of their role.
    pub(super) fn missing(
        &self,
        wanted: impl IntoIterator<Item = (u32, DeviceRole)>,
    ) -> Vec<(u32, DeviceRole)> {
        let lacks = |(index, role): &(u32, DeviceRole)| self.attached.get(index) != Some(&Some(*role));
        wanted.into_iter().filter(lacks).collect()
    }

    /// The devices with links that are not among `wanted`: devices of gone pods, and former uplinks.
    pub(super) fn unwanted(&self, wanted: &BTreeMap<u32, DeviceRole>) -> Vec<u32> {
        self.attached.keys().copied().filter(|index| !wanted.contains_key(index)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let links = links(&[(2, None), (4, None)], &[]);
        assert_eq!(links.missing([(2, DeviceRole::Uplink)]), [(2, DeviceRole::Uplink)]);
        assert_eq!(links.unwanted(&BTreeMap::from([(2, DeviceRole::Uplink)])), [4]);
    }

    #[test]
    fn links_of_a_pod_that_is_not_observed_yet_stay() {
        let links = links(&[(5, Some(DeviceRole::Pod)), (6, Some(DeviceRole::Uplink))], &[]);
        assert_eq!(links.unwanted(&BTreeMap::new()), [6]);
        assert_eq!(links.missing([(5, DeviceRole::Pod)]), [(5, DeviceRole::Pod)]);
    }

    #[test]
    fn a_detached_device_is_unwanted_no_more() {
        let mut links = links(&[(7, Some(DeviceRole::Uplink))], &[]);
        links.detached(7);
        assert!(links.unwanted(&BTreeMap::new()).is_empty());
    }
}
