//! `berth dns` alone, for the tests: `serve DIR ADDRESS`, with all paths below DIR.

use berth_core::{ids::NodeName, roots::Roots};
use berth_dns::server::{Config, run};
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(dir), Some(address)) = (args.next(), args.next()) else {
        return Err("serve DIR ADDRESS".into());
    };
    let dir = Path::new(&dir);
    let below = Roots::below(dir, NodeName::new("n")?, "berth-dns-test");
    let roots = Roots { resolv_conf: PathBuf::from(dir).join("etc/resolv.conf"), ..below };
    run(Config::new(roots, vec![address.parse()?], "cluster.local"))?;
    Ok(())
}
