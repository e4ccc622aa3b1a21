//! `berth images`: the list of images.

use crate::{
    error::Error,
    output::{self, Output},
    render::images,
    state,
};
use berth_api::{
    client::Client,
    message::{Reply, Request},
};
use berth_core::roots::Roots;
use berth_sys::clock;

pub(crate) async fn run(roots: &Roots, output: Output) -> Result<(), Error> {
    let mut client = Client::connect(&roots.agent_socket()).await?;
    let Reply::Images { images } = client.ask(&Request::Images, state::ANSWER).await? else {
        return Err(berth_api::Error::Unexpected.into());
    };
    match output {
        Output::Table => output::put_table(images::table(&images, clock::wall()), "No images."),
        Output::Json => output::put_json(&images::json(&images)),
    }
}
