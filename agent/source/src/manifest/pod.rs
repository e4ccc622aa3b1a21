//! The pod itself: metadata, and what of its spec is not a container's.

use super::{
    ManifestContext, Mode, PodEntry, affinity, check,
    container::{self, ContainerKind, PodContext},
    field::{self, FieldError, FieldPath, shorten},
    identity,
    resources::{self, ResourceOwner},
    security::{self, choice},
    static_pod, volume,
};
use berth_core::{
    ids::{Namespace, NodeName, PodKey, PodName, PodUid},
    model::{
        Container, DnsPolicy, Origin, Pod, PodDns, PodNamespaces, PodSecurity, ResourceList, Resources,
        RestartPolicy, SYSTEM_CRITICAL_PRIORITY, peak,
    },
    time::Wall,
};
use k8s_openapi::{api::core::v1 as api, apimachinery::pkg::apis::meta::v1 as meta, jiff::Timestamp};
use serde_json::Value;
use std::{cell::RefCell, collections::BTreeSet, path::Path};

/// A Pod object as the model has it, and the object itself with its metadata filled.
pub(super) fn entry(
    at: &FieldPath<'_>,
    value: &Value,
    ctx: &ManifestContext,
    file: &Path,
    document: usize,
    warnings: &mut Vec<FieldError>,
) -> Result<PodEntry, FieldError> {
    let (mut object, unknown) = field::typed::<api::Pod>(at, value)?;
    match (ctx.mode, unknown.into_iter().next()) {
        (Mode::Manifests, Some(fault)) => return Err(fault),
        (Mode::StaticPods, Some(fault)) => warnings.push(fault),
        (_, None) => {}
    }
    // What somebody else observed is no desired state.
    object.status = None;
    object.metadata.managed_fields = None;
    let spec_at = &at.key("spec");
    let mut spec = object.spec.take().ok_or_else(|| spec_at.error("is required"))?;
    let created_given = object.metadata.creation_timestamp.is_some();
    let identity = metadata(at, &mut object.metadata, &mut spec, ctx, file)?;

    let restart_policy = choice(
        &spec_at.key("restartPolicy"),
        spec.restart_policy.as_deref(),
        &[
            ("Always", RestartPolicy::Always),
            ("OnFailure", RestartPolicy::OnFailure),
            ("Never", RestartPolicy::Never),
        ],
    )?;
    refuse_later(spec_at, &spec)?;
    let grace_seconds = check::grace(spec.termination_grace_period_seconds.unwrap_or(30));
    let deadline_at = &spec_at.key("activeDeadlineSeconds");
    let active_deadline_seconds = match spec.active_deadline_seconds {
        None => None,
        Some(0) => return Err(deadline_at.error("must be at least 1")),
        Some(v) => Some(check::amount(deadline_at, v)?),
    };
    let namespaces = namespaces(spec_at, &spec)?;
    let volumes = volume::volumes(&spec_at.key("volumes"), spec.volumes.as_deref().unwrap_or_default())?;
    let facts = PodContext {
        mode: ctx.mode,
        warnings: RefCell::default(),
        volumes: volumes.iter().map(|v| v.name.clone()).collect(),
        host_network: namespaces.host_network,
        grace_seconds,
    };
    let (mut init_containers, mut containers) = containers(spec_at, &spec, &facts)?;
    warnings.append(&mut facts.warnings.into_inner());
    let annotations = object.metadata.annotations.clone().unwrap_or_default();
    let annotations_at = &at.key("metadata");
    app_armor(&annotations_at.key("annotations"), &annotations, &mut init_containers, &mut containers)?;
    let pod = Pod {
        uid: identity.uid,
        key: identity.key,
        labels: object.metadata.labels.clone().unwrap_or_default(),
        annotations,
        created: identity.created,
        origin: match ctx.mode {
            Mode::Manifests => Origin::Manifest(file.to_owned()),
            Mode::StaticPods => Origin::StaticFile(file.to_owned()),
        },
        node: ctx.node.clone(),
        node_selector: {
            let selector = spec.node_selector.clone().unwrap_or_default();
            check::labels(&spec_at.key("nodeSelector"), &selector)?;
            selector
        },
        node_affinity: affinity::required(spec_at, &spec)?,
        restart_policy,
        grace_seconds,
        active_deadline_seconds,
        resources: pod_resources(spec_at, &spec, &init_containers, &containers)?,
        overhead: match &spec.overhead {
            None => None,
            Some(o) => Some(resources::list(&spec_at.key("overhead"), Some(o), ResourceOwner::Container)?),
        },
        init_containers,
        containers,
        volumes,
        namespaces,
        dns: dns(spec_at, &spec)?,
        security: match &spec.security_context {
            Some(s) => security::pod(
                &spec_at.key("securityContext"),
                s,
                namespaces.host_network,
                namespaces.host_ipc,
            )?,
            None => PodSecurity::default(),
        },
        service_account: [&spec.service_account_name, &spec.service_account]
            .into_iter()
            .flatten()
            .find(|n| !n.is_empty())
            .cloned()
            .unwrap_or_else(|| "default".to_owned()),
        runtime_class: match spec.runtime_class_name.as_deref().filter(|n| !n.is_empty()) {
            Some(name) => {
                check::object_name(&spec_at.key("runtimeClassName"), name)?;
                Some(name.to_owned())
            }
            None => None,
        },
        priority: spec.priority.unwrap_or_else(|| class_priority(spec.priority_class_name.as_deref())),
        priority_class: spec.priority_class_name.clone().filter(|n| !n.is_empty()),
        enable_service_links: spec.enable_service_links.unwrap_or(true),
        readiness_gates: readiness_gates(spec_at, &spec)?,
    };
    object.spec = Some(spec);
    let raw = serde_json::to_value(&object).map_err(|e| at.error(e.to_string()))?;
    Ok(PodEntry { pod, raw, document, created_given })
}

