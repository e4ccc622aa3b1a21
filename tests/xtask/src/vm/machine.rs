//! A running VM: qemu without KVM, and the channel for commands.
//!
//! The channel is a virtio serial port and so works without the guest's network. A request is a line `<id>
//! <seconds> <script in base64>`; answers are lines `<id> o <text>` and at the end `<id> e <exit code>`
//! (`tests/vm/guest/root/usr/local/sbin/vm-command`). An answer with another id belongs to an abandoned
//! request.

use super::{image::Image, kernel::Kernel};
use crate::{out, setup::succeed};
use anyhow::{Context, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Time limit of a boot: the processor is emulated, and the machine may be busy.
const BOOT: Duration = Duration::from_secs(300);

/// Silence on the channel after which a request is repeated.
const SILENCE: Duration = Duration::from_secs(10);

/// Time limit for the end of qemu.
const END: Duration = Duration::from_secs(20);

/// Name of the serial console's log in the VM's directory.
pub(super) const CONSOLE: &str = "console.log";

/// Options for starting a VM.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start<'a> {
    /// Whether the VM keeps running after this process.
    pub(super) stay: bool,
    /// Additional kernel parameters.
    pub(super) options: &'a str,
}

/// A running VM.
#[derive(Debug)]
pub(super) struct Machine {
    dir: PathBuf,
    /// `None` where another process started the VM.
    qemu: Option<Child>,
    channel: Option<Channel>,
    requests: u32,
}

#[derive(Debug)]
struct Channel {
    socket: UnixStream,
    bytes: VecDeque<u8>,
}

