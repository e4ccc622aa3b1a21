//! One socket: its plugin is registered, and stays so until the task ends.

use super::{
    Context, RegisteredDriver,
    introduction::{self, Introduced},
};
use crate::Driver;
use std::{
    future::pending,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::sleep;

/// Why a plugin is not registered, and what may change that.
enum Refusal {
    /// The plugin may answer later: it is asked again after a pause.
    Again(String),
    /// Another driver has the name.
    Taken(Introduced, String),
    /// The socket will never be that of a driver: its plugin is asked again only if the socket is replaced.
    Never(String),
}

/// Registers the plugin at the socket, for as long as this runs.
pub(super) async fn run(socket: PathBuf, context: Context) {
    let (table, times) = (&context.table, context.times);
    let mut wait = times.backoff.0;
    loop {
        match register(&socket, &context).await {
            Ok(introduced) => {
                let Introduced { name, endpoint, version } = introduced;
                tracing::info!(driver = %name, %version, endpoint = %endpoint.display(), "CSI driver registered");
                wait = times.backoff.0;
                // A newer driver may take the name and go again.
                table.free(&name, &version, &socket).await;
            }
            Err(refusal) => {
                let why = match &refusal {
                    Refusal::Again(why) | Refusal::Taken(_, why) | Refusal::Never(why) => why,
                };
                if table.problem(&socket, why) {
                    tracing::warn!(socket = %socket.display(), "cannot register plugin: {why}");
                }
                match refusal {
                    Refusal::Again(_) => {
                        sleep(wait).await;
                        wait = (wait * 2).min(times.backoff.1.max(Duration::from_millis(1)));
                    }
                    Refusal::Taken(by, _) => table.free(&by.name, &by.version, &socket).await,
                    Refusal::Never(_) => pending().await,
                }
            }
        }
    }
}

/// Registers the plugin once, and tells it the result.
async fn register(socket: &Path, context: &Context) -> Result<Introduced, Refusal> {
    let times = context.times;
    let info = introduction::get_info(socket, times).await;
    let info = info.map_err(|failure| Refusal::Again(format!("cannot get the plugin's info: {failure}")))?;
    let result = match introduction::read(&info, socket) {
        Ok(introduced) => accept(introduced, socket, context).await,
        Err(why) => Err(Refusal::Never(why)),
    };
    let told = match &result {
        Ok(_) => None,
        Err(Refusal::Again(why) | Refusal::Taken(_, why) | Refusal::Never(why)) => Some(why.as_str()),
    };
    let notified = introduction::notify(socket, told, times).await;
    match (result, notified) {
        // A plugin that does not know that it is registered may end itself.
        (Ok(_), Err(failure)) => {
            context.table.withdraw(socket);
            Err(Refusal::Again(format!("cannot tell the plugin that it is registered: {failure}")))
        }
        (result, _) => result,
    }
}

/// Asks the driver for what the node needs to know, and gives it its name.
async fn accept(introduced: Introduced, socket: &Path, context: &Context) -> Result<Introduced, Refusal> {
    let Introduced { name, endpoint, version } = &introduced;
    if let Err(taken) = context.table.check(name, version, socket) {
        return Err(Refusal::Taken(introduced, taken.to_string()));
    }
    let driver = Driver::new(name.clone(), endpoint).observed_by(context.observer.clone());
    let again = |error: crate::Error| Refusal::Again(error.to_string());
    let info = driver.node_info().await.map_err(again)?;
    let capabilities = driver.node_capabilities().await.map_err(again)?;
    let (version, socket) = (version.clone(), socket.to_owned());
    let registered = RegisteredDriver { driver, version, info, capabilities, socket };
    match context.table.claim(registered) {
        Ok(()) => Ok(introduced),
        Err(taken) => Err(Refusal::Taken(introduced, taken.to_string())),
    }
}