struct PodIdentity {
    uid: PodUid,
    key: PodKey,
    created: Wall,
}

/// Bytes of a name in a directory (`NAME_MAX`).
const MAX_FILE_NAME: usize = 255;

/// Checks the metadata and fills what it leaves open, in the object too.
fn metadata(
    at: &FieldPath<'_>,
    meta: &mut meta::ObjectMeta,
    spec: &mut api::PodSpec,
    ctx: &ManifestContext,
    file: &Path,
) -> Result<PodIdentity, FieldError> {
    let meta_at = &at.key("metadata");
    let spec_at = &at.key("spec");
    if meta.deletion_timestamp.is_some() {
        return Err(meta_at
            .key("deletionTimestamp")
            .error("must not be set: take the manifest away instead"));
    }
    check::labels(&meta_at.key("labels"), meta.labels.get_or_insert_default())?;
    check::annotations(&meta_at.key("annotations"), meta.annotations.get_or_insert_default())?;
    let name = meta.name.clone().unwrap_or_default();
    let namespace_at = &meta_at.key("namespace");
    let namespace = meta.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".to_owned());
    let namespace = check::id(namespace_at, Namespace::new(namespace))?;
    let name_at = &meta_at.key("name");
    // The given name is checked first, so that the message shows what was written.
    let mut name = check::id(name_at, PodName::new(name))?;
    let given_uid = meta.uid.clone().filter(|u| !u.is_empty());
    let json = |v: serde_json::Result<Value>| v.map_err(|e| at.error(e.to_string()));
    let uid = match (given_uid, ctx.mode) {
        (Some(uid), _) => uid,
        (None, Mode::Manifests) => {
            identity::of_manifest(&namespace, &name, &json(serde_json::to_value(&*spec))?)
        }
        (None, Mode::StaticPods) => {
            let pod = api::Pod { metadata: meta.clone(), spec: Some(spec.clone()), status: None };
            identity::of_static(&json(serde_json::to_value(pod))?, ctx.node.as_str(), file)
        }
    };
    let uid = check::id(&meta_at.key("uid"), PodUid::new(uid))?;
    if ctx.mode == Mode::StaticPods {
        static_pod::no_references(spec_at, spec)?;
        name = check::id(name_at, PodName::new(static_pod::name(name.as_str(), &ctx.node)))?;
        static_pod::tolerate_no_execute(spec);
        let annotations = meta.annotations.get_or_insert_default();
        annotations.insert("kubernetes.io/config.hash".to_owned(), uid.to_string());
        annotations.insert("kubernetes.io/config.source".to_owned(), "file".to_owned());
    } else {
        other_node(spec_at, spec, &ctx.node)?;
    }
    // The name of the directory of its output; nothing of the pod could be started without.
    let output =
        [namespace.as_str().len(), name.as_str().len(), uid.as_str().len()].iter().sum::<usize>() + 2;
    if output > MAX_FILE_NAME {
        let most = MAX_FILE_NAME - 2 - namespace.as_str().len() - uid.as_str().len();
        return Err(name_at.error(format!(
            "is too long by {}: the output of a pod lies in a directory <namespace>_<name>_<uid>, a name of at most \
             {MAX_FILE_NAME} bytes, so that the name may have {most} here",
            output - MAX_FILE_NAME
        )));
    }
    if let Some(gate) = spec.scheduling_gates.as_ref().and_then(|g| g.first()) {
        let reason = format!("gate {:?} cannot hold a pod that is bound to a node", shorten(&gate.name));
        return Err(spec_at.key("schedulingGates").error(reason));
    }
    spec.node_name = Some(ctx.node.to_string());
    let created = match &meta.creation_timestamp {
        Some(time) => Wall(i64::try_from(time.0.as_nanosecond()).unwrap_or(i64::MAX)),
        None => ctx.now,
    };
    if meta.creation_timestamp.is_none() {
        meta.creation_timestamp = Timestamp::from_second(created.seconds()).ok().map(meta::Time);
    }
    meta.uid = Some(uid.to_string());
    meta.namespace = Some(namespace.to_string());
    meta.name = Some(name.to_string());
    Ok(PodIdentity { uid, key: PodKey { namespace, name }, created })
}

