//! Loading of maps and programs. The work runs in a child process because of the memory that it needs.

use crate::{
    Error, Pins, Result, Sizes, digest, ensure_bpffs,
    object::Contents,
    pins::{failed, list, lock, pin_over, remove},
    records, sizes,
    sys::{MapInfo, info, obj_get},
    verify::load_all,
};
use aya::{Ebpf, EbpfLoader, programs::Program};
use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    time::Duration,
};

/// Longest wait for another load of the same pins.
const OTHERS: Duration = Duration::from_secs(60);

/// Progress of a load. A test stops the load at each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The pinned maps fit the wanted ones; nothing was changed yet.
    Checked,
    /// The directories exist, and the old programs no longer count as complete.
    Begun,
    /// All maps are pinned.
    Maps,
    /// One more program is loaded and pinned.
    Program,
    /// All programs of socket hooks are pinned. The packet programs follow, whose check takes most of a load's time.
    Sockets,
    /// Programs that the object no longer has are removed.
    Swept,
    /// The iterators over socket storage are pinned, or the reason for their absence is.
    Iterators,
    /// The digest is written.
    Done,
}

/// Creates or adopts the maps, loads and pins the programs of `object`, and pins the iterators that
/// [`crate::SocketRecords`] opens. Attaches nothing. Waits for another load of the same pins. A kernel
/// without such iterators is no error.
///
/// # Errors
/// A pinned map differs from the wanted one ([`Error::MapMismatch`]; nothing is changed), or the kernel
/// refuses.
pub fn load(pins: &Pins, object: &[u8], at: impl FnMut(Step)) -> Result<()> {
    load_maps(pins, object, &[], at)
}

/// As [`load`]; new maps get these sizes.
///
/// # Errors
/// As for [`load`].
pub fn load_sized(pins: &Pins, object: &[u8], sizes: &Sizes) -> Result<()> {
    load_maps(pins, object, &sizes.other_than_default(), |_| {})
}

/// As [`load`]; the maps of these names get this number of entries.
pub(crate) fn load_maps(
    pins: &Pins,
    object: &[u8],
    entries: &[(String, u32)],
    mut at: impl FnMut(Step),
) -> Result<()> {
    let mut contents = Contents::parse(object)?;
    sizes::resize(&mut contents, entries);
    ensure_bpffs(pins)?;
    check_maps(pins, &contents)?;
    at(Step::Checked);
    // A reset removed the pin directory in between: nothing is wanted any more.
    let gone = || failed("lock", pins.root())(io::ErrorKind::NotFound.into());
    let _one_at_a_time = lock(pins.root(), OTHERS)?.ok_or_else(gone)?;
    pins.make()?;
    // Another loader may have created maps before this one held the lock.
    check_maps(pins, &contents)?;
    pins.forget_digest()?;
    at(Step::Begun);
    let mut loader = EbpfLoader::new();
    // No program refers to the kernel's types, some 20 MB.
    loader.btf(None);
    for map in &contents.maps {
        loader.map_pin_path(&map.name, pins.maps().join(&map.name));
        loader.map_max_entries(&map.name, map.max_entries);
    }
    let mut loaded = loader.load(object).map_err(Box::new)?;
    at(Step::Maps);
    let [sockets, packets] = programs(&mut loaded, &contents.programs)?;
    let pin = |name: &str, program: BorrowedFd<'_>| pin_over(program, &pins.programs().join(name));
    load_all(sockets, |name, program| {
        pin(name, program)?;
        at(Step::Program);
        Ok(())
    })?;
    at(Step::Sockets);
    load_all(packets, |name, program| {
        pin(name, program)?;
        at(Step::Program);
        Ok(())
    })?;
    for (name, path) in list(&pins.programs())? {
        if !contents.programs.contains(&name) {
            remove(&path)?;
        }
    }
    at(Step::Swept);
    // The object's parts are needed no more, and the next step reads the kernel's types, some 20 MB.
    drop((loaded, loader));
    records::pin_iterators(pins)?;
    at(Step::Iterators);
    pins.write_digest(&digest(object))?;
    at(Step::Done);
    Ok(())
}

type Programs<'l> = Vec<(String, &'l mut Program)>;

/// The programs of these names: those of socket hooks, and those for packets.
fn programs<'l>(loaded: &'l mut Ebpf, names: &[String]) -> Result<[Programs<'l>; 2]> {
    let mut all: BTreeMap<String, &mut Program> =
        loaded.programs_mut().map(|(name, program)| (name.to_owned(), program)).collect();
    let (mut sockets, mut packets) = (Vec::new(), Vec::new());
    for name in names {
        let program = all.remove(name).ok_or_else(|| Error::NoProgram { program: name.clone() })?;
        let is_hook = matches!(program, Program::CgroupSockAddr(_));
        if is_hook { &mut sockets } else { &mut packets }.push((name.clone(), program));
    }
    Ok([sockets, packets])
}

/// Whether all maps and programs of this object are pinned already.
pub(crate) fn is_loaded(pins: &Pins, object: &[u8]) -> Result<bool> {
    if pins.loaded_digest()?.is_none_or(|loaded| loaded != digest(object)) {
        return Ok(false);
    }
    let contents = Contents::parse(object)?;
    let maps = contents.maps.iter().map(|map| pins.maps().join(&map.name));
    let programs = contents.programs.iter().map(|name| pins.programs().join(name));
    check_maps(pins, &contents)?;
    for path in maps.chain(programs) {
        if !path.try_exists().map_err(failed("examine", &path))? {
            return Ok(false);
        }
    }
    records::are_pinned(pins)
}

/// Checks kind, key size, value size and flags of the pinned maps against `object`. A missing map is no
/// error, and neither is another number of entries: a map keeps the size that it was created with.
///
/// # Errors
/// A map differs ([`Error::MapMismatch`]), or the kernel refuses.
pub fn check_pinned_maps(pins: &Pins, object: &[u8]) -> Result<()> {
    check_maps(pins, &Contents::parse(object)?)
}

/// The names of the programs in `object`, which are the names of their pins.
///
/// # Errors
/// The bytes are no eBPF object.
pub fn program_names(object: &[u8]) -> Result<Vec<String>> {
    Ok(Contents::parse(object)?.programs)
}

fn check_maps(pins: &Pins, contents: &Contents) -> Result<()> {
    for map in &contents.maps {
        let path = pins.maps().join(&map.name);
        let failed = |source| Error::OpenPin { path: path.clone(), source };
        match obj_get(&path, true) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            pinned => {
                let found: MapInfo = info(pinned.map_err(failed)?.as_fd()).map_err(failed)?;
                map.check(&found)?;
            }
        }
    }
    Ok(())
}
