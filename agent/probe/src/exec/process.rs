//! Process attributes of a command in a container, from the container's OCI spec.

use super::Unsupported;
use berth_api::exec::{ExecProcess, Rlimit};
use berth_core::model::{CAPABILITIES, CapabilitySets};
use serde_json::Value;

/// Names of the resources by number, from `asm-generic/resource.h`.
const RLIMITS: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

type Outcome<T> = Result<T, Unsupported>;

fn unsupported<T>(why: impl Into<String>) -> Outcome<T> {
    Err(Unsupported(why.into()))
}

/// Reads the process attributes of a container from its OCI spec: its `process` and `linux.seccomp`.
///
/// # Errors
/// An attribute cannot be applied exactly.
pub fn process_of_spec(spec: &Value) -> Result<ExecProcess, Unsupported> {
    let mut process = process_of_oci(spec.get("process").unwrap_or(&Value::Null))?;
    process.seccomp = spec.pointer("/linux/seccomp").filter(|v| !is_empty(v)).cloned();
    Ok(process)
}

/// Reads the `process` of a container's OCI spec, without `linux.seccomp`.
fn process_of_oci(process: &Value) -> Result<ExecProcess, Unsupported> {
    let Some(fields) = process.as_object() else { return unsupported("process is not an object") };
    for (name, value) in fields {
        match name.as_str() {
            "user" | "env" | "cwd" | "capabilities" | "noNewPrivileges" | "rlimits" | "oomScoreAdj" => {}
            // These belong to the container's own command, or have no meaning without a
            // terminal.
            "args" | "terminal" | "consoleSize" => {}
            _ if is_empty(value) => {}
            other => return unsupported(format!("process.{other} is set")),
        }
    }
    let user = process.get("user").unwrap_or(&Value::Null);
    let cwd = text(process, "cwd")?.unwrap_or("/").to_owned();
    let env = strings(process, "env")?;
    if let Some(bad) = env.iter().find(|e| !e.contains('=') || e.contains('\0')) {
        return unsupported(format!(
            "env entry {:?} is not NAME=value",
            bad.chars().take(40).collect::<String>()
        ));
    }
    if !cwd.starts_with('/') || cwd.contains('\0') {
        return unsupported("cwd is not an absolute path");
    }
    Ok(ExecProcess {
        uid: number(user, "uid")?.unwrap_or(0),
        gid: number(user, "gid")?.unwrap_or(0),
        groups: array(user, "additionalGids")?
            .iter()
            .map(|v| as_u32(v, "additionalGids"))
            .collect::<Outcome<_>>()?,
        umask: number(user, "umask")?.unwrap_or(0o022),
        env,
        cwd,
        capabilities: capabilities(process.get("capabilities").unwrap_or(&Value::Null))?,
        no_new_privs: boolean(process, "noNewPrivileges")?,
        rlimits: array(process, "rlimits")?.iter().map(rlimit).collect::<Outcome<_>>()?,
        oom_score_adj: oom_score_adj(process)?,
        seccomp: None,
    })
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

fn array<'v>(of: &'v Value, name: &str) -> Outcome<&'v [Value]> {
    match of.get(name) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => unsupported(format!("{name} is not a list")),
    }
}

fn strings(of: &Value, name: &str) -> Outcome<Vec<String>> {
    let item =
        |v: &Value| v.as_str().map(str::to_owned).ok_or_else(|| Unsupported(format!("{name} holds no text")));
    array(of, name)?.iter().map(item).collect()
}

fn text<'v>(of: &'v Value, name: &str) -> Outcome<Option<&'v str>> {
    match of.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s)),
        Some(_) => unsupported(format!("{name} is not a text")),
    }
}

fn boolean(of: &Value, name: &str) -> Outcome<bool> {
    match of.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(b)) => Ok(*b),
        Some(_) => unsupported(format!("{name} is neither true nor false")),
    }
}

fn as_u32(value: &Value, name: &str) -> Outcome<u32> {
    value
        .as_u64()
        .and_then(|n| u32::try_from(n).ok())
        .ok_or_else(|| Unsupported(format!("{name} is not a number from 0 to 4294967295")))
}

fn number(of: &Value, name: &str) -> Outcome<Option<u32>> {
    of.get(name).filter(|v| !v.is_null()).map(|v| as_u32(v, name)).transpose()
}

fn oom_score_adj(process: &Value) -> Outcome<Option<i32>> {
    let Some(value) = process.get("oomScoreAdj").filter(|v| !v.is_null()) else { return Ok(None) };
    match value.as_i64().and_then(|n| i32::try_from(n).ok()) {
        Some(n) if (-1000..=1000).contains(&n) => Ok(Some(n)),
        _ => unsupported("oomScoreAdj is not a number from -1000 to 1000"),
    }
}

