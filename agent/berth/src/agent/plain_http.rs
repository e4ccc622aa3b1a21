//! Servers of plain HTTP at ports that another program may still have.

use berth_core::error::Chain;
use berth_nodeapi::{
    health::{self, Answer},
    listen,
};
use std::{net::SocketAddr, time::Duration};
use tokio::{sync::watch, time::sleep};

/// Time between two tries of a port.
const AGAIN: Duration = Duration::from_secs(1);

/// Serves an address as soon as it is free, until `stop` changes or its sender is dropped. Where it is not free at first,
/// `taken` is called once with the reason.
pub(super) async fn serve(
    address: SocketAddr,
    answer: Answer,
    stop: watch::Receiver<()>,
    taken: impl FnOnce(&str),
) {
    let mut taken = Some(taken);
    let listener = loop {
        match listen(address) {
            Ok(listener) => break listener,
            Err(error) => {
                if let Some(taken) = taken.take() {
                    tracing::warn!(error = %Chain(&error), "tried again until the address is free");
                    taken(&Chain(&error).to_string());
                }
                sleep(AGAIN).await;
            }
        }
    };
    if taken.is_none() {
        tracing::info!(%address, "served");
    }
    health::serve(answer, listener, stop).await;
}
