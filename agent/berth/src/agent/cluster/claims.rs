//! The claims of volumes that grow, as the API server has them.

use berth_cluster::{ClaimSizes, publish::events::Events};
use berth_core::{
    event::{Event, EventRecord, Involved},
    model::Pod,
    volume::expand::{ClaimSize, SizeChange},
};
use berth_kube::pool::Pool;
use berth_sys::clock;
use berth_volumes::{ClaimAnswer, ClaimOfVolume, Claims};

/// Reads and changes claims, and reports events.
pub(super) struct ClaimsOfVolumes {
    sizes: ClaimSizes,
    events: Events,
}

impl ClaimsOfVolumes {
    pub(super) fn new(pool: Pool, events: Events) -> ClaimsOfVolumes {
        ClaimsOfVolumes { sizes: ClaimSizes::new(pool), events }
    }
}

impl Claims for ClaimsOfVolumes {
    fn size<'a>(&'a self, claim: &'a ClaimOfVolume) -> ClaimAnswer<'a> {
        Box::pin(self.sizes.get(claim.namespace.as_str(), &claim.name))
    }

    fn change<'a>(
        &'a self,
        claim: &'a ClaimOfVolume,
        before: &'a ClaimSize,
        change: &'a SizeChange,
    ) -> ClaimAnswer<'a> {
        Box::pin(self.sizes.change((claim.namespace.as_str(), &claim.name), before, change))
    }

    fn tell(&self, pod: &Pod, claim: Option<&ClaimOfVolume>, event: Event) {
        if let Some(ClaimOfVolume { namespace, name, uid }) = claim {
            self.events.report_of_claim(namespace.as_str(), name, uid, event.clone());
        }
        let involved = Involved::Pod { key: pod.key.clone(), uid: pod.uid.clone() };
        self.events.report(&EventRecord::once(involved, event, clock::wall()));
    }
}
