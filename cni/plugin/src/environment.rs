//! The `CNI_*` environment variables.

use crate::error::Error;
use berth_cni_ipam::Key;
use std::{env, ffi::OsString, path::PathBuf};

/// The parameters of one call, not yet validated.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    pub(crate) command: Option<OsString>,
    pub(crate) container: Option<OsString>,
    pub(crate) netns: Option<OsString>,
    pub(crate) ifname: Option<OsString>,
}

impl Environment {
    pub(crate) fn of_process() -> Environment {
        Environment {
            command: env::var_os("CNI_COMMAND"),
            container: env::var_os("CNI_CONTAINERID"),
            netns: env::var_os("CNI_NETNS"),
            ifname: env::var_os("CNI_IFNAME"),
        }
    }

    pub(crate) fn command(&self) -> Result<&str, Error> {
        text("CNI_COMMAND", &self.command)
    }

    /// `CNI_CONTAINERID` and `CNI_IFNAME`.
    pub(crate) fn key(&self) -> Result<Key, Error> {
        let container = text("CNI_CONTAINERID", &self.container)?;
        let ifname = text("CNI_IFNAME", &self.ifname)?;
        Key::new(container, ifname).map_err(|e| {
            let name = if e.field == "container id" { "CNI_CONTAINERID" } else { "CNI_IFNAME" };
            Error::Environment { name, reason: format!("({:?}) {}", e.text, e.reason) }
        })
    }

    /// `CNI_NETNS`, which only DEL does not need.
    pub(crate) fn netns(&self) -> Result<PathBuf, Error> {
        match &self.netns {
            Some(path) if !path.is_empty() => Ok(PathBuf::from(path)),
            _ => Err(Error::Environment { name: "CNI_NETNS", reason: "is missing".into() }),
        }
    }
}

fn text<'a>(name: &'static str, value: &'a Option<OsString>) -> Result<&'a str, Error> {
    match value.as_deref().map(|v| v.to_str()) {
        Some(Some(text)) if !text.is_empty() => Ok(text),
        Some(None) => Err(Error::Environment { name, reason: "is not UTF-8".into() }),
        _ => Err(Error::Environment { name, reason: "is missing".into() }),
    }
}
