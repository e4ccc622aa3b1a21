//! `berth exec`: a command in a container. Its input and output go through FIFOs that the agent
//! makes and this process opens; the agent only starts the command, resizes its terminal and
//! reports its exit code.
//!
//! Threads: one copies input, one output and one error output. The main thread speaks with the
//! agent. A terminal is raw until the command returns, whatever the reason.
//!
//! Where the output cannot be written (a closed pipe, a full disk), the session ends at once: the
//! agent kills a command whose client leaves. A closed pipe gives the exit code of a process that
//! SIGPIPE ended, as with kubectl; any other failed write is an error, even where the command
//! itself succeeded.

use crate::{error::Error, names, output, state, v1::ContainerKind};
use berth_api::{
    client::Client,
    message::{ExecPaths, ExecSpec, Reply, Request, Size},
};
use berth_core::{ids::ContainerName, roots::Roots};
use rustix::{
    stdio,
    termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr},
};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
    time::Duration,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

/// Deadline for the agent to start the command.
const START: Duration = Duration::from_secs(60);

/// Exit code of a process that SIGPIPE ended, as a shell shows it.
const BROKEN_PIPE: u8 = 128 + 13;

/// Longest wait for output after the command's end: processes that it left behind may hold the
/// FIFOs open for ever.
const DRAIN: Duration = Duration::from_secs(2);

/// Options of `exec`.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// Pass standard input to the command.
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Allocate a terminal for the command.
    #[arg(short = 't', long)]
    tty: bool,
    /// Run the command in this container.
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// namespace/pod/container, or less where that is unique.
    name: String,
    /// The command and its arguments, after `--` where it begins with a hyphen.
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<String>,
}

/// Runs the command and returns its exit code.
pub(crate) async fn run(roots: &Roots, args: ExecArgs) -> Result<u8, Error> {
    let mut client = Client::connect(&roots.agent_socket()).await?;
    let pods = client.pods(state::ANSWER).await?;
    let resolved = names::resolve(&args.name, &state::candidates(&pods))?;
    let Some(view) = pods.get(resolved.pod) else { return Err(Error::no_pod(&args.name)) };
    let container = match args.container.or(resolved.container) {
        Some(name) => name.parse().map_err(|e: berth_core::ids::IdError| Error::Usage(e.to_string()))?,
        None => default_container(view)?,
    };
    let terminal = args.tty && isatty(stdio::stdin());
    if args.tty && !terminal {
        output::notice("berth: standard input is not a terminal; the command still gets one");
    }
    // Before the size is read, so that no later change is missed, even one while the command is
    // being started.
    let resized = signal(SignalKind::window_change()).map_err(Error::io("listen for the terminal's size"))?;
    let spec = ExecSpec {
        uid: view.uid.clone(),
        container,
        command: args.command,
        tty: args.tty,
        stdin: args.stdin,
        size: if terminal { size() } else { None },
    };
    session(&mut client, spec, terminal, resized).await
}

/// The first main container, as with `kubectl`; a line on standard error names it where there are
/// several.
fn default_container(view: &berth_api::view::PodView) -> Result<ContainerName, Error> {
    let pod = crate::v1::Pod::of(view);
    let mut mains = pod.containers().filter(|c| c.kind == ContainerKind::Main).map(|c| c.spec.name.clone());
    let Some(first) = mains.next() else {
        return Err(Error::NotFound(format!("pod {} has no container", view.key)));
    };
    if mains.next().is_some() {
        output::notice(&format!("berth: in container {first}"));
    }
    first.parse().map_err(|e: berth_core::ids::IdError| Error::Usage(e.to_string()))
}

