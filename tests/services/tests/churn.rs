//! Services whose endpoints change all the time, clients that ask at a fixed rate, and an agent that is
//! killed every few seconds: every answer must come from a backend that was allowed at that time.

mod support;

use anyhow::{Context, Result, ensure};
use berth_harness::netns::{Netns, join};
use berth_harness::{
    node::Node,
    rng::{Rng, seed},
    wait,
};
use berth_tests_services::load::Asker;
use nix::time::{ClockId, clock_gettime};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};
use support::{Guest, full, load, optimised, other, plain, service, slice, tell};

const SERVICES: u8 = 200;
const PER_SECOND: u32 = 200;
/// Addresses of each Service, of which some are its endpoints at a time.
const BACKENDS: u8 = 16;
/// Largest number of endpoints of a Service: more than fit inline in the Service's value.
const MOST: u64 = 12;
/// Time between two changes, each of one Service.
const CHANGE_EVERY: Duration = Duration::from_millis(20);
/// Lifetime of an agent.
const KILL_EVERY: Duration = Duration::from_secs(3);
/// Every so many kills the next agent is of the other build.
const OTHER_EVERY: u32 = 5;
/// Time after its removal during which a backend may still get clients.
const GRACE: Duration = Duration::from_secs(1);
/// The same for unoptimised programs, whose agent takes seconds to read four hundred files and to load the
/// programs.
const GRACE_UNOPTIMISED: Duration = Duration::from_secs(5);
const PORT: u16 = 80;

fn vip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 16, n)
}

fn backend(service: u8, n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 200, service, n)
}

fn now_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// Sets of backends of a Service, each with its first and last moment: from just before the rename of its
/// file to just after the rename of the next file.
#[derive(Default)]
struct History(Vec<(u64, u64, BTreeSet<Ipv4Addr>)>);

impl History {
    /// Time in microseconds for which the backend had been removed when the request was sent: 0 if it was in
    /// a set meanwhile, `None` if it never was.
    fn stale_us(&self, by: Ipv4Addr, sent: u64, got: u64) -> Option<u64> {
        let had = self.0.iter().filter(|(from, _, set)| *from <= got && set.contains(&by));
        had.map(|(_, to, _)| sent.saturating_sub(*to)).min()
    }
}

/// Writes a file and renames it into place. Returns the times before and after the rename.
fn put(dir: &Path, file: &str, text: &str) -> Result<(u64, u64)> {
    let (new, path) = (dir.join(format!(".{file}.new")), dir.join(file));
    fs::write(&new, text).context("write a manifest")?;
    let before = now_us();
    fs::rename(&new, &path).context("rename a manifest")?;
    Ok((before, now_us()))
}

/// A random set of backends, never empty.
fn draw(rng: &mut Rng, service: u8) -> BTreeSet<Ipv4Addr> {
    let n = 1 + rng.below(MOST);
    (0..n).map(|_| backend(service, rng.draw().to_le_bytes()[0] % BACKENDS)).collect()
}

/// Changes one random Service after the other until `ended`. Returns the sets of each Service.
fn change(dir: &Path, mut all: Vec<History>, ended: &AtomicBool) -> Result<Vec<History>> {
    let mut rng = Rng::new(seed());
    while !ended.load(Ordering::Relaxed) {
        let n = rng.draw().to_le_bytes()[0] % SERVICES;
        let set = draw(&mut rng, n);
        let endpoints: Vec<Ipv4Addr> = set.iter().copied().collect();
        let (before, after) =
            put(dir, &format!("s{n}-slice.yaml"), &slice(&format!("s{n}"), None, 8080, &endpoints))?;
        let history = &mut all[usize::from(n)].0;
        if let Some(last) = history.last_mut() {
            last.1 = after;
        }
        history.push((before, u64::MAX, set));
        thread::sleep(CHANGE_EVERY);
    }
    Ok(all)
}

/// Kills the agent every [`KILL_EVERY`] and starts the next at once, after the first kill and every fifth one
/// after it in the other build. Returns the number of kills, and how often the other build was started.
///
/// The objects of the builds have different digests. An agent of the other build therefore loads its
/// programs, adopts the maps and replaces the attached programs, and so does the next agent of the plain
/// build.
fn kill(node: &mut Node, netns: &Netns, builds: &[PathBuf; 2], until: Instant) -> Result<(u32, u32)> {
    let [plain, other] = builds;
    let (mut kills, mut others) = (0, 0);
    let mut next = Instant::now() + KILL_EVERY;
    while next < until {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        node.kill_agent()?;
        let build = if kills % OTHER_EVERY == 0 { other } else { plain };
        kills += 1;
        others += u32::from(build == other);
        node.programs.clone_from(build);
        netns.enter(|| node.spawn_agent().map(drop))??;
        next += KILL_EVERY;
    }
    Ok((kills, others))
}

#[test]
fn every_answer_is_of_a_backend_that_was_allowed() {
    if let Err(error) = run() {
        panic!("{error:?}");
    }
}

