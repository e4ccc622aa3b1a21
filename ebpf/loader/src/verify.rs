//! Programs to the kernel, several at a time: its check of a program takes up to some tenths of a second, on one processor.

use crate::{Error, Result};
use aya::programs::Program;
use berth_core::sync::lock;
use std::{
    collections::BTreeMap,
    num::NonZero,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{
        Mutex,
        mpsc::{Sender, channel},
    },
    thread,
};

/// Most threads: no node needs more for a dozen of programs.
const THREADS: usize = 4;

/// Programs that are still to be loaded, the next one last.
type Queue<'l> = Mutex<Vec<(String, &'l mut Program)>>;

/// Loads programs, and passes each to `done` on the calling thread, in the order of `programs`.
///
/// # Errors
/// The kernel refuses a program, or `done` fails for one. The others may be loaded or not.
pub(crate) fn load_all(
    programs: Vec<(String, &mut Program)>,
    mut done: impl FnMut(&str, BorrowedFd<'_>) -> Result<()>,
) -> Result<()> {
    let names: Vec<String> = programs.iter().map(|(name, _)| name.clone()).collect();
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(THREADS).min(names.len());
    let queue: Queue<'_> = Mutex::new(programs.into_iter().rev().collect());
    thread::scope(|scope| {
        let (loaded, all) = channel();
        for _ in 1..threads {
            let (loaded, queue) = (loaded.clone(), &queue);
            // The thread that is there already does the work of one that cannot be started.
            drop(thread::Builder::new().spawn_scoped(scope, move || while load_next(queue, &loaded) {}));
        }
        let mut early = BTreeMap::new();
        let mut pass_on = || {
            for name in &names {
                let program = loop {
                    if let Some(program) = early.remove(name) {
                        break program;
                    }
                    // This thread loads too, as long as there is something.
                    load_next(&queue, &loaded);
                    let missing = |_| Error::NoProgram { program: name.clone() };
                    let (name, program) = all.recv().map_err(missing)?;
                    early.insert(name, program);
                };
                done(name, program?)?;
            }
            Ok(())
        };
        let passed = pass_on();
        lock(&queue).clear();
        passed
    })
}

type Loaded<'l> = (String, Result<BorrowedFd<'l>>);

/// Loads the next program, if there is one.
fn load_next<'l>(queue: &Queue<'l>, loaded: &Sender<Loaded<'l>>) -> bool {
    let Some((name, program)) = lock(queue).pop() else { return false };
    let result = load_one(&name, program);
    loaded.send((name, result)).is_ok()
}

fn load_one<'l>(name: &str, program: &'l mut Program) -> Result<BorrowedFd<'l>> {
    let refused = |source| Error::Verify { program: name.to_owned(), source: Box::new(source) };
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => return Err(Error::NoProgram { program: name.to_owned() }),
    }
    .map_err(refused)?;
    let program: &'l Program = program;
    Ok(program.fd().map_err(refused)?.as_fd())
}
