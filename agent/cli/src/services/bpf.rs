//! Page of `berth bpf`: the eBPF programs, links and maps in the kernel, and the programs'
//! counters.

use crate::table::Table;
use berth_ebpf_abi::{count, maps};
use berth_ebpf_decide::flow::{Class, Dropped};
use berth_ebpf_loader::{LinkReport, MapReport, ProgramReport, Report};
use serde_json::{Value, json};

/// The facts of the page.
#[derive(Debug, Clone, Default)]
pub(crate) struct Page {
    pub(crate) pins: String,
    /// SHA-256 of the object that the pinned programs were loaded from; `None` where the programs
    /// are not complete.
    pub(crate) object: Option<String>,
    pub(crate) report: Report,
    /// The counters by index; see [`count`].
    pub(crate) counters: Vec<u64>,
    /// Why this program cannot read the maps: they are of another version.
    pub(crate) unreadable: Option<String>,
}

impl Page {
    /// The problems, one line each.
    pub(crate) fn problems(&self) -> Vec<String> {
        let links = &self.report.links;
        let mut found: Vec<String> = self.unreadable.iter().cloned().collect();
        if self.object.is_none() {
            found.push("the pinned programs are not complete".to_owned());
        }
        if links.is_empty() {
            found.push("nothing is attached".to_owned());
        }
        found.extend(links.iter().filter(|l| !l.live).map(|l| format!("link {} is dead", l.name)));
        // Only hash maps can be full: the kernel evicts entries of LRU maps.
        let fixed = self.report.maps.iter().filter(|m| m.kind == HASH);
        for map in fixed {
            let (entries, most) = (map.entries.unwrap_or_default(), map.max_entries);
            if u64::try_from(entries).unwrap_or(u64::MAX).saturating_mul(10)
                >= u64::from(most).saturating_mul(9)
            {
                found.push(format!("map {} is nearly full: {entries} of {most} entries", map.name));
            }
        }
        found
    }

    /// The page as text.
    pub(crate) fn text(&self) -> String {
        let object = self.object.as_deref().unwrap_or("not complete");
        let mut text = format!("Pins:    {}\nObject:  {object}\n", self.pins);
        let mut put = |head: &str, mut table: Table| {
            text.push_str(&format!("\n{head}\n{}", table.take()));
        };
        put("Programs", self.programs());
        put("Links", self.links());
        put("Maps", self.maps());
        let mut counters = Table::new(&["COUNTER", "COUNT"]);
        for (name, value) in self.named() {
            counters.row(vec![name, value.to_string()]);
        }
        put("Counters", counters);
        for problem in self.problems() {
            text.push_str(&format!("\nProblem: {problem}"));
        }
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text
    }

    fn programs(&self) -> Table {
        let mut table = Table::new(&["NAME", "ID", "INSNS", "CODE", "MEMORY", "RUNS", "NS/RUN"]);
        for p in &self.report.programs {
            let ProgramReport { name, id, instructions, machine_code, runs, run_ns, memory, .. } = p;
            let average = run_ns.checked_div(*runs).map_or_else(|| "-".to_owned(), |ns| ns.to_string());
            table.row(vec![
                name.clone(),
                id.to_string(),
                instructions.to_string(),
                bytes((*machine_code).into()),
                bytes(*memory),
                runs.to_string(),
                average,
            ]);
        }
        table
    }

    fn links(&self) -> Table {
        let mut table = Table::new(&["NAME", "ID", "PROGRAM", "STATE"]);
        for LinkReport { name, id, program, live } in &self.report.links {
            let state = if *live { "live" } else { "dead" };
            table.row(vec![name.clone(), id.to_string(), self.program(*program), state.to_owned()]);
        }
        table
    }

    /// A program's name by its id.
    fn program(&self, id: u32) -> String {
        let found = self.report.programs.iter().find(|p| p.id == id);
        found.map_or_else(|| format!("{id} (not pinned)"), |p| p.name.clone())
    }

    fn maps(&self) -> Table {
        let mut table = Table::new(&["NAME", "ID", "ENTRIES", "MAX", "FILL", "MEMORY"]);
        for map in &self.report.maps {
            let entries = map.entries.map_or_else(|| "-".to_owned(), |n| n.to_string());
            let fill = fill(map).map_or_else(|| "-".to_owned(), |percent| format!("{percent}%"));
            let (id, max) = (map.id.to_string(), map.max_entries.to_string());
            table.row(vec![map.name.clone(), id, entries, max, fill, bytes(map.memory)]);
        }
        let memory = bytes(self.report.map_memory());
        table.row(vec!["(all)".to_owned(), "".into(), "".into(), "".into(), "".into(), memory]);
        table
    }