async fn session(
    client: &mut Client,
    spec: ExecSpec,
    terminal: bool,
    mut resized: Signal,
) -> Result<u8, Error> {
    let paths = match client.ask(&Request::Exec(spec), START).await? {
        Reply::ExecReady(paths) => paths,
        _ => return Err(berth_api::Error::Unexpected.into()),
    };
    let (mut outputs, mut ended) = open(&paths)?;
    let (input_ended, mut no_more_input) = mpsc::channel::<()>(1);
    let input = paths.stdin.as_deref().map(write_end).transpose()?;
    match client.ask(&Request::ExecGo, START).await? {
        Reply::ExecStarted { .. } => {}
        _ => return Err(berth_api::Error::Unexpected.into()),
    }
    // The guard restores the terminal on every return from here on.
    let raw = terminal.then(Raw::enter).transpose()?;
    if let Some(to) = input {
        std::thread::spawn(move || {
            // A command that no longer reads its input is no failure of the session.
            copy_to(&mut io::stdin().lock(), &mut &to).ok();
            drop(to);
            // The receiver is gone once the session has ended.
            input_ended.blocking_send(()).ok();
        });
    }
    let code = loop {
        tokio::select! {
            reply = client.next() => match reply? {
                Reply::ExecExited { code } => break code,
                _ => continue,
            },
            _ = resized.recv(), if terminal => {
                if let Some(size) = size() {
                    client.send(&Request::Resize(size)).await?;
                }
            }
            Some(()) = no_more_input.recv() => client.send(&Request::CloseStdin).await?,
            Some(copied) = ended.recv(), if outputs > 0 => match copied {
                Ok(()) => outputs = outputs.saturating_sub(1),
                Err(error) => return unwritten(error),
            },
        }
    };
    while outputs > 0 {
        match tokio::time::timeout(DRAIN, ended.recv()).await {
            Ok(Some(Err(error))) => return unwritten(error),
            Ok(Some(Ok(()))) => outputs = outputs.saturating_sub(1),
            // Later output is from processes that the command left behind.
            Ok(None) | Err(_) => break,
        }
    }
    drop(raw);
    Ok(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
}

/// The result of a session whose output could not be written.
fn unwritten(error: io::Error) -> Result<u8, Error> {
    match Error::output(error) {
        Error::Pipe => Ok(BROKEN_PIPE),
        error => Err(error),
    }
}

/// Opens the output FIFOs and starts a copying thread for each. Returns the number of threads and
/// the channel on which each reports its end: an error where it could not write what it had read.
fn open(paths: &ExecPaths) -> Result<(usize, mpsc::Receiver<io::Result<()>>), Error> {
    let both = [(Some(paths.stdout.as_path()), false), (paths.stderr.as_deref(), true)];
    let (report, ended) = mpsc::channel(both.len());
    let mut outputs = 0usize;
    for (path, is_error) in both {
        let Some(path) = path else { continue };
        // The open does not block: the agent holds the other end.
        let mut from = File::open(path).map_err(Error::io(format!("open {}", path.display())))?;
        let report = report.clone();
        outputs = outputs.saturating_add(1);
        std::thread::spawn(move || {
            let copied = match is_error {
                true => copy_to(&mut from, &mut io::stderr()),
                false => copy_to(&mut from, &mut io::stdout()),
            };
            // The receiver is gone where the session failed.
            report.blocking_send(copied).ok();
        });
    }
    Ok((outputs, ended))
}

fn write_end(path: &Path) -> Result<File, Error> {
    OpenOptions::new().write(true).open(path).map_err(Error::io(format!("open {}", path.display())))
}

/// Copies until the source ends or cannot be read any more.
///
/// # Errors
/// A failed write.
fn copy_to(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 32 << 10];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return Ok(()),
        };
        to.write_all(buffer.get(..n).unwrap_or_default()).and_then(|()| to.flush())?;
    }
}

fn size() -> Option<Size> {
    let size = tcgetwinsize(stdio::stdin()).ok()?;
    Some(Size { width: size.ws_col, height: size.ws_row }).filter(|s| s.width > 0 && s.height > 0)
}

/// Guard of a raw terminal: restores its former settings when dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Raw, Error> {
        let failed = |e: rustix::io::Errno| Error::io("set the terminal")(e.into());
        let before = tcgetattr(stdio::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdio::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        tcsetattr(stdio::stdin(), OptionalActions::Now, &self.0).ok();
    }
}
