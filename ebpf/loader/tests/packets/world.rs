//! The same tables twice, in the kernel and in memory, and the comparison of both.

use crate::{
    expected::{NEXT, SHOT, expected},
    frame::{Net, OURS, Spec, THEIRS, frame, same},
};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, CHUNK, Chunk, ChunkKey, Config, Flow, INLINE, LocalPod, MemberKey,
    NodeAddress, PodDevice, Prefix, Service, ServiceKey, Tuple, backend, config, count, frontend, local_pod,
    tag,
};
use berth_ebpf_decide::flow::{
    Class, FlowContext, Forwarding, Packet, PacketHook, PacketVerdict, Part, TCP, UDP, collect,
    decide_packet, memory::Flows, reverse,
};
use berth_ebpf_loader::{CounterMap, Datapath, Map, PacketProgram, Pins};
use berth_harness::rng::Rng;
use nix::time::ClockId;

pub(crate) const SERVICES: u8 = 24;

/// Networks of the test.
pub(crate) const PODS: u8 = 1;
pub(crate) const ELSEWHERE: u8 = 2;
pub(crate) const NODES: u8 = 3;
pub(crate) const CLIENTS: u8 = 9;
pub(crate) const VIPS: u8 = 96;

/// Random numbers of the widths that the packets need.
pub(crate) struct Dice(Rng);

impl Dice {
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        u32::try_from(self.0.below(u64::from(n))).unwrap()
    }

    pub(crate) fn byte(&mut self, n: u8) -> u8 {
        u8::try_from(self.0.below(u64::from(n))).unwrap()
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.0.one_in(n)
    }

    pub(crate) fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        self.0.pick(all)
    }
}

/// The kernel's tables of one family.
pub(crate) struct Kernel<'a, A> {
    pub(crate) service: &'a Map<ServiceKey<A>, Service<A>>,
    pub(crate) chunk: &'a Map<ChunkKey, Chunk<A>>,
    pub(crate) member: &'a Map<MemberKey<A>, u32>,
    pub(crate) node: &'a Map<A, NodeAddress>,
    pub(crate) pod: &'a Map<A, LocalPod>,
    pub(crate) pod_device: &'a Map<u32, PodDevice>,
    /// Tables of flows, indexed by [`Class`].
    pub(crate) flows: [&'a Map<Tuple<A>, Flow<A>>; 3],
    pub(crate) affinity: &'a Map<AffinityKey<A>, Affinity<A>>,
}

impl<A: Net + berth_ebpf_loader::Plain> Kernel<'_, A> {
    /// Entry of one direction, from the table of any class.
    fn entry(&self, key: &Tuple<A>) -> Option<Flow<A>> {
        self.flows.iter().rev().find_map(|flows| flows.get(key).unwrap())
    }
}

pub(crate) struct Programs {
    uplink: PacketProgram,
    pod: PacketProgram,
    out: PacketProgram,
    gc: PacketProgram,
}

impl Programs {
    pub(crate) fn open(pins: &Pins) -> Programs {
        let open = |name| PacketProgram::open(pins, name).unwrap();
        Programs { uplink: open("tc_uplink"), pod: open("tc_pod"), out: open("tc_out"), gc: open("tc_gc") }
    }

    pub(crate) fn at(&self, hook: PacketHook) -> &PacketProgram {
        match hook {
            PacketHook::Uplink => &self.uplink,
            PacketHook::Pod => &self.pod,
            PacketHook::Egress => &self.out,
        }
    }
}

pub(crate) struct World<'a, A: Net + berth_ebpf_loader::Plain> {
    pub(crate) kernel: Kernel<'a, A>,
    pub(crate) model: Flows<A>,
    pub(crate) programs: &'a Programs,
    pub(crate) dice: Dice,
    counters: &'a CounterMap,
    generation: u32,
    /// Number of occurrences of each verdict.
    pub(crate) seen: std::collections::BTreeMap<String, u64>,
    /// All backends that a Service may have.
    backends: Vec<Backend<A>>,
}