fn capabilities(sets: &Value) -> Outcome<CapabilitySets> {
    let set = |name: &str| {
        strings(sets, name)?.iter().try_fold(0u64, |bits, cap| {
            let known = cap.strip_prefix("CAP_").and_then(|c| CAPABILITIES.iter().position(|k| *k == c));
            known.map(|n| bits | 1 << n).ok_or_else(|| Unsupported(format!("capability {cap} is not known")))
        })
    };
    Ok(CapabilitySets {
        bounding: set("bounding")?,
        effective: set("effective")?,
        permitted: set("permitted")?,
        inheritable: set("inheritable")?,
        ambient: set("ambient")?,
    })
}

fn rlimit(value: &Value) -> Outcome<Rlimit> {
    let kind = text(value, "type")?.unwrap_or_default();
    let limit = |name: &str| {
        value.get(name).and_then(Value::as_u64).ok_or_else(|| Unsupported(format!("{kind}: no {name} limit")))
    };
    let known = kind.strip_prefix("RLIMIT_").and_then(|k| RLIMITS.iter().position(|r| *r == k));
    match known.and_then(|n| u32::try_from(n).ok()) {
        Some(resource) => Ok(Rlimit { resource, soft: limit("soft")?, hard: limit("hard")? }),
        None => unsupported(format!("rlimit {kind:?} is not known")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn full() -> Value {
        json!({
            "terminal": true,
            "user": {"uid": 1000, "gid": 2000, "additionalGids": [10, 2000], "umask": 7},
            "args": ["/app"],
            "env": ["PATH=/bin", "EMPTY="],
            "cwd": "/srv",
            "capabilities": {
                "bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}],
            "noNewPrivileges": true,
            "oomScoreAdj": -997,
            "apparmorProfile": ""
        })
    }

    #[test]
    fn every_process_attribute_of_the_spec_is_applied() {
        let p = process_of_oci(&full()).unwrap();
        assert_eq!((p.uid, p.gid, p.groups.as_slice(), p.umask), (1000, 2000, [10, 2000].as_slice(), 7));
        assert_eq!(
            (p.cwd.as_str(), p.env.len(), p.no_new_privs, p.oom_score_adj),
            ("/srv", 2, true, Some(-997))
        );
        assert_eq!(
            p.capabilities,
            CapabilitySets {
                bounding: 0b10_0001,
                effective: 0b10_0000,
                permitted: 0b10_0000,
                inheritable: 0,
                ambient: 0
            }
        );
        assert_eq!(p.rlimits, [Rlimit { resource: 7, soft: 1024, hard: 4096 }]);
        let round: ExecProcess = serde_json::from_str(&serde_json::to_string(&p).unwrap()).unwrap();
        assert_eq!(round, p);
    }

    #[test]
    fn attributes_that_cannot_be_applied_are_unsupported() {
        for (pointer, value) in [
            ("apparmorProfile", json!("cri-containerd.apparmor.d")),
            ("selinuxLabel", json!("system_u:system_r:container_t:s0")),
            ("ioPriority", json!({"class": "IOPRIO_CLASS_RT", "priority": 1})),
            ("scheduler", json!({"policy": "SCHED_FIFO"})),
            ("execCPUAffinity", json!({"initial": "0"})),
            ("somethingNew", json!(1)),
            ("capabilities", json!({"bounding": ["CAP_NOT_YET"]})),
            ("rlimits", json!([{"type": "RLIMIT_NOT_YET", "soft": 1, "hard": 1}])),
            ("rlimits", json!([{"type": "RLIMIT_CPU", "soft": -1, "hard": 1}])),
            ("env", json!(["no equals sign"])),
            ("cwd", json!("relative")),
            ("user", json!({"uid": -1})),
            ("oomScoreAdj", json!(2000)),
            ("noNewPrivileges", json!("yes")),
        ] {
            let mut process = full();
            process[pointer] = value.clone();
            assert!(process_of_oci(&process).is_err(), "{pointer}: {value}");
        }
        assert!(process_of_oci(&json!([])).is_err());
    }

    #[test]
    fn a_seccomp_filter_of_the_spec_is_recorded() {
        let spec = json!({"process": full(), "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}}});
        assert!(process_of_spec(&spec).unwrap().seccomp.is_some());
        assert_eq!(process_of_spec(&json!({"process": full()})).unwrap().seccomp, None);
    }
}