fn other_node(at: &FieldPath<'_>, spec: &api::PodSpec, node: &NodeName) -> Result<(), FieldError> {
    match spec.node_name.as_deref() {
        Some(name) if !name.is_empty() && name != node.as_str() => Err(at
            .key("nodeName")
            .error(format!("{:?} is another node than this one ({node})", shorten(name)))),
        _ => Ok(()),
    }
}

/// What the node cannot honour yet is refused, never passed over.
fn refuse_later(at: &FieldPath<'_>, spec: &api::PodSpec) -> Result<(), FieldError> {
    if spec.ephemeral_containers.as_ref().is_some_and(|c| !c.is_empty()) {
        return Err(at.key("ephemeralContainers").error("cannot be part of a new pod"));
    }
    if spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty()) {
        return Err(at.key("resourceClaims").error("resource claims are not supported yet"));
    }
    if spec.host_users == Some(false) {
        return Err(at.key("hostUsers").error("user namespaces are not supported yet"));
    }
    if spec.hostname_override.as_deref().is_some_and(|h| !h.is_empty()) {
        return Err(at.key("hostnameOverride").error("is not supported yet"));
    }
    if let Some(os) = spec.os.as_ref().filter(|os| os.name != "linux") {
        let at = at.key("os");
        return Err(at.key("name").error(format!("{:?} cannot run on a Linux node", shorten(&os.name))));
    }
    Ok(())
}

fn namespaces(at: &FieldPath<'_>, spec: &api::PodSpec) -> Result<PodNamespaces, FieldError> {
    let found = PodNamespaces {
        host_network: spec.host_network.unwrap_or(false),
        host_pid: spec.host_pid.unwrap_or(false),
        host_ipc: spec.host_ipc.unwrap_or(false),
        share_pid: spec.share_process_namespace.unwrap_or(false),
    };
    if found.host_pid && found.share_pid {
        return Err(at.key("shareProcessNamespace").error("cannot be set together with hostPID"));
    }
    Ok(found)
}

