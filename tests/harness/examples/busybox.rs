//! Writes an OCI archive with Debian's static busybox: `cargo run -p berth-harness --example busybox -- OUT NAME`.

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(out), Some(name)) = (args.next(), args.next()) else {
        anyhow::bail!("usage: busybox OUT NAME")
    };
    berth_harness::oci::write_archive(out.as_ref(), &[berth_harness::oci::Image::busybox(&name)?])
}