fn range(net: u8) -> [Prefix; 2] {
    let v4 = Prefix {
        net: [u32::from_ne_bytes([10, net, 0, 0]), 0, 0, 0],
        mask: [u32::from_ne_bytes([255, 255, 0, 0]), 0, 0, 0],
    };
    let v6 = Prefix {
        net: [u32::from_ne_bytes([0xfd, 0, 0, net]), 0, 0, 0],
        mask: [u32::MAX, u32::MAX, u32::MAX, 0],
    };
    [v4, v6]
}

/// Writes the configuration that both families share.
pub(crate) fn configure(maps: &Datapath, flags: u32, ports: [u16; 2]) -> Config {
    let [v4, v6] = range(VIPS);
    let config = Config {
        flags,
        masquerade_ports: ports,
        masquerade4: Net::make(NODES, 1),
        masquerade6: Net::make(NODES, 1),
        service4: [v4, Prefix::default()],
        service6: [v6, Prefix::default()],
    };
    maps.config.put(&0, &config).unwrap();
    config
}

impl<'a, A: Net + berth_ebpf_loader::Plain> World<'a, A> {
    pub(crate) fn new(
        kernel: Kernel<'a, A>,
        programs: &'a Programs,
        maps: &'a Datapath,
        config: Config,
        seed: u64,
    ) -> World<'a, A> {
        let mut backends = Vec::new();
        for host in 1..12 {
            let port = (8080 + u16::from(host % 2)).to_be();
            backends.push(Backend { addr: A::make(PODS, host), port, flags: backend::LOCAL });
            backends.push(Backend { addr: A::make(ELSEWHERE, host), port, flags: 0 });
        }
        for host in [1, 2] {
            let flags = backend::LOCAL | backend::HOST_NETWORK;
            backends.push(Backend { addr: A::make(NODES, host), port: 9100_u16.to_be(), flags });
        }
        let mut world = World {
            kernel,
            model: Flows::default(),
            programs,
            dice: Dice(Rng::new(seed)),
            counters: &maps.count,
            generation: 0,
            seen: Default::default(),
            backends,
        };
        world.model.config = config;
        world.model.masquerade = A::make(NODES, 1);
        world.model.tables.ranges = if A::ICMP == 1 { config.service4 } else { config.service6 };
        for host in 1..10 {
            let pod = LocalPod {
                ifindex: 100 + u32::from(host),
                // Every fourth pod was attached by another plugin.
                flags: if host % 4 == 0 { 0 } else { local_pod::DIRECT },
                mac: [2, 1, 0, 0, 0, host],
                host_mac: [2, 2, 0, 0, 0, host],
            };
            world.kernel.pod.put(&A::make(PODS, host), &pod).unwrap();
            world.model.pods.insert(A::make(PODS, host), pod);
        }
        // All pods' packets arrive at the device of the test run.
        let device = PodDevice { flags: local_pod::DIRECT, ..PodDevice::default() };
        world.kernel.pod_device.put(&1, &device).unwrap();
        world.model.devices.insert(1, device);
        for host in [1, 2] {
            let node = NodeAddress { node_ports: u32::from(host == 1) };
            world.kernel.node.put(&A::make(NODES, host), &node).unwrap();
            world.model.tables.nodes.insert(A::make(NODES, host), node);
        }
        for id in 0..SERVICES {
            world.publish(id);
        }
        world
    }

    pub(crate) fn proto(id: u8) -> u8 {
        if id.is_multiple_of(3) { UDP } else { TCP }
    }

    pub(crate) fn node_port(id: u8) -> u16 {
        (30_000 + u16::from(id)).to_be()
    }

    fn put_service(&mut self, key: ServiceKey<A>, service: Service<A>) {
        self.kernel.service.put(&key, &service).unwrap();
        self.model.tables.services.insert(key, service);
    }

    /// Gives a Service new random backends.
    pub(crate) fn publish(&mut self, id: u8) {
        self.generation += 1;
        let id32 = u32::from(id) + 1;
        let many = id % 4 == 3;
        let wanted = if many { 5 + self.dice.below(14) } else { self.dice.below(4) };
        let mut cluster: Vec<Backend<A>> = Vec::new();
        for _ in 0..wanted {
            let one = *self.dice.of(&self.backends);
            if !cluster.contains(&one) {
                cluster.push(one);
            }
        }
        let mut here: Vec<Backend<A>> =
            cluster.iter().copied().filter(|b| b.flags & backend::LOCAL != 0).collect();
        if !many {
            here.truncate(INLINE - cluster.len());
        }
        let mut frontend_flags =
            if cluster.is_empty() && self.dice.one_in(2) { 0 } else { frontend::HAS_ENDPOINTS };
        if id % 5 == 2 {
            frontend_flags |= frontend::INSIDE_LOCAL;
        }
        let mut service = Service {
            tag: tag(id32, self.generation),
            id: id32,
            generation: self.generation,
            frontend: frontend_flags,
            affinity_s: if id % 6 == 1 { 3 } else { 0 },
            counts: [u16::try_from(cluster.len()).unwrap(), u16::try_from(here.len()).unwrap()],
            inline: Default::default(),
        };
        if cluster.len() + here.len() <= INLINE {
            for (slot, one) in service.inline.iter_mut().zip(cluster.iter().chain(&here)) {
                *slot = *one;
            }
        } else {
            for (set, all) in [(0, &cluster), (1, &here)] {
                for (index, part) in all.chunks(CHUNK).enumerate() {
                    let key = ChunkKey {
                        id: id32,
                        generation: self.generation,
                        set,
                        index: u32::try_from(index).unwrap(),
                    };
                    let mut chunk = Chunk {
                        tag: service.tag,
                        len: u32::try_from(part.len()).unwrap(),
                        backends: Default::default(),
                    };
                    chunk.backends[..part.len()].copy_from_slice(part);
                    self.kernel.chunk.put(&key, &chunk).unwrap();
                    self.model.tables.chunks.insert(key, chunk);
                }
            }
        }
        let old: Vec<_> = self.model.tables.members.iter().copied().filter(|m| m.id == id32).collect();
        for key in old {
            self.kernel.member.delete(&key).unwrap();
            self.model.tables.members.remove(&key);
        }
        for (set, all) in [(0, &cluster), (1, &here)] {
            for one in all {
                let key = MemberKey { id: id32, addr: one.addr, port: one.port, set };
                self.kernel.member.put(&key, &1).unwrap();
                self.model.tables.members.insert(key);
            }
        }
        let vip = A::make(VIPS, id);
        let proto = Self::proto(id);
        self.put_service(ServiceKey { addr: vip, port: 80_u16.to_be(), proto, pad: 0 }, service);
        let bare = Service { frontend: frontend::ADDRESS, counts: [0, 0], ..service };
        self.put_service(ServiceKey { addr: vip, port: 0, proto: 0, pad: 0 }, bare);
        let local = if id.is_multiple_of(2) { frontend::OUTSIDE_LOCAL } else { 0 };
        let frontend = service.frontend | frontend::EXTERNAL | frontend::NODE_PORT | local;
        let key = ServiceKey { addr: A::ANY, port: Self::node_port(id), proto, pad: 0 };
        self.put_service(key, Service { frontend, ..service });
    }

    /// Removes a Service except for the entry of its address.
    pub(crate) fn withdraw(&mut self, id: u8) {
        for key in [
            ServiceKey { addr: A::make(VIPS, id), port: 80_u16.to_be(), proto: Self::proto(id), pad: 0 },
            ServiceKey { addr: A::ANY, port: Self::node_port(id), proto: Self::proto(id), pad: 0 },
        ] {
            self.kernel.service.delete(&key).unwrap();
            self.model.tables.services.remove(&key);
        }
    }

    /// Second of the coarse monotonic clock, which the programs read.
    fn second() -> u32 {
        u32::try_from(ClockId::CLOCK_MONOTONIC_COARSE.now().unwrap().tv_sec()).unwrap()
    }

    /// Sends a packet through both sides, and requires the same verdict, the same packet and the same flows.
    pub(crate) fn send(&mut self, hook: PacketHook, spec: &Spec<A>) {
        let sent = frame(spec);
        let mut seconds = vec![Self::second()];
        let answer = self.programs.at(hook).run(&sent).unwrap();
        seconds.push(Self::second());
        seconds.dedup();
        let packet = Packet { tuple: spec.tuple, tcp_flags: spec.tcp_flags, part: spec.part, ifindex: 1 };
        let mut tuple = spec.tuple;
        (tuple.src_port, tuple.dst_port) =
            if spec.part == Part::Error { (tuple.src_port, tuple.dst_port) } else { spec.ports };
        let chosen = self.kernel.entry(&tuple);
        let stays: Vec<_> = self
            .service_of(&tuple)
            .map(|service| AffinityKey { id: service.id, client: tuple.src })
            .map(|key| (key, self.kernel.affinity.get(&key).unwrap()))
            .collect();
        // Some sequence of random numbers must lead the model to the kernel's choice.
        let scripts = self.scripts(&tuple, &chosen);
        let mut agreed = None;
        let mut first = None;
        let throws =
            seconds.iter().flat_map(|second| scripts.iter().map(move |script| (*second, script.clone())));
        for (second, script) in throws {
            self.model.tables.now_s.set(second);
            let kernel = &self.kernel;
            let mut verdict = PacketVerdict::Pass;
            let agrees = self.model.attempt(|model| {
                *model.script.borrow_mut() = script.into();
                let mut ctx = FlowContext::default();
                ctx.packet = packet;
                verdict = decide_packet(model, hook, &mut ctx);
                let entry = model.entry(&tuple);
                let back = chosen.map(|flow| reverse(&flow.to));
                let same_back = back.is_none_or(|back| model.entry(&back) == kernel.entry(&back));
                let same_stay =
                    stays.iter().all(|(key, stay)| model.tables.affinity.borrow().get(key) == stay.as_ref());
                let (value, want) = expected(spec, &sent, &verdict, &ctx);
                // The limit of answers is reached, so this packet is dropped without an answer.
                let quiet = verdict == PacketVerdict::Reject && answer.value == SHOT;
                let right = match verdict {
                    PacketVerdict::Reject if quiet => true,
                    PacketVerdict::Translate(Forwarding::Neighbour(0)) => {
                        answer.value == NEXT || answer.value == value
                    }
                    _ => answer.value == value,
                };
                let fits = same_stay
                    && entry == chosen
                    && same_back
                    && right
                    && (quiet || value == SHOT || same(spec, &answer.packet, &want));
                if !fits && first.is_none() {
                    first = Some(format!(
                        "{verdict:?} {value:#x}\nentry {entry:?}\nback {same_back}\n{}",
                        hex(&want)
                    ));
                }
                fits
            });
            if agrees {
                agreed = Some(verdict);
                break;
            }
        }
        self.model.script.borrow_mut().clear();
        let Some(verdict) = agreed else {
            panic!(
                "{hook:?} {spec:?}\ncounted {:?}\nkernel: {:#x}\nentry {chosen:?}\n{}\nmodel: {}\nsent\n{}",
                self.counters.sums().unwrap(),
                answer.value,
                hex(&answer.packet),
                first.unwrap_or_default(),
                hex(&sent)
            );
        };
        let name = match verdict {
            PacketVerdict::Translate(Forwarding::Pod(_)) => "translate to a pod".to_owned(),
            PacketVerdict::Translate(Forwarding::Neighbour(0)) => "translate by route".to_owned(),
            PacketVerdict::Translate(Forwarding::Neighbour(_)) => "translate by device".to_owned(),
            PacketVerdict::Forward(_) => "forward".to_owned(),
            PacketVerdict::Reject if answer.value == SHOT => "unanswered".to_owned(),
            other => format!("{other:?}").to_lowercase(),
        };
        *self.seen.entry(name).or_default() += 1;
    }

    /// Service ports that the packet may belong to.
    fn service_of(&self, tuple: &Tuple<A>) -> impl Iterator<Item = Service<A>> {
        let key = |addr| ServiceKey { addr, port: tuple.dst_port, proto: tuple.proto, pad: 0 };
        let found = |addr| self.model.tables.services.get(&key(addr)).copied();
        [found(tuple.dst), found(A::ANY)].into_iter().flatten()
    }

    /// Sequences of random numbers that lead to the kernel's flow: one for the backend's ordinal, then one
    /// for the port, repeated. Without a flow in the kernel every sequence that gives the same verdict will
    /// do.
    fn scripts(&self, tuple: &Tuple<A>, chosen: &Option<Flow<A>>) -> Vec<Vec<u32>> {
        // The smallest number that scales to `ordinal` of `count`.
        let throw = |ordinal: u64, count: u64| u32::try_from((ordinal << 32).div_ceil(count)).unwrap();
        let [first, last] = self.model.config.masquerade_ports;
        let span = u64::from(last - first) + 1;
        let ports: Vec<u64> = match chosen {
            Some(flow) => {
                let port = u16::from_be(flow.to.src_port);
                if (first..=last).contains(&port) { vec![u64::from(port - first)] } else { vec![0] }
            }
            None => (0..span.min(64)).collect(),
        };
        let mut backends = vec![vec![0]];
        for service in self.service_of(tuple) {
            for count in service.counts.map(u64::from) {
                backends.extend((0..count).map(|ordinal| vec![throw(ordinal, count)]));
            }
        }
        // A client with session affinity draws no number for the backend.
        backends.push(Vec::new());
        let mut scripts = Vec::new();
        for port in ports {
            for backend in &backends {
                scripts.push([backend.clone(), vec![throw(port, span); 128]].concat());
            }
        }
        scripts
    }

    /// Makes the entry of one direction older, and with `both` also that of the other direction.
    pub(crate) fn age(&mut self, key: &Tuple<A>, seconds: u32, both: bool) {
        let Some(mut flow) = self.model.entry(key) else { return };
        flow.seen_s = flow.seen_s.saturating_sub(seconds);
        flow.since_s = flow.since_s.saturating_sub(seconds);
        self.model.set(key, flow);
        let class = Class::of(key.proto, flow.flags) as usize;
        self.kernel.flows[class].put(key, &flow).unwrap();
        let back = reverse(&flow.to);
        if both {
            self.age(&back, seconds, false);
        }
    }

    /// Runs the garbage collection of these keys on both sides.
    pub(crate) fn collect(&mut self, keys: &[Tuple<A>]) {
        self.model.tables.now_s.set(Self::second());
        let mut frame = vec![0; 14];
        frame.extend(if A::ICMP == 1 { 2_u32 } else { 10 }.to_ne_bytes());
        frame.extend(u32::try_from(keys.len()).unwrap().to_ne_bytes());
        for key in keys {
            frame.extend(key.src.bytes());
            frame.extend(key.dst.bytes());
            frame.extend(key.src_port.to_ne_bytes());
            frame.extend(key.dst_port.to_ne_bytes());
            frame.extend([key.proto, 0, 0, 0]);
        }
        let answer = self.programs.gc.run(&frame).unwrap();
        let mut ctx = FlowContext::default();
        let gone = keys.iter().filter(|key| collect(&self.model, key, &mut ctx)).count();
        assert_eq!(answer.value as usize, gone, "collected {keys:?}");
        *self.seen.entry("collected".to_owned()).or_default() += u64::try_from(gone).unwrap();
    }

    /// Requires equal tables of flows on both sides, and counters that match the number of entries.
    pub(crate) fn compare(&self) {
        let model = self.model.flows.borrow();
        let (sums, mut all) = (self.counters.sums().unwrap(), 0);
        for class in [Class::Udp, Class::Unassured, Class::Assured] {
            let kernel = self.kernel.flows[class as usize].entries().unwrap();
            all += kernel.len();
            let counted = |block| sums[count::flow(block, class as u32, A::ICMP != 1) as usize];
            let there = counted(count::FLOW_ENTERED) - counted(count::FLOW_LEFT);
            assert_eq!(there, u64::try_from(kernel.len()).unwrap(), "{class:?} as counted");
            for (key, flow) in kernel {
                assert_eq!(model.get(&(class, key)), Some(&flow), "{class:?} {key:?}");
            }
        }
        assert_eq!(all, model.len());
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}

/// A plain packet with this tuple.
pub(crate) fn spec<A: Net>(tuple: Tuple<A>, tcp_flags: u8) -> Spec<A> {
    Spec {
        tuple,
        outer: None,
        tcp_flags: if tuple.proto == TCP { tcp_flags } else { 0 },
        part: Part::Whole,
        ttl: 64,
        unchecked: false,
        ports: (tuple.src_port, tuple.dst_port),
        macs: (OURS, THEIRS),
    }
}

/// Configurations of the rounds: direct forwarding, forwarding by the stack, masquerade for all.
pub(crate) const FLAGS: [u32; 3] = [config::REDIRECT, 0, config::REDIRECT | config::MASQUERADE_ALL];