fn containers(
    at: &FieldPath<'_>,
    spec: &api::PodSpec,
    facts: &PodContext,
) -> Result<(Vec<Container>, Vec<Container>), FieldError> {
    if spec.containers.is_empty() {
        return Err(at.key("containers").error("must hold at least one container"));
    }
    let mut names = BTreeSet::new();
    let mut read = |field: &str, list: &[api::Container], role| {
        let at = &at.key(field);
        let mut found = Vec::with_capacity(list.len());
        for (index, c) in list.iter().enumerate() {
            let at = &at.index(index);
            let container = container::container(at, c, role, facts)?;
            if !names.insert(container.name.clone()) {
                return Err(at.key("name").error(format!("{} is there twice", container.name)));
            }
            found.push(container);
        }
        Ok(found)
    };
    let init =
        read("initContainers", spec.init_containers.as_deref().unwrap_or_default(), ContainerKind::Init)?;
    let main = read("containers", &spec.containers, ContainerKind::Main)?;
    container::host_ports(&at.key("containers"), &main)?;
    Ok((init, main))
}

fn app_armor(
    at: &FieldPath<'_>,
    annotations: &std::collections::BTreeMap<String, String>,
    init: &mut [Container],
    main: &mut [Container],
) -> Result<(), FieldError> {
    for container in init.iter_mut().chain(main) {
        let key = format!("container.apparmor.security.beta.kubernetes.io/{}", container.name);
        if let (Some(value), None) = (annotations.get(&key), &container.security.app_armor) {
            container.security.app_armor = Some(security::app_armor_annotation(&at.key(&key), value)?);
        }
    }
    Ok(())
}

/// The priority of a class that every cluster has; there are no objects of others here.
fn class_priority(class: Option<&str>) -> i32 {
    match class {
        Some("system-node-critical") => SYSTEM_CRITICAL_PRIORITY + 1000,
        Some("system-cluster-critical") => SYSTEM_CRITICAL_PRIORITY,
        _ => 0,
    }
}

/// `spec.resources`. Where the pod has limits, a request that it leaves open is what its containers ask for at their
/// worst moment, or its limit (`pkg/apis/core/v1/defaults.go` defaultPodRequests).
fn pod_resources(
    at: &FieldPath<'_>,
    spec: &api::PodSpec,
    init_containers: &[Container],
    containers: &[Container],
) -> Result<Option<Resources>, FieldError> {
    let Some(given) = &spec.resources else { return Ok(None) };
    let at = &at.key("resources");
    let mut found = resources::resources(at, Some(given), ResourceOwner::Pod)?;
    let explicit = |name: &str| given.requests.as_ref().is_some_and(|r| r.contains_key(name));
    for (name, millis) in [("cpu", true), ("memory", false)] {
        let asked = |list: &ResourceList| {
            list.get(name).map_or(0_i64, |q| if millis { q.millis() } else { q.units() })
        };
        let total = peak(init_containers, containers, |c| asked(&c.resources.requests));
        let all = || init_containers.iter().chain(containers);
        if !found.limits.is_empty()
            && !explicit(name)
            && all().any(|c| c.resources.requests.contains_key(name))
        {
            let text = if millis { format!("{total}m") } else { total.to_string() };
            found.requests.insert(name.to_owned(), check::quantity(&at.key("requests"), &text)?);
        }
        let requests_at = &at.key("requests");
        if explicit(name) && total > asked(&found.requests) {
            return Err(requests_at
                .key(name)
                .error("must not be below what the containers request together"));
        }
        let limits_at = &at.key("limits");
        if found.limits.contains_key(name) && asked(&found.requests) > asked(&found.limits) {
            return Err(limits_at.key(name).error("must not be below what the containers request together"));
        }
    }
    Ok(Some(found))
}

