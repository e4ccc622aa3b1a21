//! A pod: its identity, and what of its spec is not a container's.

use super::{
    affinity,
    check::{self, choice},
    container::{self, ContainerKind},
    context::{IgnoredValues, PodContext},
    dns, ephemeral,
    field::{FieldError, FieldPath},
    metadata, ports,
    resources::{self, ResourceOwner},
    security, volume,
};
use berth_core::{
    ids::{NodeName, PodKey, PodName, PodUid},
    model::{
        Container, Origin, Os, Pod, PodNamespaces, PodSecurity, ResourceList, Resources, RestartPolicy,
        SYSTEM_CRITICAL_PRIORITY, Toleration, peak,
    },
    time::Wall,
};
use k8s_openapi::api::core::v1 as api;
use std::collections::{BTreeMap, BTreeSet};

/// What a pod has from its source rather than from its object.
pub(crate) struct PodSource<'a> {
    /// The kind of source and the file, if any.
    pub(crate) origin: Origin,
    /// This node.
    pub(crate) node: &'a NodeName,
    /// The creation time; finer than the seconds of `metadata.creationTimestamp`, so that pods of one file
    /// are ordered.
    pub(crate) created: Wall,
    /// Treatment of values that the kubelet ignores.
    pub(crate) ignored: IgnoredValues,
}

/// A pod whose metadata is complete (name, namespace and UID), with the API server's defaults. Returns the
/// errors about ignored values beside it.
pub(crate) fn pod(
    at: &FieldPath<'_>,
    object: &api::Pod,
    source: PodSource<'_>,
) -> Result<(Pod, Vec<FieldError>), FieldError> {
    let spec_at = &at.key("spec");
    let spec = object.spec.as_ref().ok_or_else(|| spec_at.error("is required"))?;
    let restart_policy = restart_policy(spec_at, spec)?;
    refuse_unsupported(spec_at, spec)?;
    let grace_seconds = check::grace(spec.termination_grace_period_seconds.unwrap_or(30));
    let active_deadline_seconds = active_deadline(spec_at, spec)?;
    let namespaces = namespaces(spec_at, spec)?;
    let volumes = volume::volumes(&spec_at.key("volumes"), spec.volumes.as_deref().unwrap_or_default())?;
    let context = PodContext {
        ignored: source.ignored,
        volumes: volumes.iter().map(|v| v.name.clone()).collect(),
        host_network: namespaces.host_network,
        grace_seconds,
    };
    let (mut init_containers, mut containers) = containers(spec_at, spec, &context)?;
    let others: Vec<&Container> = init_containers.iter().chain(&containers).collect();
    let ephemeral_containers = ephemeral::containers(spec_at, spec, &source.origin, &others, &context)?;
    let annotations = object.metadata.annotations.clone().unwrap_or_default();
    app_armor_annotations(at, &annotations, &mut init_containers, &mut containers)?;
    let (uid, key) = identity(at, object)?;
    let pod = Pod {
        uid,
        key,
        labels: object.metadata.labels.clone().unwrap_or_default(),
        annotations,
        created: source.created,
        generation: object.metadata.generation,
        origin: source.origin,
        node: source.node.clone(),
        os: os(spec_at, spec)?,
        node_selector: node_selector(spec_at, spec)?,
        node_affinity: affinity::required(spec_at, spec)?,
        tolerations: tolerations(spec),
        restart_policy,
        grace_seconds,
        active_deadline_seconds,
        resources: pod_resources(spec_at, spec, &init_containers, &containers)?,
        overhead: overhead(spec_at, spec)?,
        init_containers,
        containers,
        ephemeral_containers,
        volumes,
        namespaces,
        dns: dns::dns(spec_at, spec)?,
        security: security(spec_at, spec, namespaces, &context.ignored)?,
        service_account: service_account(spec),
        runtime_class: runtime_class(spec_at, spec)?,
        priority: spec.priority.unwrap_or_else(|| class_priority(spec.priority_class_name.as_deref())),
        priority_class: spec.priority_class_name.clone().filter(|n| !n.is_empty()),
        enable_service_links: spec.enable_service_links.unwrap_or(true),
        readiness_gates: readiness_gates(spec_at, spec)?,
        image_pull_secrets: image_pull_secrets(spec),
        unsupported: None,
        pending_resize: None,
    };
    Ok((pod, context.ignored.into_errors()))
}

fn identity(at: &FieldPath<'_>, object: &api::Pod) -> Result<(PodUid, PodKey), FieldError> {
    let at = &at.key("metadata");
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let namespace = metadata::namespace(at, &object.metadata)?;
    let name = check::id(&at.key("name"), PodName::new(text(&object.metadata.name)))?;
    let uid = check::id(&at.key("uid"), PodUid::new(text(&object.metadata.uid)))?;
    Ok((uid, PodKey { namespace, name }))
}

fn restart_policy(at: &FieldPath<'_>, spec: &api::PodSpec) -> Result<RestartPolicy, FieldError> {
    choice(
        &at.key("restartPolicy"),
        spec.restart_policy.as_deref(),
        &[
            ("Always", RestartPolicy::Always),
            ("OnFailure", RestartPolicy::OnFailure),
            ("Never", RestartPolicy::Never),
        ],
    )
}