    /// The counters with their names. Counters of connections, and counters without a name, are
    /// left out where 0.
    fn named(&self) -> Vec<(String, u64)> {
        let all = (0_u32..).zip(&self.counters);
        let known = |(index, value): (u32, &u64)| match NAMES.iter().find(|(i, _)| *i == index) {
            Some((_, name)) => Some(((*name).to_owned(), *value)),
            None if *value != 0 => {
                Some((of_flows(index).unwrap_or_else(|| format!("counter-{index}")), *value))
            }
            None => None,
        };
        all.filter_map(known).collect()
    }

    /// The page as JSON.
    pub(crate) fn json(&self) -> Value {
        let Report { programs, links, maps } = &self.report;
        let programs: Vec<Value> = programs
            .iter()
            .map(|p| {
                json!({
                    "name": p.name, "id": p.id, "instructions": p.instructions, "machineCodeBytes": p.machine_code,
                    "verifiedInstructions": p.verified, "memoryBytes": p.memory, "runs": p.runs, "runNs": p.run_ns,
                })
            })
            .collect();
        let link = |l: &LinkReport| {
            let program = self.program(l.program);
            json!({ "name": l.name, "id": l.id, "programID": l.program, "program": program, "live": l.live })
        };
        let maps: Vec<Value> = maps
            .iter()
            .map(|m| {
                json!({
                    "name": m.name, "id": m.id, "entries": m.entries, "maxEntries": m.max_entries,
                    "keyBytes": m.key_size, "valueBytes": m.value_size, "memoryBytes": m.memory,
                })
            })
            .collect();
        let counters: serde_json::Map<String, Value> =
            self.named().into_iter().map(|(name, value)| (name, value.into())).collect();
        json!({
            "apiVersion": "berth/v1", "kind": "Datapath",
            "pins": self.pins, "object": self.object,
            "programs": programs, "links": links.iter().map(link).collect::<Vec<_>>(), "maps": maps,
            "mapMemoryBytes": self.report.map_memory(), "counters": counters, "problems": self.problems(),
        })
    }
}

/// `BPF_MAP_TYPE_HASH` of `bpf(2)`.
const HASH: u32 = 1;

/// Names of the counters by index.
const NAMES: [(u32, &str); 10] = [
    (count::PACKET_REJECTED, "packet-rejected"),
    (count::PACKET_UNANSWERED, "packet-unanswered"),
    (count::PACKET_FAILED, "packet-failed"),
    (count::PACKET_DROPPED + Dropped::Service as u32, "packet-dropped-service"),
    (count::PACKET_DROPPED + Dropped::Fragment as u32, "packet-dropped-fragment"),
    (count::PACKET_DROPPED + Dropped::Ports as u32, "packet-dropped-ports"),
    (count::PACKET_DROPPED + Dropped::Address as u32, "packet-dropped-address"),
    (count::PACKET_DROPPED + Dropped::Leak as u32, "packet-dropped-leak"),
    (count::PACKET_DROPPED + Dropped::Full as u32, "packet-dropped-full"),
    (count::PACKET_DROPPED + Dropped::Forged as u32, "packet-dropped-forged"),
];

/// The name of a counter of connections: map and event.
fn of_flows(index: u32) -> Option<String> {
    let blocks = [
        (count::FLOW_ENTERED, "entries-written"),
        (count::FLOW_LEFT, "entries-removed"),
        (count::FLOW_EVICTED, "connections-evicted"),
        (count::FLOW_REFUSED, "connections-refused"),
    ];
    let maps = [
        (Class::Udp, [maps::UDP4, maps::UDP6]),
        (Class::Unassured, [maps::UNASSURED4, maps::UNASSURED6]),
        (Class::Assured, [maps::ASSURED4, maps::ASSURED6]),
    ];
    blocks.iter().find_map(|(block, what)| {
        maps.iter().find_map(|(class, [v4, v6])| {
            let of = |six| count::flow(*block, *class as u32, six) == index;
            let name = if of(false) { v4 } else { Some(v6).filter(|_| of(true))? };
            Some(format!("{}-{what}", name.to_lowercase()))
        })
    })
}

/// The fill level of a map in whole percent.
fn fill(map: &MapReport) -> Option<u64> {
    let entries = u64::try_from(map.entries?).ok()?;
    entries.saturating_mul(100).checked_div(map.max_entries.into())
}

fn bytes(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{}.{} KiB", n / 1024, n % 1024 * 10 / 1024),
        _ => format!("{}.{} MiB", n / 1_048_576, n % 1_048_576 * 10 / 1_048_576),
    }
}
