//! Setting up a pod's volumes and keeping their files current.

use crate::{
    Error, PodFacts, Volumes, atomic, csi::LISTING_WAIT, inputs::VolumeInputs, kinds::plugin_of,
    layout::NODE_DIR, metrics, os,
};
use berth_core::{
    ids::VolumeName,
    model::{Objects, Pod, Volume},
    volume::ResolveError,
};
use std::time::Instant;

/// What all volumes of a pod are set up from.
#[derive(Clone, Copy)]
struct PodInputs<'a> {
    pod: &'a Pod,
    facts: &'a PodFacts,
    objects: &'a Objects,
}

impl Volumes {
    /// Sets up all volumes that a container of the pod mounts. A volume that is set up stays as it is, but for files from
    /// objects, which are brought up to date; the call may be repeated at any time.
    ///
    /// All volumes are tried; the error is the first one's.
    pub fn mount(&self, pod: &Pod, facts: &PodFacts, objects: &Objects) -> Result<(), Error> {
        let dir = self.pod_dir(&pod.uid);
        os::make_dirs(&dir, NODE_DIR).map_err(Error::io("create", dir))?;
        let inputs = PodInputs { pod, facts, objects };
        let mut failed = Failed::default();
        let mut waiting = Vec::new();
        for volume in pod.mounted_volumes() {
            waiting.extend(self.try_mount(inputs, volume, &mut failed).map(|name| (volume, name)));
        }
        // Nothing else of the pod waits for the Node's status.
        let end = Instant::now() + LISTING_WAIT;
        let names = |waiting: &[(&Volume, String)]| -> Vec<String> {
            waiting.iter().map(|(_, name)| name.clone()).collect()
        };
        while !waiting.is_empty() && self.csi.wait_listed(&names(&waiting), end) {
            let again = std::mem::take(&mut waiting).into_iter();
            waiting = again
                .filter_map(|(volume, _)| Some((volume, self.try_mount(inputs, volume, &mut failed)?)))
                .collect();
        }
        for (volume, name) in waiting {
            failed.add(&volume.name, Error::NotListed { volume: name });
        }
        failed.into_result()
    }

    /// Sets a volume up. Returns its name in the Node's status, where that has to list it first.
    fn try_mount(&self, inputs: PodInputs<'_>, volume: &Volume, failed: &mut Failed) -> Option<String> {
        let PodInputs { pod, facts, objects } = inputs;
        let begun = Instant::now();
        let mounted = self.mount_one(pod, volume, facts, objects);
        let waits = mounted.as_ref().err().and_then(Error::not_listed).map(str::to_owned);
        if waits.is_some() {
            return waits;
        }
        metrics::count_mount(&volume.source, begun.elapsed(), mounted.is_err());
        if let Err(e) = mounted {
            let e = e.in_volume(&volume.name);
            // Only the caller knows whether the error is new: this line may come with every retry.
            tracing::debug!(pod = %pod.key, volume = %volume.name, error = e.message(), "cannot set up the volume");
            failed.add(&volume.name, e);
        }
        None
    }

    /// Brings files that come from ConfigMaps, Secrets and facts about the pod up to date, in volumes that are set up.
    /// Returns whether anything changed. Mounts of sub-paths keep the files of their container's start.
    ///
    /// All volumes are tried; the error is the first one's. A volume whose object is gone or unknown keeps its last
    /// content; an unknown object is no error.
    pub fn refresh(&self, pod: &Pod, facts: &PodFacts, objects: &Objects) -> Result<bool, Error> {
        let mut changed = false;
        let mut failed = None;
        for volume in pod.mounted_volumes() {
            let Ok(plugin) = plugin_of(self, pod, volume, objects, &facts.node) else { continue };
            let root = plugin.root(&self.pod_dir(&pod.uid), &volume.name);
            if let Err(e) = plugin.keep(&root, &VolumeInputs { pod, volume, facts, objects }) {
                failed.get_or_insert(e.in_volume(&volume.name).in_persistent(plugin.persistent()));
            }
            let files = match plugin.files(&VolumeInputs { pod, volume, facts, objects }) {
                // The root of another kind is not touched: its server may hang.
                Ok(None) => continue,
                // The files stay until the object is known.
                Err(Error::UnknownObject { .. }) => continue,
                Ok(Some(files)) => Ok(files),
                Err(e) => Err(e),
            };
            if !atomic::is_set_up(&root) {
                continue;
            }
            match files.and_then(|files| atomic::write_files(&root, &files, pod.security.fs_group)) {
                Ok(false) => {}
                Ok(true) => {
                    changed = true;
                    tracing::info!(pod = %pod.key, volume = %volume.name, "volume updated");
                }
                Err(e) => {
                    failed.get_or_insert(e.in_volume(&volume.name));
                }
            }
        }
        failed.map_or(Ok(changed), Err)
    }

    fn mount_one(
        &self,
        pod: &Pod,
        volume: &Volume,
        facts: &PodFacts,
        objects: &Objects,
    ) -> Result<(), Error> {
        let plugin = plugin_of(self, pod, volume, objects, &facts.node)?;
        let root = plugin.root(&self.pod_dir(&pod.uid), &volume.name);
        let set_up = plugin.set_up(&root, &VolumeInputs { pod, volume, facts, objects });
        set_up.map_err(|e| e.in_volume(&volume.name).in_persistent(plugin.persistent()))
    }
}

/// The volumes of a pod that were not set up.
#[derive(Debug, Default)]
struct Failed {
    first: Option<Error>,
    unmounted: Vec<VolumeName>,
    unattached: Vec<VolumeName>,
    unprocessed: Vec<VolumeName>,
}

impl Failed {
    fn add(&mut self, volume: &VolumeName, error: Error) {
        self.unmounted.push(volume.clone());
        if let Error::Claim { error, .. } = &error {
            match **error {
                ResolveError::NotAttached { .. } => self.unattached.push(volume.clone()),
                ResolveError::Claim { .. } => self.unprocessed.push(volume.clone()),
                ResolveError::OtherNode { .. } | ResolveError::Unknown { .. } => {}
            }
        }
        if error.not_listed().is_some() {
            self.unattached.push(volume.clone());
        }
        self.first.get_or_insert(error);
    }

    fn into_result(self) -> Result<(), Error> {
        let Failed { first, unmounted, unattached, unprocessed: failed } = self;
        match first {
            None => Ok(()),
            Some(Error::Claim { volume, error }) if !matches!(*error, ResolveError::OtherNode { .. }) => {
                let error = Box::new(Error::Claim { volume, error });
                Err(Error::Unmounted { unmounted, unattached, failed, error })
            }
            Some(error) if error.not_listed().is_some() => {
                Err(Error::Unmounted { unmounted, unattached, failed, error: Box::new(error) })
            }
            Some(other) => Err(other),
        }
    }
}

#[cfg(test)]
mod tests;
