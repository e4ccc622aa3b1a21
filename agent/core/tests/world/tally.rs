//! Counts of what histories contain.

/// Counts of each kind of event, so that the test can prove that the histories cover them.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub plans: u64,
    pub starts: u64,
    pub restarts: u64,
    pub agent_deaths: u64,
    pub memory_losses: u64,
    pub reboots: u64,
    pub pasts: u64,
    pub sandbox_losses: u64,
    pub outages: u64,
    pub debugged: u64,
    pub resized: u64,
    pub ready: u64,
    pub finished: u64,
    pub terminal: u64,
}

impl Tally {
    pub fn add(&mut self, o: &Tally) {
        self.plans += o.plans;
        self.starts += o.starts;
        self.restarts += o.restarts;
        self.agent_deaths += o.agent_deaths;
        self.memory_losses += o.memory_losses;
        self.reboots += o.reboots;
        self.pasts += o.pasts;
        self.sandbox_losses += o.sandbox_losses;
        self.outages += o.outages;
        self.debugged += o.debugged;
        self.resized += o.resized;
        self.ready += o.ready;
        self.finished += o.finished;
        self.terminal += o.terminal;
    }
}
