//! A driver for tests as a process of its own, which registers itself:
//! `test_driver DIR REGISTRY [NAME] [KEY=VALUE of its topology]`. It ends with its standard input.

use berth_csi_client::testing::{Options, TestDriver, TestRegistration};
use std::{env, fs, io, path::Path};

fn main() -> io::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [dir, registry, rest @ ..] = args.as_slice() else {
        return Err(io::Error::other("give a directory for the driver, and the registration directory"));
    };
    let (dir, registry) = (Path::new(dir), Path::new(registry));
    fs::create_dir_all(dir)?;
    let mut options = Options { mounts: true, ..Options::default() };
    options.info.max_volumes = Some(7);
    if let Some(name) = rest.first() {
        options.name.clone_from(name);
    }
    if let Some((key, value)) = rest.get(1).and_then(|text| text.split_once('=')) {
        options.info.topology.insert(key.into(), value.into());
    }
    let name = options.name.clone();
    let driver = TestDriver::start(dir, options)?;
    let socket = registry.join(format!("{name}-reg.sock"));
    let registration = TestRegistration::start(&socket, "CSIPlugin", &name, &driver.endpoint(), &["1.0.0"])?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    println!("{:?}\n{:#?}", registration.notified(), driver.journal());
    Ok(())
}
