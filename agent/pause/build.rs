//! Builds the pause program by calling the compiler directly: a program without the standard library does not
//! fit a workspace whose profiles unwind.

use std::{env, error::Error, ffi::OsString, path::PathBuf, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    let source = "program/main.rs";
    println!("cargo:rerun-if-changed={source}");
    println!("cargo:rerun-if-changed=build.rs");
    let var = |name: &str| env::var_os(name).ok_or_else(|| format!("{name} is not set; cargo sets it"));
    let out = PathBuf::from(var("OUT_DIR")?).join("pause");
    let mut rustc = Command::new(var("RUSTC")?);
    rustc
        .args(["--edition=2024", "--crate-type=bin", "--crate-name=pause"])
        .args(["-Cpanic=abort", "-Copt-level=s", "-Cdebuginfo=0", "-Cstrip=symbols"])
        // At a fixed address: no loader relocates the program.
        .args(["-Crelocation-model=static", "-Ctarget-feature=+crt-static"])
        .args(["-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib", "-Clink-arg=-static"])
        .args(["-Clink-arg=-Wl,--build-id=none,-z,norelro,-z,noexecstack"])
        .arg("--target")
        .arg(var("TARGET")?)
        .arg("-o")
        .arg(&out)
        .arg(source);
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut argument = OsString::from("-Clinker=");
        argument.push(linker);
        rustc.arg(argument);
    }
    let status = rustc.status()?;
    if !status.success() {
        return Err(format!("the pause program does not build: {status}").into());
    }
    Ok(())
}
