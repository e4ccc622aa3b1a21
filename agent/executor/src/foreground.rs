//! The actions that somebody waits for: starts and ends of pods. Removals of what ended pods leave give way to them.
//!
//! A removal makes containerd execute programs. Beside the ends of a hundred other pods, they would take a third of the
//! processors from what the API server's clients wait for.

use std::time::Duration;
use tokio::sync::watch;

/// The longest time that a removal gives way. A node that is never idle removes what is left all the same.
const GIVES_WAY: Duration = Duration::from_secs(5);

/// The number of foreground actions in flight.
#[derive(Debug)]
pub(crate) struct Foreground(watch::Sender<usize>);

/// One foreground action in flight, until the value is dropped.
#[derive(Debug)]
pub(crate) struct InFlight<'a>(&'a Foreground);

impl Default for Foreground {
    fn default() -> Foreground {
        Foreground(watch::Sender::new(0))
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|n| *n = n.saturating_sub(1));
    }
}

impl Foreground {
    /// Counts a foreground action until the value is dropped.
    pub(crate) fn enter(&self) -> InFlight<'_> {
        self.0.send_modify(|n| *n += 1);
        InFlight(self)
    }

    /// Waits until no foreground action is in flight, or until `begun` is [`GIVES_WAY`] ago.
    pub(crate) async fn give_way(&self, begun: tokio::time::Instant) {
        let mut count = self.0.subscribe();
        let idle = count.wait_for(|n| *n == 0);
        // The sender lives as long as this value, so that only the time can end the wait early.
        drop(tokio::time::timeout_at(begun + GIVES_WAY, idle).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{pin::Pin, task::Poll};
    use tokio::time::Instant;

    /// What the future says to one look.
    async fn look(mut future: Pin<&mut impl Future<Output = ()>>) -> Poll<()> {
        std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
    }

    #[tokio::test]
    async fn a_removal_waits_for_the_last_action_and_no_longer_than_its_time() {
        tokio::time::pause();
        let foreground = Foreground::default();
        let begun = Instant::now();
        foreground.give_way(begun).await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "nothing is in flight");
        let (one, other) = (foreground.enter(), foreground.enter());
        let mut removal = std::pin::pin!(foreground.give_way(begun));
        assert_eq!(look(removal.as_mut()).await, Poll::Pending);
        drop(one);
        assert_eq!(look(removal.as_mut()).await, Poll::Pending);
        drop(other);
        assert_eq!(look(removal.as_mut()).await, Poll::Ready(()));
        let _stuck = foreground.enter();
        let late = Instant::now();
        foreground.give_way(late).await;
        assert!(
            late.elapsed() >= GIVES_WAY && late.elapsed() < GIVES_WAY * 2,
            "a stuck action holds up nothing"
        );
    }
}
