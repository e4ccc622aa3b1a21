//! Programs at devices. The programs are stand-ins that pass every packet on.

use super::{Scratch, in_new_netns, scratch::ip};
use crate::{
    DeviceLink, DeviceRole, Pins, Place, attach_device, collect_flows, detach_device, devices, enable_stats,
    pins::{make_dir, pin_over},
    report,
    sys::{load_classifier, test_run},
};
use std::{os::fd::AsFd, thread, time::Instant};

/// `TCX_NEXT`: the next program at the device runs.
const NEXT: i32 = -1;

fn pin_programs(pins: &Pins) {
    make_dir(pins.root()).unwrap();
    pins.make().unwrap();
    for place in [Place::Out, Place::Pod, Place::Uplink] {
        let program = load_classifier(NEXT).unwrap();
        pin_over(program.as_fd(), &pins.programs().join(place.program())).unwrap();
    }
}

fn link_ids(pins: &Pins) -> Vec<u32> {
    report(pins, false).unwrap().links.iter().map(|link| link.id).collect()
}

fn program_id(pins: &Pins, place: Place) -> u32 {
    let report = report(pins, false).unwrap();
    report.programs.iter().find(|program| program.name == place.program()).unwrap().id
}

#[test]
fn a_device_is_attached_adopted_swapped_and_attached_anew_when_replaced() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    pin_programs(&pins);
    in_new_netns(|| {
        ip("link add berth0 index 70 type veth peer name berth1 index 71");
        attach_device(&pins, 70, DeviceRole::Pod).unwrap();
        let live = |place| {
            let link =
                |place| DeviceLink { ifindex: 70, place, live: true, program: program_id(&pins, place) };
            [link(Place::Out), link(place)]
        };
        assert_eq!(devices(&pins).unwrap(), live(Place::Pod));
        let first = link_ids(&pins);
        attach_device(&pins, 70, DeviceRole::Pod).unwrap();
        assert_eq!(link_ids(&pins), first, "adopted");

        pin_programs(&pins);
        attach_device(&pins, 70, DeviceRole::Pod).unwrap();
        assert_eq!(link_ids(&pins), first, "swapped in the same link");
        assert_eq!(devices(&pins).unwrap(), live(Place::Pod));

        attach_device(&pins, 70, DeviceRole::Uplink).unwrap();
        assert_eq!(devices(&pins).unwrap(), live(Place::Uplink), "one role at a time");

        ip("link del berth0");
        let gone = devices(&pins).unwrap();
        assert_eq!(gone.iter().map(|link| link.live).collect::<Vec<_>>(), [false, false]);
        assert!(attach_device(&pins, 70, DeviceRole::Uplink).is_err(), "there is no such device");
        ip("link add berth0 index 70 type veth peer name berth1 index 71");
        let second = link_ids(&pins);
        attach_device(&pins, 70, DeviceRole::Uplink).unwrap();
        assert_eq!(devices(&pins).unwrap(), live(Place::Uplink));
        assert_ne!(link_ids(&pins), second, "the old link belongs to the dead device");

        assert!(detach_device(&pins, 70).unwrap());
        assert!(!detach_device(&pins, 70).unwrap());
        assert_eq!(devices(&pins).unwrap(), []);
    });
}

#[test]
fn many_devices_are_attached_at_once() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    pin_programs(&pins);
    in_new_netns(|| {
        for i in 0..16 {
            ip(&format!("link add berth{i} index {} type veth peer name peer{i}", 100 + i));
        }
        let start = Instant::now();
        for i in 8..16 {
            attach_device(&pins, 100 + i, DeviceRole::Pod).unwrap();
        }
        println!("8 devices one by one in {:?}", start.elapsed());
        let start = Instant::now();
        thread::scope(|scope| {
            for i in 0..8 {
                let pins = &pins;
                scope.spawn(move || attach_device(pins, 100 + i, DeviceRole::Pod).unwrap());
            }
        });
        println!("8 devices at once in {:?}", start.elapsed());
        let all = devices(&pins).unwrap();
        assert_eq!((all.len(), all.iter().all(|device| device.live)), (32, true));
    });
}

#[test]
fn runs_are_counted_while_somebody_asks() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    make_dir(pins.root()).unwrap();
    pins.make().unwrap();
    let program = load_classifier(5).unwrap();
    pin_over(program.as_fd(), &pins.programs().join("counted")).unwrap();
    let guard = enable_stats().unwrap();
    let answer = test_run(program.as_fd(), &[0; 64], 1000).unwrap();
    assert_eq!((answer.value, answer.packet), (5, vec![0; 64]));
    drop(guard);
    let report = report(&pins, false).unwrap();
    let counted = &report.programs[0];
    assert_eq!((counted.runs, counted.instructions), (1000, 2));
    assert!(counted.run_ns > 0 && counted.memory > 0);
}

#[test]
fn without_programs_nothing_is_attached_and_it_is_told() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    make_dir(pins.root()).unwrap();
    pins.make().unwrap();
    assert!(attach_device(&pins, 1, DeviceRole::Pod).is_err());
    crate::load(&pins, crate::OBJECT, |_| {}).unwrap();
    let datapath = crate::Datapath::open(&pins, crate::Access::Write).unwrap();
    pin_over(load_classifier(3).unwrap().as_fd(), &pins.programs().join("tc_gc")).unwrap();
    for port in 0..300 {
        let key = berth_ebpf_abi::Tuple { src_port: port, ..Default::default() };
        let seen_s = if port < 200 { 0 } else { 95 };
        let flow = berth_ebpf_abi::Flow { seen_s, ..Default::default() };
        datapath.udp4.put(&key, &flow).unwrap();
    }
    let collected = collect_flows(&pins, &datapath, 100).unwrap();
    assert_eq!((collected.seen, collected.candidates), (300, 200));
    // The keys fill two packets, and the stand-in reports three removals for each.
    assert_eq!(collected.removed, 6);
}