fn dns(at: &FieldPath<'_>, spec: &api::PodSpec) -> Result<PodDns, FieldError> {
    let policy = choice(
        &at.key("dnsPolicy"),
        spec.dns_policy.as_deref(),
        &[
            ("ClusterFirst", DnsPolicy::ClusterFirst),
            ("ClusterFirstWithHostNet", DnsPolicy::ClusterFirstWithHostNet),
            ("Default", DnsPolicy::Default),
            ("None", DnsPolicy::None),
        ],
    )?;
    let config = spec.dns_config.clone().unwrap_or_default();
    let config_at = &at.key("dnsConfig");
    let mut found = PodDns { policy, ..PodDns::default() };
    let servers_at = &config_at.key("nameservers");
    for (index, server) in config.nameservers.iter().flatten().enumerate() {
        found.nameservers.push(check::address(&servers_at.index(index), server)?);
    }
    if found.nameservers.len() > 3 {
        return Err(servers_at.error("must not hold more than 3"));
    }
    if policy == DnsPolicy::None && found.nameservers.is_empty() {
        return Err(servers_at.error("must hold at least one with dnsPolicy None"));
    }
    found.searches = config.searches.clone().unwrap_or_default();
    let searches_at = &config_at.key("searches");
    if found.searches.len() > 32
        || found.searches.iter().map(|s| s.len().saturating_add(1)).sum::<usize>() > 2049
    {
        return Err(searches_at.error("must not hold more than 32 names or 2048 characters"));
    }
    for (index, search) in found.searches.iter().enumerate() {
        // The API allows a trailing dot, the root alone, and underscores within.
        let name = search.strip_suffix('.').unwrap_or(search).replace('_', "-");
        let good = search == "." || name.split('.').all(|p| PodName::new(p.trim_matches('-')).is_ok());
        if !good || name.len() > 253 {
            return Err(searches_at.index(index).error(format!("{:?} is no domain name", shorten(search))));
        }
    }
    for (index, option) in config.options.iter().flatten().enumerate() {
        let name = option.name.clone().unwrap_or_default();
        let value = option.value.clone();
        let options_at = &config_at.key("options");
        if name.is_empty() {
            return Err(options_at.index(index).key("name").error("is required"));
        }
        if format!("{name}{}", value.as_deref().unwrap_or_default()).chars().any(char::is_whitespace) {
            return Err(options_at.index(index).error("must not contain blanks or line ends"));
        }
        found.options.push((name, value));
    }
    let label = |field: &str, text: &Option<String>| match text.as_deref().filter(|t| !t.is_empty()) {
        Some(text) => check::id(&at.key(field), Namespace::new(text))
            .map_err(|f| FieldError { reason: f.reason.replace("namespace ", ""), ..f })
            .map(|label| Some(label.to_string())),
        None => Ok(None),
    };
    found.hostname = label("hostname", &spec.hostname)?;
    found.subdomain = label("subdomain", &spec.subdomain)?;
    found.hostname_as_fqdn = spec.set_hostname_as_fqdn.unwrap_or(false);
    let aliases_at = &at.key("hostAliases");
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let at = &aliases_at.index(index);
        let names = alias.hostnames.clone().unwrap_or_default();
        for (number, name) in names.iter().enumerate() {
            let at = &at.key("hostnames");
            check::object_name(&at.index(number), name)
                .map_err(|f| FieldError { reason: f.reason.replace("object name", "host name"), ..f })?;
        }
        found.host_aliases.push((check::address(&at.key("ip"), &alias.ip)?, names));
    }
    Ok(found)
}

fn readiness_gates(at: &FieldPath<'_>, spec: &api::PodSpec) -> Result<Vec<String>, FieldError> {
    let at = &at.key("readinessGates");
    let mut found = Vec::new();
    for (index, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        check::qualified_name(&at.index(index).key("conditionType"), &gate.condition_type)?;
        found.push(gate.condition_type.clone());
    }
    Ok(found)
}