fn run() -> Result<()> {
    let builds = if full() { optimised()? } else { [plain()?, other()?] };
    let grace = u64::try_from(if full() { GRACE } else { GRACE_UNOPTIMISED }.as_micros())?;
    let load = load()?;
    let pods = Netns::router(&format!("berth-churn-{}", std::process::id()))?;
    let mut guest = Guest::new("churn", builds[0].clone())?;
    join((&guest.netns, "pods", &["192.0.2.1/24"]), (&pods, "eth0", &["192.0.2.2/24"]))?;
    guest.netns.ip("route add default via 192.0.2.2")?;
    pods.ip("route add local 10.200.0.0/16 dev lo")?;
    let server = load.serve_any(&pods, 8080)?;

    let manifests = guest.node.manifests();
    let mut rng = Rng::new(seed() ^ 1);
    let mut all = Vec::new();
    for n in 0..SERVICES {
        let name = format!("s{n}");
        let set = draw(&mut rng, n);
        let endpoints: Vec<Ipv4Addr> = set.iter().copied().collect();
        put(&manifests, &format!("{name}.yaml"), &service(&name, vip(n), PORT))?;
        let (before, _) =
            put(&manifests, &format!("{name}-slice.yaml"), &slice(&name, None, 8080, &endpoints))?;
        all.push(History(vec![(before, u64::MAX, set)]));
    }
    guest.containerd()?;
    guest.agent()?;
    let targets: Vec<SocketAddr> = (0..SERVICES).map(|n| SocketAddr::new(IpAddr::V4(vip(n)), PORT)).collect();
    let group = guest.hooked()?.join("clients");
    fs::create_dir(&group).context("make the clients' group")?;
    let ask = |time: Duration, per_second| -> Result<Asker> {
        load.ask(&guest.netns.path(), Some(&group), &targets, per_second, time)
    };
    wait::ok("every Service answers", wait::PATIENCE, || {
        let asked = ask(Duration::from_secs(1), u32::from(SERVICES))?.finish()?;
        let failed = asked.iter().find_map(|a| a.error.as_ref().map(|e| format!("{}: {e}", a.target)));
        ensure!(failed.is_none(), "{failed:?}");
        Ok(())
    })?;

    let time = Duration::from_secs(if full() { 300 } else { 30 });
    let asker = ask(time, PER_SECOND)?;
    let until = Instant::now() + time;
    let ended = AtomicBool::new(false);
    let netns = &guest.netns;
    let node = &mut guest.node;
    let (asked, all, killed) = thread::scope(|scope| {
        let changer = scope.spawn(|| change(&manifests, all, &ended));
        let killer = scope.spawn(|| kill(node, netns, &builds, until));
        let asked = asker.finish();
        ended.store(true, Ordering::Relaxed);
        (asked, changer.join(), killer.join())
    });
    let panicked = |_| anyhow::anyhow!("a thread panicked");
    let (asked, all) = (asked?, all.map_err(panicked)??);
    let (kills, others) = killed.map_err(panicked)??;

    let log = fs::read_to_string(guest.node.agent_log()).context("read the agent's log")?;
    let swaps = log.matches("swapped: 8").count();
    let mut wrong = Vec::new();
    let (mut stale, mut late) = (Vec::new(), 0_u64);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut renewed = 0;
    for a in &asked {
        *counts.entry(a.kind.clone()).or_default() += 1;
        renewed += u32::from(a.renewed);
        late = late.max(a.got_us - a.sent_us);
        let n = targets.iter().position(|t| *t == a.target).context("an unknown target")?;
        let judged = match (&a.by, &a.error) {
            (Some(by), _) => {
                let at: SocketAddr = by.parse().with_context(|| format!("{by} names no backend"))?;
                let IpAddr::V4(at) = at.ip() else { anyhow::bail!("{by} is no backend") };
                all[n].stale_us(at, a.sent_us, a.got_us).ok_or_else(|| format!("{by} was never one of s{n}"))
            }
            (None, error) => Err(error.clone().unwrap_or_default()),
        };
        match judged {
            Ok(us) if us <= grace => stale.push(us),
            Ok(us) => wrong.push(format!("{} s{n}: {:?} left {} ms before", a.kind, a.by, us / 1000)),
            Err(why) => wrong.push(format!("{} s{n} at {}: {why}", a.kind, a.sent_us)),
        }
    }
    stale.sort_unstable();
    let at =
        |share: usize| stale.get((stale.len() * share / 1000).min(stale.len() - 1)).copied().unwrap_or(0);
    let changes: usize = all.iter().map(|h| h.0.len() - 1).sum();
    tell(&format!(
        "{changes} changes, {kills} kills ({others} times another build began, {swaps} swaps of all hooks), asked {counts:?}, {renewed} sockets renewed; \
         backends had been out for p50 {} p99 {} p99.9 {} longest {} ms; slowest answer {} ms",
        at(500) / 1000,
        at(990) / 1000,
        at(999) / 1000,
        at(1000) / 1000,
        late / 1000
    ));
    for line in wrong.iter().take(20) {
        tell(line);
    }
    let wanted = usize::try_from(time.as_secs() * u64::from(PER_SECOND) * 95 / 100)?;
    ensure!(wrong.is_empty(), "{} of {} answers were wrong", wrong.len(), asked.len());
    ensure!(counts.get("tcp").is_some_and(|n| *n >= wanted), "too few connections: {counts:?}");
    ensure!(
        ["udp", "connected"].iter().filter_map(|k| counts.get(*k)).sum::<usize>() >= wanted,
        "too few datagrams: {counts:?}"
    );
    ensure!(changes > usize::try_from(time.as_secs() * 20)?, "only {changes} changes");
    ensure!(u64::from(kills) + 2 >= time.as_secs() / KILL_EVERY.as_secs(), "only {kills} kills");
    let wanted = time.as_secs() / KILL_EVERY.as_secs() / u64::from(OTHER_EVERY);
    ensure!(u64::from(others) >= wanted, "only {others} times another build, wanted {wanted}");
    // Each change of build swaps all hooks twice. An unoptimised agent may be killed before it has loaded its
    // programs.
    let wanted = usize::try_from(if full() { 2 * others - 1 } else { others })?;
    ensure!(swaps >= wanted, "builds' programs took each other's places {swaps} times only, wanted {wanted}");
    ensure!(renewed > 0, "no connected socket ever lost its backend");
    fs::remove_dir(&group).context("remove the clients' group")?;
    drop(server);
    guest.end()
}
