//! `berth status`: the node on one page.

use crate::{
    error::{self, Error},
    output::{self, Output},
    render::status::Page,
    state,
};
use berth_core::roots::Roots;
use berth_sys::{clock, process};

pub(crate) async fn run(roots: &Roots, output: Output) -> Result<u8, Error> {
    let (node, silent) = state::node(roots).await?;
    let state = match silent {
        // The agent is not asked again: a second answer could contradict the first.
        Some(why) => state::offline(roots, why)?,
        None => state::read(roots, true).await?,
    };
    let stuck = state.offline.is_some()
        && node.as_ref().is_some_and(|n| process::alive(n.pid, n.start_time).unwrap_or(false));
    let page = Page { node: node.as_ref(), state: &state, stuck };
    let now = clock::wall();
    match output {
        Output::Table => output::put(&page.text(now))?,
        Output::Json => output::put_json(&page.json(now)?)?,
    }
    Ok(if page.problems(now).is_empty() { error::OK } else { error::PROBLEM })
}
