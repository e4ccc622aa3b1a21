//! Running kubectl: to its end, or beside the check with its output read as it comes.
//!
//! A program that does not end in time is killed, also when its value is dropped.

use anyhow::{Context, Result, bail, ensure};
use berth_harness::wait;
use std::{
    fs::File,
    io::{Read, Write},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

/// Deadline of a command that ends by itself, for `timeout`.
const DEADLINE: &str = "180";

/// Time in which a program that was told to end does so.
const END: Duration = Duration::from_secs(30);

/// kubectl as the administrator of a cluster.
#[derive(Debug, Clone)]
pub(super) struct Client {
    program: PathBuf,
    kubeconfig: PathBuf,
}

/// How a command ended.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) code: i32,
    pub(super) out: Vec<u8>,
    pub(super) err: String,
}

impl Done {
    /// Standard output as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

impl Client {
    pub(super) fn new(program: PathBuf, kubeconfig: PathBuf) -> Client {
        Client { program, kubeconfig }
    }

    /// The command line of kubectl with these arguments.
    fn words(&self, args: &[&str]) -> Vec<String> {
        let own = [&self.program, &self.kubeconfig].map(|path| path.display().to_string());
        let [program, kubeconfig] = own;
        let mut words = vec![program, "--kubeconfig".to_owned(), kubeconfig];
        words.extend(args.iter().map(ToString::to_string));
        words
    }

    /// Runs kubectl to its end with a file as its input, or with none.
    pub(super) fn run(&self, args: &[&str], input: Option<File>) -> Result<Done> {
        let mut command = Command::new("timeout");
        command.arg(DEADLINE).args(self.words(args));
        let out = command
            .stdin(input.map_or_else(Stdio::null, Stdio::from))
            .output()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let err = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        Ok(Done { code: out.status.code().unwrap_or(-1), out: out.stdout, err })
    }

    /// Runs kubectl to its end, which must be a success.
    pub(super) fn ok(&self, args: &[&str]) -> Result<Done> {
        let done = self.run(args, None)?;
        ensure!(done.code == 0, "kubectl {} ends with {}: {}", args.join(" "), done.code, done.err);
        Ok(done)
    }

    /// Starts kubectl with pipes.
    pub(super) fn start(&self, args: &[&str]) -> Result<Live> {
        let words = self.words(args);
        let (program, rest) = words.split_first().context("a command without words")?;
        let mut command = Command::new(program);
        command.args(rest);
        Live::of(command)
    }

    /// Starts kubectl on a terminal of its own; `script` holds the terminal's other end.
    pub(super) fn start_on_terminal(&self, args: &[&str]) -> Result<Live> {
        let quoted: Vec<String> =
            self.words(args).iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect();
        let mut command = Command::new("script");
        command.args(["-qefc", &quoted.join(" "), "/dev/null"]);
        Live::of(command)
    }
}

/// A running program, whose output is collected.
pub(super) struct Live {
    child: Child,
    input: Option<ChildStdin>,
    output: Arc<Mutex<Vec<u8>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Live {
    fn of(mut command: Command) -> Result<Live> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start kubectl")?;
        let output = Arc::default();
        let sources: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|out| Box::new(out) as _),
            child.stderr.take().map(|err| Box::new(err) as _),
        ];
        let readers =
            sources.into_iter().flatten().map(|source| collect(source, Arc::clone(&output))).collect();
        Ok(Live { input: child.stdin.take(), child, output, readers })
    }

    /// Number of the process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All of the output so far.
    pub(super) fn output(&self) -> Vec<u8> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.output()).into_owned()
    }

    /// Waits until the output has this text.
    pub(super) fn says(&self, text: &str, patience: Duration) -> Result<()> {
        wait::until(&format!("kubectl says {text:?}"), patience, || self.text().contains(text))
            .with_context(|| self.text())
    }

    /// Writes to the program.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let input = self.input.as_mut().context("the input is closed")?;
        input.write_all(bytes).and_then(|()| input.flush()).context("cannot write to kubectl")
    }

    /// Ends the program's input.
    pub(super) fn close(&mut self) {
        self.input = None;
    }

    /// Whether the program still runs.
    pub(super) fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("cannot wait for kubectl")?.is_none())
    }

    /// Waits for the end; the exit code and all of the output.
    pub(super) fn end(mut self, patience: Duration) -> Result<(i32, Vec<u8>)> {
        let ended = wait::some("kubectl ends", patience, || self.child.try_wait().ok().flatten());
        let status = ended.with_context(|| self.text())?;
        // The pipes end with the program.
        for reader in self.readers.drain(..) {
            if reader.join().is_err() {
                bail!("cannot read the output");
            }
        }
        Ok((status.code().unwrap_or(-1), self.output()))
    }

    /// Ends the program.
    pub(super) fn stop(mut self) -> Result<()> {
        self.close();
        self.child.kill().context("cannot end kubectl")?;
        self.end(END).map(drop)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // It may have ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn collect(mut source: Box<dyn Read + Send>, output: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut part = vec![0; 64 << 10];
        while let Ok(read @ 1..) = source.read(&mut part) {
            let new = part.get(..read).unwrap_or_default();
            output.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(new);
        }
    })
}
