//! The pages `/flagz` and `/statusz`.

use super::super::cluster::KUBELET_VERSION;
use berth_core::time::Boottime;
use berth_sys::clock;
use clap::{ArgMatches, CommandFactory as _};
use jiff::Timestamp;
use std::fmt::Write as _;

/// The flags of this process with the values that hold, a line each, sorted.
pub(super) fn flags() -> String {
    let matches = crate::Args::command().try_get_matches_from(std::env::args_os());
    // The agent has parsed the same arguments at its start.
    matches.map(|matches| of_matches(&matches)).unwrap_or_default()
}

fn of_matches(matches: &ArgMatches) -> String {
    let agent = matches.subcommand().map_or(matches, |(_, agent)| agent);
    let all = crate::Args::command();
    let command = matches.subcommand_name().and_then(|name| all.find_subcommand(name)).unwrap_or(&all);
    let mut lines: Vec<String> = command
        .get_arguments()
        .filter_map(|argument| {
            let values = agent.get_raw(argument.get_id().as_str()).into_iter().flatten();
            let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
            Some(format!("{} {}\n", argument.get_long()?, values.join(",")))
        })
        .collect();
    lines.sort();
    lines.concat()
}

/// When the agent started, and its version; built at the start.
#[derive(Debug)]
pub(super) struct Started {
    at: Timestamp,
    since: Boottime,
}

impl Started {
    pub(super) fn now() -> Started {
        Started { at: Timestamp::now(), since: clock::boottime() }
    }

    /// The page's lines, as the kubelet has them, but for Go's version.
    pub(super) fn page(&self) -> String {
        let up = clock::boottime().since(self.since).as_secs();
        let mut text = format!("\nStarted  {}\n", self.at.strftime("%a %b %e %H:%M:%S UTC %Y"));
        let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
        // Writing to a string cannot fail.
        writeln!(text, "Up  {hours} hr {minutes:02} min {seconds:02} sec").ok();
        writeln!(text, "Binary version  {}", KUBELET_VERSION.trim_start_matches('v')).ok();
        text + "Paths  /configz /flagz /healthz /metrics /pods /statusz\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_have_the_values_that_hold() {
        let arguments = ["berth", "agent", "--kubeconfig=/k", "--node-ip=192.0.2.1", "--node-ip=2001:db8::1"];
        let text = of_matches(&crate::Args::command().try_get_matches_from(arguments).unwrap());
        for line in [
            "healthz-port 10248\n",
            "kubeconfig /k\n",
            "node-ip 192.0.2.1,2001:db8::1\n",
            "standalone false\n",
            "manifests \n",
        ] {
            assert!(text.contains(line), "{line:?} in {text}");
        }
        assert!(text.lines().is_sorted());
    }

    #[test]
    fn the_page_says_since_when_the_agent_runs() {
        let started = Started { at: "2026-01-02T03:04:05Z".parse().unwrap(), since: clock::boottime() };
        let page = started.page();
        assert!(page.contains("\nStarted  Fri Jan  2 03:04:05 UTC 2026\nUp  0 hr 00 min 00 sec\n"), "{page}");
    }
}
