//! Environment variables of a container and where their values come from.

use super::{
    check,
    field::{FieldError, FieldPath},
    projected::{self, FieldPlace},
    resources,
};
use berth_core::model::{EnvFrom, EnvFromSource, EnvValue, EnvVar, KeyRef};
use k8s_openapi::api::core::v1 as api;

/// `env` of a container.
pub(super) fn env(at: &FieldPath<'_>, list: &[api::EnvVar]) -> Result<Vec<EnvVar>, FieldError> {
    let mut found = Vec::new();
    for (index, e) in list.iter().enumerate() {
        let at = &at.index(index);
        check::env_name(&at.key("name"), &e.name)?;
        let text = e.value.clone().unwrap_or_default();
        if text.contains('\0') {
            return Err(at.key("value").error("must not contain a NUL character"));
        }
        let value = match &e.value_from {
            None => EnvValue::Text(text),
            Some(_) if !text.is_empty() => {
                return Err(at.key("valueFrom").error("cannot be set together with value"));
            }
            Some(source) => env_source(&at.key("valueFrom"), source)?,
        };
        found.push(EnvVar { name: e.name.clone(), value });
    }
    Ok(found)
}

fn env_source(at: &FieldPath<'_>, s: &api::EnvVarSource) -> Result<EnvValue, FieldError> {
    let mut found = Vec::new();
    if let Some(f) = &s.field_ref {
        found.push(EnvValue::Field(projected::field_path(&at.key("fieldRef"), f, FieldPlace::Env)?));
    }
    if let Some(r) = &s.resource_field_ref {
        found.push(EnvValue::Resource(resources::field_ref(&at.key("resourceFieldRef"), r, false)?));
    }
    if let Some(c) = &s.config_map_key_ref {
        found.push(EnvValue::ConfigMapKey(key_ref(&at.key("configMapKeyRef"), &c.name, &c.key, c.optional)?));
    }
    if let Some(c) = &s.secret_key_ref {
        found.push(EnvValue::SecretKey(key_ref(&at.key("secretKeyRef"), &c.name, &c.key, c.optional)?));
    }
    if s.file_key_ref.is_some() {
        return Err(at.key("fileKeyRef").error("variables from files are not supported yet"));
    }
    let of = "fieldRef, resourceFieldRef, configMapKeyRef or secretKeyRef";
    match (found.pop(), found.is_empty()) {
        (Some(value), true) => Ok(value),
        (None, _) => Err(at.error(format!("must say one of {of}"))),
        (Some(_), false) => Err(at.error(format!("must say only one of {of}"))),
    }
}

fn key_ref(at: &FieldPath<'_>, name: &str, key: &str, optional: Option<bool>) -> Result<KeyRef, FieldError> {
    check::object_name(&at.key("name"), name)?;
    check::data_key(&at.key("key"), key)?;
    Ok(KeyRef { name: name.to_owned(), key: key.to_owned(), optional: optional.unwrap_or(false) })
}

/// `envFrom` of a container.
pub(super) fn env_from(at: &FieldPath<'_>, list: &[api::EnvFromSource]) -> Result<Vec<EnvFrom>, FieldError> {
    let mut found = Vec::new();
    for (index, e) in list.iter().enumerate() {
        let at = &at.index(index);
        let prefix = e.prefix.clone().unwrap_or_default();
        if !prefix.is_empty() {
            check::env_name(&at.key("prefix"), &prefix)?;
        }
        let (source, optional) = match (&e.config_map_ref, &e.secret_ref) {
            (Some(c), None) => {
                let at = &at.key("configMapRef");
                check::object_name(&at.key("name"), &c.name)?;
                (EnvFromSource::ConfigMap(c.name.clone()), c.optional)
            }
            (None, Some(s)) => {
                let at = &at.key("secretRef");
                check::object_name(&at.key("name"), &s.name)?;
                (EnvFromSource::Secret(s.name.clone()), s.optional)
            }
            (None, None) => return Err(at.error("must say one of configMapRef or secretRef")),
            (Some(_), Some(_)) => return Err(at.error("must say only one of configMapRef or secretRef")),
        };
        found.push(EnvFrom { prefix, source, optional: optional.unwrap_or(false) });
    }
    Ok(found)
}
