//! tmp
use berth_ebpf_loader::{OBJECT, Pins, load, report};
#[test]
fn loads() {
    let object = std::env::var_os("BERTH_OBJECT").map_or(OBJECT.to_vec(), |p| std::fs::read(p).unwrap());
    let pins = Pins::new(format!("/sys/fs/bpf/berth-packets-{}", std::process::id()));
    let r = load(&pins, &object, |_| ());
    let rep = report(&pins, false);
    std::fs::remove_dir_all(pins.root()).ok();
    if let Err(e) = &r {
        let mut e: Option<&dyn std::error::Error> = Some(e);
        while let Some(x) = e { let s = x.to_string(); println!("{}", &s[s.len().saturating_sub(12000)..]); e = x.source(); }
    }
    for p in rep.unwrap().programs { println!("{} insns {} jit {} verified {}", p.name, p.instructions, p.machine_code, p.verified); }
    r.unwrap();
}
