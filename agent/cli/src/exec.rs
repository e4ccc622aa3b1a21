//! `berth exec`: a command in a container. Its input and output go through FIFOs that the agent makes and this
//! process opens; the agent only starts it, resizes its terminal and tells its exit code.
//!
//! Threads: one copies input, one each copies output and error; they only move bytes. The main thread speaks with the
//! agent. With a terminal, it is raw until the end, whatever the end is.
//!
//! Where the output cannot be written (its reader has gone, the disk is full), the session ends at once: the agent kills
//! a command whose client leaves. A reader that has gone gives the exit code of a process that SIGPIPE ended, as with
//! kubectl; anything else is an error, also where the command itself has ended well.

use crate::{error::Error, names, out, state};
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

/// How long the agent may take to start the command.
const START: Duration = Duration::from_secs(60);

/// The exit code of a process that SIGPIPE ended, as a shell shows it.
const BROKEN_PIPE: u8 = 128 + 13;

/// How long output may go on after the command's end: what it left behind may hold it open for ever.
const DRAIN: Duration = Duration::from_secs(2);

/// Options.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// Give the command this standard input.
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the command a terminal.
    #[arg(short = 't', long)]
    tty: bool,
    /// The container.
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// namespace/pod/container, or less where that is enough.
    name: String,
    /// The command and its arguments; `--` before it where it begins with a hyphen.
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<String>,
}

/// Runs the command and gives its exit code.
pub(crate) async fn run(roots: &Roots, args: ExecArgs) -> Result<u8, Error> {
    let mut client = Client::connect(&roots.agent_socket()).await?;
    let pods = client.pods(state::ANSWER).await?;
    let meant = names::resolve(&args.name, &state::candidates(&pods))?;
    let Some(view) = pods.get(meant.pod) else {
        return Err(Error::NotFound(format!("no pod is named {:?}", args.name)));
    };
    let container = match args.container.or(meant.container) {
        Some(name) => name.parse().map_err(|e: berth_core::ids::IdError| Error::Usage(e.to_string()))?,
        None => the_container(view)?,
    };
    let terminal = args.tty && isatty(stdio::stdin());
    if args.tty && !terminal {
        out::tell("berth: standard input is no terminal; the command gets one all the same");
    }
    // Before the size is read: a change from then on is told, also one that comes while the command is being started.
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

/// The first of the main containers, as `kubectl` takes it, told where there are more.
fn the_container(view: &berth_api::view::PodView) -> Result<ContainerName, Error> {
    let pod = crate::v1::Pod::of(view);
    let mut mains = pod.containers().filter(|c| !c.init).map(|c| c.spec.name.clone());
    let Some(first) = mains.next() else {
        return Err(Error::NotFound(format!("pod {} has no container", view.key)));
    };
    if mains.next().is_some() {
        out::tell(&format!("berth: in container {first}"));
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
    // From here on the terminal is raw; the guard puts it back on every way out.
    let raw = terminal.then(Raw::enter).transpose()?;
    if let Some(to) = input {
        std::thread::spawn(move || {
            // A command that does not read its input any more is no failure of the session.
            copy_to(&mut io::stdin().lock(), &mut &to).ok();
            drop(to);
            // The session may be over.
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
            // What comes later than that is of processes that the command left behind.
            Ok(None) | Err(_) => break,
        }
    }
    drop(raw);
    Ok(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
}

/// The end of a session whose output could not be written.
fn unwritten(error: io::Error) -> Result<u8, Error> {
    match Error::output(error) {
        Error::Pipe => Ok(BROKEN_PIPE),
        error => Err(error),
    }
}

/// Opens the output FIFOs and starts to copy. Returns how many there are, and where each tells its end, with the error
/// where something read could not be written.
fn open(paths: &ExecPaths) -> Result<(usize, mpsc::Receiver<io::Result<()>>), Error> {
    let both = [(Some(paths.stdout.as_path()), false), (paths.stderr.as_deref(), true)];
    let (tell, ended) = mpsc::channel(both.len());
    let mut outputs = 0usize;
    for (path, is_error) in both {
        let Some(path) = path else { continue };
        // Does not block: the agent holds the other end.
        let mut from = File::open(path).map_err(Error::io(format!("open {}", path.display())))?;
        let tell = tell.clone();
        outputs = outputs.saturating_add(1);
        std::thread::spawn(move || {
            let copied = match is_error {
                true => copy_to(&mut from, &mut io::stderr()),
                false => copy_to(&mut from, &mut io::stdout()),
            };
            // Nobody waits where the session failed.
            tell.blocking_send(copied).ok();
        });
    }
    Ok((outputs, ended))
}

fn write_end(path: &Path) -> Result<File, Error> {
    OpenOptions::new().write(true).open(path).map_err(Error::io(format!("open {}", path.display())))
}

/// Copies until the source ends, or cannot be read any more.
///
/// # Errors
/// What was read could not be written.
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

/// The terminal as it was before.
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
        // A terminal that is gone needs nothing.
        tcsetattr(stdio::stdin(), OptionalActions::Now, &self.0).ok();
    }
}
