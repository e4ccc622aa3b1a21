//! How many volumes each CSI driver takes on the node may change: a driver whose CSIDriver has
//! `nodeAllocatableUpdatePeriodSeconds` is asked again in that interval, and at once when the attachment of a volume to the
//! node fails for want of room. What it says goes to the CSINode as at its registration.
//!
//! Owns one task, and one for each driver that is being asked.

use super::super::{csi::PluginWatch, sources::Latest};
use berth_cluster::Task;
use berth_core::{
    model::{ObjectKind, Objects},
    value::Value,
};
use berth_csi_client::{DriverName, registration::Refresher};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// Time until the next look where no driver is due.
const IDLE: Duration = Duration::from_secs(3600);

/// Starts the task.
pub(super) fn start(latest: Latest, plugins: PluginWatch, refresher: Refresher) -> Task {
    Task::spawn(run(latest, plugins, refresher))
}

async fn run(mut latest: Latest, mut plugins: PluginWatch, refresher: Refresher) {
    let (mut schedule, mut asking) = (Schedule::default(), JoinSet::new());
    loop {
        let (periods, exhausted) = {
            let objects = latest.borrow_and_update().objects();
            let plugins = plugins.borrow_and_update();
            let period = |name: &DriverName| Some((name.clone(), period(&objects, name)?));
            let periods: BTreeMap<DriverName, Duration> = plugins.drivers.keys().filter_map(period).collect();
            (periods, exhausted(&objects))
        };
        let now = Instant::now();
        for name in schedule.due(&periods, &exhausted, now) {
            let refresher = refresher.clone();
            asking.spawn(async move {
                let asked = refresher.refresh(&name).await;
                (name, asked)
            });
        }
        tokio::select! {
            changed = latest.changed() => if changed.is_err() {
                return;
            },
            changed = plugins.changed() => if changed.is_err() {
                return;
            },
            Some(asked) = asking.join_next() => match asked {
                Ok((name, result)) => {
                    schedule.asked(&name);
                    if let Err(error) = result {
                        tracing::warn!("{error}");
                    }
                }
                Err(error) => tracing::error!(%error, "cannot ask a CSI driver for its limit"),
            },
            () = sleep_until(schedule.next(now)) => {}
        }
    }
}

/// The driver's period.
fn period(objects: &Objects, name: &DriverName) -> Option<Duration> {
    match objects.csi_driver(name.as_str()) {
        Value::Known(driver) => driver.limit_period.map(Duration::from_secs),
        Value::Absent | Value::Unknown(_) => None,
    }
}

/// The attachments that fail for want of room, with their drivers.
fn exhausted(objects: &Objects) -> BTreeSet<(String, String)> {
    let attachments = objects.names().filter(|name| name.0 == ObjectKind::VolumeAttachment);
    let full = attachments.filter_map(|(_, namespace, name)| match objects.attachment(namespace, name) {
        Value::Known(found) if found.exhausted => Some((found.driver.clone(), name.clone())),
        _ => None,
    });
    full.collect()
}

/// When each driver is asked next.
#[derive(Debug, Default)]
struct Schedule {
    due: BTreeMap<DriverName, (Duration, Instant)>,
    running: BTreeSet<DriverName>,
    /// The attachments that were seen to fail.
    seen: BTreeSet<(String, String)>,
}

impl Schedule {
    /// The drivers to ask now. They count as being asked.
    fn due(
        &mut self,
        periods: &BTreeMap<DriverName, Duration>,
        exhausted: &BTreeSet<(String, String)>,
        now: Instant,
    ) -> Vec<DriverName> {
        self.due.retain(|name, (period, _)| periods.get(name) == Some(period));
        for (name, period) in periods {
            self.due.entry(name.clone()).or_insert((*period, now + *period));
        }
        let new: BTreeSet<&str> =
            exhausted.difference(&self.seen).map(|(driver, _)| driver.as_str()).collect();
        let mut asked = Vec::new();
        for (name, (period, at)) in &mut self.due {
            let wanted = *at <= now || new.contains(name.as_str());
            if wanted && self.running.insert(name.clone()) {
                *at = now + *period;
                asked.push(name.clone());
            }
        }
        self.seen.clone_from(exhausted);
        asked
    }

    fn asked(&mut self, name: &DriverName) {
        self.running.remove(name);
    }

    /// The next look, after one at `now`. A driver that is being asked is looked at once it has answered.
    fn next(&self, now: Instant) -> Instant {
        let waiting = self.due.iter().filter(|(name, _)| !self.running.contains(*name));
        waiting.map(|(_, (_, at))| *at).min().unwrap_or(now + IDLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DriverName {
        DriverName::parse(text).unwrap()
    }

    #[test]
    fn a_driver_is_asked_in_its_interval_and_when_its_room_is_used_up() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let periods = BTreeMap::from([(name("a"), 10 * second), (name("b"), 30 * second)]);
        let (none, mut schedule) = (BTreeSet::new(), Schedule::default());
        assert!(schedule.due(&periods, &none, begin).is_empty());
        assert_eq!(schedule.next(begin), begin + 10 * second);
        let at = begin + 10 * second;
        assert_eq!(schedule.due(&periods, &none, at), [name("a")]);
        assert_eq!(schedule.next(at), begin + 30 * second, "the other one");
        assert!(schedule.due(&periods, &none, at + 20 * second - second).is_empty(), "it has not answered");
        schedule.asked(&name("a"));
        let full = BTreeSet::from([("b".to_owned(), "csi-1".to_owned()), ("c".into(), "csi-2".into())]);
        let at = begin + 12 * second;
        assert_eq!(schedule.due(&periods, &full, at), [name("b")]);
        schedule.asked(&name("b"));
        assert!(schedule.due(&periods, &full, at).is_empty(), "once for each failure");
        let other = BTreeMap::from([(name("b"), 5 * second)]);
        assert!(schedule.due(&other, &full, at).is_empty());
        assert_eq!(schedule.next(at), at + 5 * second, "the interval has changed");
        assert!(schedule.due(&BTreeMap::new(), &full, at + 99 * second).is_empty());
    }
}