fn active_deadline(at: &FieldPath<'_>, spec: &api::PodSpec) -> Result<Option<u32>, FieldError> {
    let at = &at.key("activeDeadlineSeconds");
    match spec.active_deadline_seconds {
        None => Ok(None),
        Some(0) => Err(at.error("must be at least 1")),
        Some(seconds) => check::amount(at, seconds).map(Some),
    }
}

/// The tolerations of effect NoExecute and of every effect. The operators Lt and Gt, which an API server knows behind a
/// feature gate, tolerate nothing here.
fn tolerations(spec: &api::PodSpec) -> Vec<Toleration> {
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let one = |given: &api::Toleration| {
        if filled(&given.effect).is_some_and(|effect| effect != "NoExecute") {
            return None;
        }
        let value = match filled(&given.operator).as_deref() {
            Some("Exists") => None,
            None | Some("Equal") => Some(given.value.clone().unwrap_or_default()),
            Some(_) => return None,
        };
        Some(Toleration { key: filled(&given.key), value })
    };
    spec.tolerations.iter().flatten().filter_map(one).collect()
}

fn node_selector(at: &FieldPath<'_>, spec: &api::PodSpec) -> Result<BTreeMap<String, String>, FieldError> {
    let selector = spec.node_selector.clone().unwrap_or_default();
    check::labels(&at.key("nodeSelector"), &selector)?;
    Ok(selector)
}

fn overhead(at: &FieldPath<'_>, spec: &api::PodSpec) -> Result<Option<ResourceList>, FieldError> {
    let list = |o| resources::list(&at.key("overhead"), Some(o), ResourceOwner::Container);
    spec.overhead.as_ref().map(list).transpose()
}

fn security(
    at: &FieldPath<'_>,
    spec: &api::PodSpec,
    namespaces: PodNamespaces,
    ignored: &IgnoredValues,
) -> Result<PodSecurity, FieldError> {
    let Some(given) = &spec.security_context else { return Ok(PodSecurity::default()) };
    security::pod(&at.key("securityContext"), given, namespaces, ignored)
}

/// `serviceAccountName`, or the deprecated `serviceAccount`.
fn service_account(spec: &api::PodSpec) -> String {
    let mut names = [&spec.service_account_name, &spec.service_account].into_iter().flatten();
    names.find(|n| !n.is_empty()).cloned().unwrap_or_else(|| "default".to_owned())
}

fn runtime_class(at: &FieldPath<'_>, spec: &api::PodSpec) -> Result<Option<String>, FieldError> {
    let Some(name) = spec.runtime_class_name.as_deref().filter(|n| !n.is_empty()) else { return Ok(None) };
    check::object_name(&at.key("runtimeClassName"), name)?;
    Ok(Some(name.to_owned()))
}

/// Refuses fields that the node cannot honour yet: running the pod without them would break its promise.
fn refuse_unsupported(at: &FieldPath<'_>, spec: &api::PodSpec) -> Result<(), FieldError> {
    if spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty()) {
        return Err(at.key("resourceClaims").error("resource claims are not supported yet"));
    }
    if spec.host_users == Some(false) {
        return Err(at.key("hostUsers").error("user namespaces are not supported yet"));
    }
    if spec.hostname_override.as_deref().is_some_and(|h| !h.is_empty()) {
        return Err(at.key("hostnameOverride").error("is not supported yet"));
    }
    Ok(())
}

/// The system that the pod is for. One for another than the node's is accepted here, and rejected at
/// admission.
fn os(at: &FieldPath<'_>, spec: &api::PodSpec) -> Result<Os, FieldError> {
    let name = spec.os.as_ref().map(|os| os.name.as_str());
    choice(&at.key("os").key("name"), name, &[("linux", Os::Linux), ("windows", Os::Windows)])
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
    context: &PodContext,
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
            let container = container::container(at, c, role, context)?;
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
    ports::host_ports(&at.key("containers"), &main)?;
    Ok((init, main))
}

/// Profiles from the annotations that preceded `appArmorProfile`; the field wins.
fn app_armor_annotations(
    at: &FieldPath<'_>,
    annotations: &BTreeMap<String, String>,
    init: &mut [Container],
    main: &mut [Container],
) -> Result<(), FieldError> {
    let at = &at.key("metadata");
    let at = &at.key("annotations");
    for container in init.iter_mut().chain(main) {
        let key = format!("container.apparmor.security.beta.kubernetes.io/{}", container.name);
        if let (Some(value), None) = (annotations.get(&key), &container.security.app_armor) {
            container.security.app_armor = Some(security::app_armor_annotation(&at.key(&key), value)?);
        }
    }
    Ok(())
}

/// The priority of the two classes that every cluster has. PriorityClass objects are not read, so any other
/// class is 0.
fn class_priority(class: Option<&str>) -> i32 {
    match class {
        Some("system-node-critical") => SYSTEM_CRITICAL_PRIORITY + 1000,
        Some("system-cluster-critical") => SYSTEM_CRITICAL_PRIORITY,
        _ => 0,
    }
}

/// `spec.resources`. Where the pod has limits, a request that the pod leaves open is the most that its
/// containers request at one time, or the pod's limit (`pkg/apis/core/v1/defaults.go` defaultPodRequests).
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

/// The names of `imagePullSecrets`. The API server allows an empty name, which names nothing.
fn image_pull_secrets(spec: &api::PodSpec) -> Vec<String> {
    let names = spec.image_pull_secrets.iter().flatten().map(|secret| secret.name.clone());
    names.filter(|name| !name.is_empty()).collect()
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
