//! The commands of the CNI specification over a list of plugins.

use crate::{
    Attachment, Conflist, Error, PluginConfig,
    attachments::Record,
    exec::{self, Call},
};
use serde_json::{Map, Value, json};
use std::{path::Path, time::Duration};

/// Runner of plugins.
#[derive(Debug, Clone)]
pub(crate) struct Runner {
    /// The only directory of plugins.
    pub(crate) bin_dir: std::path::PathBuf,
    /// Deadline of one call.
    pub(crate) timeout: Duration,
}

impl Runner {
    /// ADD along the chain. Each plugin receives the result of the one before.
    pub(crate) async fn add(&self, list: &Conflist, record: &Record) -> Result<Attachment, Error> {
        let mut last: Option<Attachment> = None;
        for plugin in &list.plugins {
            let previous = last.as_ref().map(|a| &a.result);
            let netns = Some(record.netns.as_path());
            let output = self.sandbox_call("ADD", list, plugin, record, netns, previous).await?;
            last = Some(Attachment::parse(&plugin.kind, &output)?);
        }
        match last {
            Some(attachment) if !attachment.ips.is_empty() => Ok(attachment),
            _ => Err(Error::NoAddress { network: list.name.clone(), sandbox: record.sandbox.clone() }),
        }
    }

    /// DEL along the chain, backwards. Stops at the first failure, because plugins rely on those
    /// after them.
    pub(crate) async fn del(
        &self,
        list: &Conflist,
        record: &Record,
        netns: Option<&Path>,
    ) -> Result<(), Error> {
        let previous = record.result.as_ref().filter(|_| list.speaks("0.4.0"));
        for plugin in list.plugins.iter().rev() {
            self.sandbox_call("DEL", list, plugin, record, netns, previous).await?;
        }
        Ok(())
    }

    /// CHECK along the chain. Does nothing if the list forbids it or has a version without CHECK.
    pub(crate) async fn check(&self, list: &Conflist, record: &Record) -> Result<(), Error> {
        if list.disable_check || !list.speaks("0.4.0") {
            return Ok(());
        }
        for plugin in &list.plugins {
            let netns = Some(record.netns.as_path());
            self.sandbox_call("CHECK", list, plugin, record, netns, record.result.as_ref()).await?;
        }
        Ok(())
    }

    /// STATUS of each plugin, if the list's version has STATUS.
    pub(crate) async fn status(&self, list: &Conflist) -> Result<(), Error> {
        for plugin in &list.plugins {
            let path = self.bin_dir.join(&plugin.kind);
            if !path.is_file() {
                return Err(Error::NoPlugin { plugin: plugin.kind.clone(), dir: self.bin_dir.clone() });
            }
            if list.speaks("1.1.0") {
                self.network_call("STATUS", list, plugin, None).await?;
            }
        }
        Ok(())
    }

    /// GC of each plugin. Every plugin is called, and all failures are returned.
    pub(crate) async fn gc(&self, list: &Conflist, valid: &[(String, String)]) -> Vec<Error> {
        if list.disable_gc || !list.speaks("1.1.0") {
            return Vec::new();
        }
        let valid: Vec<_> =
            valid.iter().map(|(id, ifname)| json!({"containerID": id, "ifname": ifname})).collect();
        let mut errors = Vec::new();
        for plugin in &list.plugins {
            let answer = self.network_call("GC", list, plugin, Some(Value::Array(valid.clone()))).await;
            errors.extend(answer.err());
        }
        errors
    }

    async fn sandbox_call(
        &self,
        verb: &'static str,
        list: &Conflist,
        plugin: &PluginConfig,
        record: &Record,
        netns: Option<&Path>,
        previous: Option<&Value>,
    ) -> Result<Vec<u8>, Error> {
        let mut config = request(list, plugin);
        let wanted: Map<_, _> = record
            .capabilities
            .iter()
            .filter(|(name, _)| plugin.wants(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !wanted.is_empty() {
            config.insert("runtimeConfig".into(), Value::Object(wanted));
        }
        if let Some(previous) = previous {
            config.insert("prevResult".into(), previous.clone());
        }
        let netns = netns.map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let environment = vec![
            ("CNI_CONTAINERID", record.sandbox.clone()),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", record.ifname.clone()),
            ("CNI_ARGS", record.args.clone()),
        ];
        self.run(verb, plugin, environment, config).await
    }

    /// A command without a sandbox. Plugins that do not know it count as successful.
    async fn network_call(
        &self,
        verb: &'static str,
        list: &Conflist,
        plugin: &PluginConfig,
        valid: Option<Value>,
    ) -> Result<(), Error> {
        let mut config = request(list, plugin);
        if let Some(valid) = valid {
            config.insert("cni.dev/valid-attachments".into(), valid);
        }
        match self.run(verb, plugin, Vec::new(), config).await {
            Err(e) if e.is_unknown_verb() => Ok(()),
            other => other.map(drop),
        }
    }

    async fn run(
        &self,
        verb: &'static str,
        plugin: &PluginConfig,
        environment: Vec<(&'static str, String)>,
        config: Map<String, Value>,
    ) -> Result<Vec<u8>, Error> {
        let call = Call { plugin: &plugin.kind, verb, environment, timeout: self.timeout };
        exec::run(&self.bin_dir, &call, Value::Object(config).to_string().as_bytes()).await
    }
}

/// The plugin's object as it is sent. Keys that are reserved for the runtime are replaced.
fn request(list: &Conflist, plugin: &PluginConfig) -> Map<String, Value> {
    let mut config = plugin.raw.clone();
    let reserved = ["capabilities", "runtimeConfig", "prevResult"];
    config.retain(|key, _| !reserved.contains(&key.as_str()) && !key.starts_with("cni.dev/"));
    config.insert("cniVersion".into(), list.version.into());
    config.insert("name".into(), list.name.clone().into());
    config
}