impl Machine {
    /// Starts a VM in `dir`, which receives the sockets and the disk overlay, with `payload` as the second
    /// disk. Unless `stay` is set, the VM ends with this value and with this process.
    ///
    /// # Errors
    /// qemu does not start.
    pub(super) fn start(
        dir: &Path,
        kernel: &Kernel,
        image: &Image,
        payload: &Path,
        how: Start<'_>,
    ) -> Result<Machine> {
        let disk = dir.join("disk.qcow2");
        let mut overlay = Command::new("qemu-img");
        overlay.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).args([&image.disk, &disk]);
        succeed(&mut overlay)?;
        let mut qemu = if how.stay {
            let mut nice = Command::new("nice");
            nice.args(["-n", "10", "qemu-system-x86_64"]).process_group(0);
            nice
        } else {
            let mut with_us = Command::new("setpriv");
            with_us.args(["--pdeathsig", "KILL", "nice", "-n", "10", "qemu-system-x86_64"]);
            with_us
        };
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3G"]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        qemu.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(&image.initrd);
        qemu.args(["-append", &format!("console=ttyS0 quiet root=/dev/vda rw panic=10 {}", how.options)]);
        qemu.arg("-serial").arg(format!("file:{CONSOLE}"));
        qemu.args(["-drive", "file=disk.qcow2,if=virtio,format=qcow2,cache=unsafe,discard=unmap"]);
        qemu.arg("-drive").arg(format!("file={},if=virtio,format=raw,readonly=on", payload.display()));
        qemu.args(["-netdev", "user,id=net,restrict=on,ipv6=off"]);
        qemu.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        qemu.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
        qemu.args(["-chardev", "socket,id=command,path=command.sock,server=on,wait=off"]);
        qemu.args(["-device", "virtserialport,chardev=command,name=command"]);
        qemu.args(["-chardev", "socket,id=monitor,path=monitor.sock,server=on,wait=off"]);
        qemu.args(["-mon", "chardev=monitor"]);
        let said = File::create(dir.join("qemu.log")).context("cannot make qemu's log")?;
        let child = qemu
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(said.try_clone().context("cannot share qemu's log")?)
            .stderr(said)
            .spawn()
            .context("cannot run qemu")?;
        Ok(Machine { dir: dir.to_owned(), qemu: Some(child), channel: None, requests: 0 })
    }

    /// The VM that an earlier process left running in `dir`; `None` where no VM runs.
    pub(super) fn running(dir: &Path) -> Option<Machine> {
        UnixStream::connect(dir.join("monitor.sock")).ok()?;
        // Request ids derive from the pid, so that they differ from those of the earlier process.
        let requests = std::process::id().wrapping_mul(1000);
        Some(Machine { dir: dir.to_owned(), qemu: None, channel: None, requests })
    }

    /// Whether the VM ends with this value.
    pub(super) fn is_ours(&self) -> bool {
        self.qemu.is_some()
    }

    /// Leaves the VM running after the end of this process.
    pub(super) fn leave(mut self) {
        self.qemu = None;
    }

    /// Ends the VM at once, without a shutdown of the guest.
    ///
    /// # Errors
    /// qemu does not end.
    pub(super) fn end(mut self) -> Result<()> {
        if let Some(mut child) = self.qemu.take() {
            child.kill().context("cannot end qemu")?;
            child.wait().context("cannot wait for qemu")?;
            return Ok(());
        }
        let path = self.dir.join("monitor.sock");
        let mut monitor = UnixStream::connect(&path).context("cannot ask qemu to end")?;
        monitor.write_all(b"quit\n").context("cannot ask qemu to end")?;
        let begun = Instant::now();
        while UnixStream::connect(&path).is_ok() {
            ensure!(begun.elapsed() < END, "qemu does not end; its directory is {}", self.dir.display());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Waits until the VM runs commands, in a boot other than `not`. Returns the boot id.
    ///
    /// # Errors
    /// The VM ends, or does not come up within the time limit of a boot.
    pub(super) fn wait(&mut self, not: Option<&str>) -> Result<String> {
        let begun = Instant::now();
        loop {
            if let Some(child) = &mut self.qemu
                && let Some(status) = child.try_wait().context("cannot look at qemu")?
            {
                let said = fs::read_to_string(self.dir.join("qemu.log")).unwrap_or_default();
                bail!("qemu has ended: {status}: {said}");
            }
            let mut boot = String::new();
            let asked =
                self.run("cat /proc/sys/kernel/random/boot_id", SILENCE, |line| boot = line.to_owned());
            if matches!(asked, Ok(0)) && not != Some(&boot) {
                return Ok(boot);
            }
            ensure!(begun.elapsed() < BOOT, "the VM does not come up within {} s", BOOT.as_secs());
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    /// Runs a bash script in the VM and passes each line of output to `line`. Returns the exit code; 124
    /// where the script was killed after `limit`.
    ///
    /// # Errors
    /// The channel stays silent beyond `limit`.
    pub(super) fn run(&mut self, script: &str, limit: Duration, mut line: impl FnMut(&str)) -> Result<i32> {
        self.requests = self.requests.wrapping_add(1);
        let id = self.requests.to_string();
        let done = self.exchange(&id, script, limit, &mut line);
        if done.is_err() {
            self.channel = None;
        }
        done
    }

    fn exchange(
        &mut self,
        id: &str,
        script: &str,
        limit: Duration,
        line: &mut dyn FnMut(&str),
    ) -> Result<i32> {
        let until = Instant::now() + limit + SILENCE;
        if self.channel.is_none() {
            let socket = UnixStream::connect(self.dir.join("command.sock"))
                .context("cannot reach the VM's channel")?;
            socket.set_read_timeout(Some(Duration::from_secs(1))).context("cannot set a deadline")?;
            socket.set_write_timeout(Some(SILENCE)).context("cannot set a deadline")?;
            self.channel = Some(Channel { socket, bytes: VecDeque::new() });
        }
        let channel = self.channel.as_mut().context("the VM's channel is closed")?;
        let request = format!("{id} {} {}\n", limit.as_secs(), BASE64.encode(script));
        channel.socket.write_all(request.as_bytes()).context("cannot write to the VM's channel")?;
        loop {
            let Some(text) = channel.line(until)? else { bail!("the VM's channel is silent") };
            let mut words = text.splitn(3, ' ');
            if words.next() != Some(id) {
                continue;
            }
            match (words.next(), words.next()) {
                (Some("o"), text) => line(text.unwrap_or_default()),
                (Some("e"), Some(code)) => {
                    return code.parse().context("the VM's channel gives no exit code");
                }
                _ => bail!("the VM's channel says {text:?}"),
            }
        }
    }

    /// As [`Machine::run`], for a script that must succeed. The error holds the output.
    ///
    /// # Errors
    /// The script fails.
    pub(super) fn must(&mut self, what: &str, script: &str, limit: Duration) -> Result<String> {
        let mut output = String::new();
        let code = self.run(script, limit, |line| {
            output.push_str(line);
            output.push('\n');
        })?;
        ensure!(code == 0, "cannot {what}: exit code {code}\n{output}");
        Ok(output)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(child) = &mut self.qemu
            && let Err(error) = child.kill().and_then(|()| child.wait().map(drop))
        {
            out::line(&format!("the VM is not ended: {error}"));
        }
    }
}

impl Channel {
    /// The next line; `None` where no line arrives before `until`.
    fn line(&mut self, until: Instant) -> Result<Option<String>> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(end) = self.bytes.iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
                line.pop();
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            match self.socket.read(&mut buffer) {
                Ok(0) => bail!("the VM's channel is closed"),
                Ok(n) => self.bytes.extend(buffer.iter().take(n)),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) => return Err(e).context("cannot read the VM's channel"),
            }
            if Instant::now() > until {
                return Ok(None);
            }
        }
    }
}
