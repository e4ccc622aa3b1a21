//! A container's environment variables.
//!
//! Service variables are weaker than `envFrom`, which is weaker than `env`; a later entry of the same name wins.
//! `$(NAME)` stands for variables that were defined before (services and `envFrom` included).

mod services;

pub use services::service_env;

use crate::{
    PodFacts,
    fields::{self, FieldError},
};
use berth_core::{
    error::Chain,
    ids::Namespace,
    model::{Container, EnvFromSource, EnvValue, KeyRef, KeyedData, ObjectKind, Objects, Pod},
    value::{Value, Why},
};
use std::sync::Arc;

/// An error of a container's environment, reported as `CreateContainerConfigError`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// A ConfigMap or Secret that is not optional does not exist (yet).
    #[error("{kind} {name:?} not found")]
    MissingObject {
        /// The kind of the object.
        kind: ObjectKind,
        /// The object's name in the pod's namespace.
        name: String,
    },
    /// A ConfigMap or Secret that may exist is unknown. The caller waits for such objects, so that users meet this error
    /// only where the API server refuses the object to the node.
    #[error("{kind} {name:?} is {why}")]
    UnknownObject {
        /// The kind of the object.
        kind: ObjectKind,
        /// The object's name in the pod's namespace.
        name: String,
        /// Why it is unknown.
        why: Why,
    },
    /// The object exists but lacks the key.
    #[error("couldn't find key {key} in {} {namespace}/{name}", kind_name(*kind))]
    MissingKey {
        /// The kind of the object.
        kind: ObjectKind,
        /// The pod's namespace.
        namespace: Namespace,
        /// The object's name.
        name: String,
        /// The key.
        key: String,
    },
    /// A `fieldRef` or `resourceFieldRef` has no value.
    #[error("environment variable {name:?} has no value")]
    Field {
        /// The variable.
        name: String,
        /// Why the field has no value.
        #[source]
        source: FieldError,
    },
    /// A variable that cannot be part of a process's environment.
    #[error("environment variable {name:?} {reason}")]
    Invalid {
        /// The variable.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl EnvError {
    /// The error and its cause as one line, for people.
    pub fn message(&self) -> String {
        Chain(self).to_string()
    }
}

fn kind_name(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::ConfigMap => "ConfigMap",
        ObjectKind::Secret => "Secret",
        ObjectKind::ServiceAccount => "ServiceAccount",
        ObjectKind::PersistentVolumeClaim => "PersistentVolumeClaim",
        ObjectKind::PersistentVolume => "PersistentVolume",
        ObjectKind::VolumeAttachment => "VolumeAttachment",
        ObjectKind::CsiDriver => "CSIDriver",
    }
}

/// The variables so far, in order of definition, each name once.
#[derive(Default)]
struct Variables(Vec<(String, String)>);

impl Variables {
    fn set(&mut self, name: String, value: String) -> Result<(), EnvError> {
        let reason = if name.is_empty() {
            Some("has no name")
        } else if name.contains(['=', '\0']) {
            Some("may not have '=' or NUL in its name")
        } else if value.contains('\0') {
            Some("may not have NUL in its value")
        } else {
            None
        };
        if let Some(reason) = reason {
            return Err(EnvError::Invalid { name, reason });
        }
        self.0.retain(|(n, _)| *n != name);
        self.0.push((name, value));
        Ok(())
    }
}

/// The environment of `container`, without the variables of its image. `services` are the Service variables of the pod's
/// namespace. Order: Service variables, `envFrom`, `env`, each name once at its last definition.
pub fn resolve(
    pod: &Pod,
    container: &Container,
    facts: &PodFacts,
    objects: &Objects,
    services: &[(String, String)],
) -> Result<Vec<(String, String)>, EnvError> {
    let mut vars = Variables::default();
    for (name, value) in services {
        vars.set(name.clone(), value.clone())?;
    }
    for from in &container.env_from {
        let (kind, name) = match &from.source {
            EnvFromSource::ConfigMap(name) => (ObjectKind::ConfigMap, name),
            EnvFromSource::Secret(name) => (ObjectKind::Secret, name),
        };
        let Some(object) = find(objects, pod, kind, name, from.optional)? else { continue };
        for (key, bytes) in &object.data {
            let name = format!("{}{key}", from.prefix);
            let value = text(&name, bytes)?;
            vars.set(name, value)?;
        }
    }
    for var in &container.env {
        let value = match &var.value {
            EnvValue::Text(text) => Some(expand(text, &vars.0)),
            EnvValue::ConfigMapKey(key) => key_value(objects, pod, ObjectKind::ConfigMap, key, &var.name)?,
            EnvValue::SecretKey(key) => key_value(objects, pod, ObjectKind::Secret, key, &var.name)?,
            EnvValue::Field(path) => Some(fields::field(pod, facts, path).map_err(in_variable(&var.name))?),
            EnvValue::Resource(field) => {
                Some(fields::resource(pod, Some(container), facts, field).map_err(in_variable(&var.name))?)
            }
        };
        if let Some(value) = value {
            vars.set(var.name.clone(), value)?;
        }
    }
    Ok(vars.0)
}

fn in_variable(name: &str) -> impl FnOnce(FieldError) -> EnvError {
    let name = name.to_owned();
    move |source| EnvError::Field { name, source }
}

fn find<'a>(
    objects: &'a Objects,
    pod: &Pod,
    kind: ObjectKind,
    name: &str,
    optional: bool,
) -> Result<Option<&'a Arc<KeyedData>>, EnvError> {
    match objects.get(kind, &pod.key.namespace, name) {
        Value::Known(object) => Ok(Some(object)),
        Value::Absent if optional => Ok(None),
        Value::Absent => Err(EnvError::MissingObject { kind, name: name.to_owned() }),
        Value::Unknown(why) => Err(EnvError::UnknownObject { kind, name: name.to_owned(), why }),
    }
}

fn text(variable: &str, bytes: &[u8]) -> Result<String, EnvError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(EnvError::Invalid { name: variable.to_owned(), reason: "is not UTF-8 text" }),
    }
}

fn key_value(
    objects: &Objects,
    pod: &Pod,
    kind: ObjectKind,
    key: &KeyRef,
    variable: &str,
) -> Result<Option<String>, EnvError> {
    let Some(object) = find(objects, pod, kind, &key.name, key.optional)? else { return Ok(None) };
    let value = match object.data.get(&key.key) {
        Some(bytes) => Some(text(variable, bytes)?),
        None => None,
    };
    if value.is_none() && !key.optional {
        return Err(EnvError::MissingKey {
            kind,
            namespace: pod.key.namespace.clone(),
            name: key.name.clone(),
            key: key.key.clone(),
        });
    }
    Ok(value)
}

/// Replaces `$(NAME)` by the variable's value and `$$` by `$`. Unknown names and unfinished references stay as written.
/// Of several variables of one name in `env`, the last counts.
pub fn expand(text: &str, env: &[(String, String)]) -> String {
    berth_core::model::expand(text, |name| {
        env.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    })
}

#[cfg(test)]
mod tests;
