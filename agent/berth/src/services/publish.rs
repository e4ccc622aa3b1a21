//! The zone of the cluster's names, published as Services and endpoints change.

use berth_core::{
    ids::PodKey,
    model::{EndpointSlice, Service},
    roots::Roots,
    time::Boottime,
};
use berth_dns::{PodNames, Publisher, build};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// A burst of changes makes one zone.
const SETTLE: Duration = Duration::from_millis(50);

/// What cannot be written is tried again after this.
const RETRY: Duration = Duration::from_secs(5);

/// The zone file.
pub(super) struct Zones {
    publisher: Option<Publisher>,
    domain: String,
    dirty: bool,
    due: Option<Boottime>,
    told: bool,
}

impl Zones {
    pub(super) fn open(roots: &Roots, domain: &str) -> Zones {
        let publisher = Publisher::open(roots)
            .inspect_err(|error| tracing::error!(%error, "no names of Services are published"))
            .ok();
        Zones { publisher, domain: domain.to_owned(), dirty: true, due: None, told: false }
    }

    /// Something that names follow from changed.
    pub(super) fn changed(&mut self) {
        self.dirty = true;
    }

    /// Publishes the zone when it is time; otherwise says when that is.
    pub(super) fn keep(
        &mut self,
        services: &BTreeMap<PodKey, Arc<Service>>,
        slices: &BTreeMap<PodKey, Arc<EndpointSlice>>,
        now: Boottime,
    ) -> Option<Boottime> {
        if !self.dirty {
            return None;
        }
        let due = *self.due.get_or_insert(now + SETTLE);
        if now < due {
            return Some(due);
        }
        let publisher = self.publisher.as_mut()?;
        let services = services.values().map(AsRef::as_ref);
        let zone = build(services, slices.values().map(AsRef::as_ref), PodNames::Any, &self.domain);
        match publisher.publish(zone) {
            Ok(_changed) => {
                (self.due, self.dirty, self.told) = (None, false, false);
                None
            }
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    tracing::error!(%error, "names of Services are not published; tried again");
                }
                self.due = Some(now + RETRY);
                self.due
            }
        }
    }
}
