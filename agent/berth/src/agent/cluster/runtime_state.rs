//! Health of containerd as the node's condition Ready shows it.

use berth_api::view::Health;
use std::time::Duration;
use tokio::time::Instant;

/// Time for which containerd may be away before the node counts as not ready (`maxWaitForContainerRuntime`,
/// `pkg/kubelet/kubelet.go`): a restart of containerd must not take the node out of service.
const PATIENCE: Duration = Duration::from_secs(30);

/// The last good health of containerd.
#[derive(Debug, Default)]
pub(super) struct RuntimeState {
    good: Option<(Instant, Health)>,
}

impl RuntimeState {
    /// Takes the present health. Returns the one to show: the last good one while that is recent.
    pub(super) fn shown(&mut self, now: Instant, health: Health) -> Health {
        if health.ok {
            self.good = Some((now, health.clone()));
            return health;
        }
        match &self.good {
            Some((at, good)) if now.duration_since(*at) < PATIENCE => good.clone(),
            _ => health,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerd_may_be_away_for_half_a_minute() {
        let mut state = RuntimeState::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (good, bad) = (Health::good("2.4.2"), Health::bad("connection refused"));
        assert_eq!(state.shown(at(0), bad.clone()), bad, "it never answered");
        assert_eq!(state.shown(at(1), good.clone()), good);
        assert_eq!(state.shown(at(30), bad.clone()), good);
        assert_eq!(state.shown(at(31), bad.clone()), bad);
        assert_eq!(state.shown(at(32), good.clone()), good);
        assert_eq!(state.shown(at(40), bad), good);
    }
}
