//! Network namespaces for tests.

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

/// A named network namespace, removed with all its devices when this value is dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Creates an empty namespace.
    ///
    /// # Errors
    /// A namespace of this name exists, or `ip` fails.
    pub fn new(name: &str) -> Result<Netns> {
        run(Command::new("ip").args(["netns", "add", name]))?;
        Ok(Netns { name: name.to_owned() })
    }

    /// Creates an empty namespace whose name no other namespace of this machine has. `what` is a part of it.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn unique(what: &str) -> Result<Netns> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        Netns::new(&format!("berth-{}-{n}-{what}", std::process::id()))
    }

    /// Creates a namespace with `lo` up and forwarding on.
    ///
    /// # Errors
    /// A namespace of this name exists, or `ip` fails.
    pub fn router(name: &str) -> Result<Netns> {
        let netns = Netns::new(name)?;
        netns.ip("link set lo up")?;
        netns.set_sysctl("ipv4/ip_forward", "1")?;
        netns.set_sysctl("ipv6/conf/all/forwarding", "1")?;
        Ok(netns)
    }

    /// File of the namespace.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Name of the namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` in the namespace; spaces separate the arguments. Returns the output.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn ip(&self, words: &str) -> Result<String> {
        let out = run(Command::new("ip").args(["-n", &self.name]).args(words.split(' ')))?;
        String::from_utf8(out.stdout).context("what ip says")
    }

    /// Reads a value below `/proc/sys/net` of this namespace, without the line's end.
    ///
    /// # Errors
    /// The value does not exist.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        let path = Path::new("/proc/sys/net").join(key);
        let read = self.enter(|| fs::read_to_string(&path))?;
        Ok(read.with_context(|| format!("read {}", path.display()))?.trim().to_owned())
    }

    /// Sets a value below `/proc/sys/net` of this namespace.
    ///
    /// # Errors
    /// The kernel refuses the value.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(key);
        self.enter(|| fs::write(&path, value))?.with_context(|| format!("write {}", path.display()))
    }

    /// Loads rules of nftables.
    ///
    /// # Errors
    /// `nft` fails.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.enter(|| {
            let mut nft = Command::new("nft")
                .args(["-f", "-"])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .context("run nft")?;
            nft.stdin.take().context("nft's input")?.write_all(rules.as_bytes())?;
            let out = nft.wait_with_output()?;
            ensure!(out.status.success(), "nft: {}", String::from_utf8_lossy(&out.stderr).trim());
            Ok(())
        })?
    }

    /// Runs `work` on a thread in this namespace. Programs started by `work` are in the namespace too.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("open {}", self.path().display()))?;
        thread::scope(|scope| {
            let inside = || -> Result<T> {
                setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", self.name))?;
                Ok(work())
            };
            scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Index and hardware address of a device.
    ///
    /// # Errors
    /// The namespace has no such device.
    pub fn device(&self, device: &str) -> Result<(u32, [u8; 6])> {
        let out = self.ip(&format!("-o link show dev {device}"))?;
        let index = out.split(':').next().and_then(|n| n.trim().parse().ok());
        let mac = out.split_whitespace().skip_while(|w| *w != "link/ether").nth(1).and_then(mac);
        index.zip(mac).with_context(|| format!("ip shows {device} as {out:?}"))
    }
}

impl Drop for Netns {
    #[expect(clippy::print_stderr, reason = "a dropped value cannot return an error")]
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("{error:#}");
        }
    }
}

/// Runs `work` on a thread in a new namespace without a name, with `lo` up. The namespace ends with its last
/// thread and process.
///
/// # Errors
/// The namespace cannot be created, or `ip` fails.
pub fn in_new<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    let inside = || -> Result<T> {
        unshare(CloneFlags::CLONE_NEWNET).context("create a network namespace")?;
        run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        Ok(work())
    };
    thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// Runs `work` on a thread in the network namespace of a process. Threads and programs that it starts are there too.
///
/// # Errors
/// The process has ended, or its namespace cannot be entered.
pub fn of_process<T: Send>(pid: u32, work: impl FnOnce() -> T + Send) -> Result<T> {
    let path = format!("/proc/{pid}/ns/net");
    let file = File::open(&path).with_context(|| format!("open {path}"))?;
    let inside = || -> Result<T> {
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {path}"))?;
        Ok(work())
    };
    thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// Parses the text form of a hardware address.
pub fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|b| u8::from_str_radix(b, 16).ok()).collect();
    bytes?.try_into().ok()
}

/// Joins two namespaces by a veth pair with these addresses, up at both ends.
///
/// # Errors
/// `ip` fails.
pub fn join(a: (&Netns, &str, &[&str]), b: (&Netns, &str, &[&str])) -> Result<()> {
    a.0.ip(&format!("link add {} type veth peer name {} netns {}", a.1, b.1, b.0.name))?;
    for (netns, device, addresses) in [a, b] {
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            netns.ip(&format!("address add {address} dev {device}{nodad}"))?;
        }
        netns.ip(&format!("link set {device} up"))?;
    }
    Ok(())
}

/// Runs a program to its end.
///
/// # Errors
/// The program fails; the message includes its output.
pub fn run(command: &mut Command) -> Result<Output> {
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_six_bytes() {
        assert_eq!(mac("02:00:0a:ff:01:7f"), Some([2, 0, 10, 255, 1, 127]));
        assert!(mac("02:00:0a").is_none() && mac("x").is_none());
    }
}
