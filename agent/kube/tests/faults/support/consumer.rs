//! A consumer of widgets.

use super::server::ApiServer;
use berth_kube::{
    pool::Pool,
    reflector::{Bad, Change, Effect, Health, Kind, ListWatch, Meta, Options, Store, follow},
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
};

/// Widgets with this query.
pub(crate) struct Widgets(pub(crate) String);

#[derive(Deserialize)]
struct Widget {
    metadata: Meta,
    number: u64,
}

impl Kind for Widgets {
    type Item = u64;

    fn path(&self) -> &str {
        "/api/v1/widgets"
    }

    fn query(&self) -> &str {
        &self.0
    }

    fn read(&self, json: &[u8]) -> Result<(Meta, u64), Bad> {
        let widget: Widget = serde_json::from_slice(json).map_err(|e| Bad(e.to_string()))?;
        Ok((widget.metadata, widget.number))
    }
}

/// A consumer that keeps a set.
pub(crate) struct Consumer {
    store: Arc<Mutex<Store<u64>>>,
    /// Names of objects that were removed.
    removed: Arc<Mutex<Vec<String>>>,
    lists: Arc<Mutex<u64>>,
    pub(crate) health: watch::Receiver<Health>,
    task: AbortHandle,
}

impl Consumer {
    pub(crate) fn start(pool: &Pool, query: &str) -> Consumer {
        Consumer::with(pool, query, ListWatch::new(Options::set()))
    }

    pub(crate) fn with(pool: &Pool, query: &str, machine: ListWatch) -> Consumer {
        let (changes, mut incoming) = mpsc::channel(64);
        let (health, healths) = watch::channel(Health::unknown());
        let (store, removed, lists) = (Arc::default(), Arc::default(), Arc::default());
        let consumer = Consumer {
            store: Arc::clone(&store),
            removed: Arc::clone(&removed),
            lists: Arc::clone(&lists),
            health: healths,
            task: tokio::spawn(follow(Widgets(query.to_owned()), pool.clone(), machine, changes, health))
                .abort_handle(),
        };
        tokio::spawn(async move {
            while let Some(change) = incoming.recv().await {
                if change == Change::Begin {
                    *lists.lock().unwrap() += 1;
                }
                for effect in store.lock().unwrap().apply(change) {
                    if let Effect::Removed(meta, _) = effect {
                        removed.lock().unwrap().push(meta.name.to_string());
                    }
                }
            }
        });
        consumer
    }

    pub(crate) fn listed(&self) -> bool {
        self.store.lock().unwrap().listed()
    }

    pub(crate) fn seen(&self) -> BTreeMap<String, u64> {
        self.store.lock().unwrap().iter().map(|(meta, number)| (meta.name.to_string(), *number)).collect()
    }

    /// Whether the consumer's set equals the server's.
    pub(crate) fn is_equal(&self, server: &ApiServer) -> bool {
        self.listed() && self.seen() == server.all()
    }

    pub(crate) fn removed(&self) -> Vec<String> {
        self.removed.lock().unwrap().clone()
    }

    /// Number of lists that have begun.
    pub(crate) fn lists(&self) -> u64 {
        *self.lists.lock().unwrap()
    }

    pub(crate) fn is_ok(&self) -> bool {
        matches!(*self.health.borrow(), Health::Ok { .. })
    }

    pub(crate) fn why(&self) -> String {
        match &*self.health.borrow() {
            Health::Ok { .. } => String::new(),
            Health::Behind { why, .. } => why.clone(),
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
