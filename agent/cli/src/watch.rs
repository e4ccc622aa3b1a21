//! `berth pods -w`: what is there, then every change as it is told.

use crate::{
    commands::PodOutput,
    error::Error,
    names, out,
    render::pods::{self, Form},
    state,
};
use berth_api::{
    client::Client,
    message::{Reply, Request},
    view::PodView,
};
use berth_core::{
    ids::{PodKey, PodUid},
    roots::Roots,
};
use berth_sys::clock;
use std::collections::HashMap;

/// Watches until the agent or the reader goes.
pub(crate) async fn run(roots: &Roots, output: PodOutput, name: Option<&str>) -> Result<(), Error> {
    let mut client = Client::connect(&roots.agent_socket()).await?;
    client.send(&Request::Pods { watch: true }).await?;
    let mut first = Vec::new();
    loop {
        match client.next().await? {
            Reply::Pod { pod } => first.push(*pod),
            Reply::Synced => break,
            _ => {}
        }
    }
    first.sort_by(|a, b| a.key.cmp(&b.key));
    let only: Option<PodKey> = match name {
        Some(name) => {
            let meant = names::resolve(name, &state::candidates(&first))?;
            first.get(meant.pod).map(|p| p.key.clone())
        }
        None => None,
    };
    let mut printer = Printer::new(output);
    for pod in first.iter().filter(|p| only.as_ref().is_none_or(|o| *o == p.key)) {
        printer.add(pod)?;
    }
    printer.flush()?;
    loop {
        match client.next().await? {
            Reply::Pod { pod } if only.as_ref().is_none_or(|o| *o == pod.key) => {
                printer.add(&pod)?;
                printer.flush()?;
            }
            Reply::Removed { uid, key } if only.as_ref().is_none_or(|o| *o == key) => {
                printer.removed(&uid, &key)?;
            }
            _ => {}
        }
    }
}

struct Printer {
    output: PodOutput,
    form: Form,
    table: crate::table::Table,
    text: String,
    /// The last row of each pod, without its age.
    shown: HashMap<PodUid, Vec<String>>,
}

impl Printer {
    fn new(output: PodOutput) -> Printer {
        let form = if output == PodOutput::Wide { Form::Wide } else { Form::Table };
        Printer { output, form, table: pods::table(form), text: String::new(), shown: HashMap::new() }
    }

    fn add(&mut self, pod: &PodView) -> Result<(), Error> {
        match self.output {
            // What changed may not be among what is shown.
            PodOutput::Table | PodOutput::Wide => {
                let cells = pods::cells(self.form, pod, clock::wall());
                let timeless: Vec<String> = cells
                    .iter()
                    .enumerate()
                    .filter(|(n, _)| *n != pods::AGE)
                    .map(|(_, c)| c.clone())
                    .collect();
                if self.shown.get(&pod.uid) != Some(&timeless) {
                    self.table.row(cells);
                    self.shown.insert(pod.uid.clone(), timeless);
                }
            }
            PodOutput::Name => self.text.push_str(&format!("{}\n", pod.key)),
            // One object a line.
            PodOutput::Json => self.text.push_str(&format!("{}\n", serde_json::to_string(&pod.object)?)),
        }
        Ok(())
    }

    fn removed(&mut self, uid: &PodUid, key: &PodKey) -> Result<(), Error> {
        self.shown.remove(uid);
        match self.output {
            PodOutput::Table | PodOutput::Wide => {
                let cells = [key.namespace.as_str(), key.name.as_str(), "-", "Removed"];
                self.table.row(cells.map(str::to_owned).to_vec());
                self.flush()
            }
            PodOutput::Name | PodOutput::Json => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), Error> {
        let text = match self.output {
            PodOutput::Table | PodOutput::Wide => self.table.take(),
            PodOutput::Name | PodOutput::Json => std::mem::take(&mut self.text),
        };
        out::put(&text)
    }
}
