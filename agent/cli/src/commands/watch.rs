//! `berth pods --watch`: the pods, then each change as the agent reports it.

use crate::{
    error::Error,
    names,
    output::{self, PodOutput},
    render::pods::{self, Form},
    state,
    table::Table,
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

/// Watches until the agent ends or standard output is closed.
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
            let resolved = names::resolve(name, &state::candidates(&first))?;
            first.get(resolved.pod).map(|p| p.key.clone())
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

/// Printer of pods in the chosen format.
struct Printer {
    output: PodOutput,
    form: Form,
    table: Table,
    text: String,
    /// The last printed row of each pod, without its age.
    printed: HashMap<PodUid, Vec<String>>,
}

impl Printer {
    fn new(output: PodOutput) -> Printer {
        let form = if output == PodOutput::Wide { Form::Wide } else { Form::Table };
        Printer { output, form, table: pods::table(form), text: String::new(), printed: HashMap::new() }
    }

    fn add(&mut self, pod: &PodView) -> Result<(), Error> {
        match self.output {
            PodOutput::Table | PodOutput::Wide => {
                let cells = pods::cells(self.form, pod, clock::wall());
                let timeless: Vec<String> = cells
                    .iter()
                    .enumerate()
                    .filter(|(n, _)| *n != pods::AGE)
                    .map(|(_, c)| c.clone())
                    .collect();
                // A change of a field that no column displays prints no row.
                if self.printed.get(&pod.uid) != Some(&timeless) {
                    self.table.row(cells);
                    self.printed.insert(pod.uid.clone(), timeless);
                }
            }
            PodOutput::Name => self.text.push_str(&format!("{}\n", pod.key)),
            // JSON lines: one object a line.
            PodOutput::Json => self.text.push_str(&format!("{}\n", serde_json::to_string(&pod.object)?)),
        }
        Ok(())
    }

    fn removed(&mut self, uid: &PodUid, key: &PodKey) -> Result<(), Error> {
        self.printed.remove(uid);
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
        output::put(&text)
    }
}
