//! `berth version`: the versions of this program and of the agent.

use crate::{
    error::Error,
    output::{self, Output},
};
use berth_api::client::Client;
use berth_core::{error::Chain, roots::Roots};
use serde_json::json;

pub(crate) async fn run(roots: &Roots, output: Output) -> Result<(), Error> {
    let agent = Client::connect(&roots.agent_socket()).await;
    let ours = env!("CARGO_PKG_VERSION");
    match output {
        Output::Table => {
            let theirs = match &agent {
                Ok(client) => client.agent.version.clone(),
                Err(e) => format!("not reached: {}", Chain(e)),
            };
            output::put(&format!("berth  {ours}\nagent  {theirs}\n"))
        }
        Output::Json => output::put_json(&json!({
            "clientVersion": { "gitVersion": ours },
            "serverVersion": agent.ok().map(|c| json!({ "gitVersion": c.agent.version })),
        })),
    }
}
