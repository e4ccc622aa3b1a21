//! Resolution of names on the command line to pods and containers.
//!
//! Forms: `namespace/pod/container`, `namespace/pod`, `pod/container` and `pod`. A pod without a
//! namespace is looked up in `default` first, then in all namespaces. A name that equals none may
//! be a unique prefix of a name, of a container's id or of a pod's UID.

use crate::error::Error;
use berth_core::ids::{PodKey, PodUid};

/// A pod that a name can resolve to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) key: PodKey,
    pub(crate) uid: PodUid,
    /// The containers' names, each with the ids of its last attempts.
    pub(crate) containers: Vec<(String, Vec<String>)>,
}

/// The pod, and maybe its container, that a name resolved to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// Index of the pod among the candidates.
    pub(crate) pod: usize,
    /// The container, where the name has one.
    pub(crate) container: Option<String>,
}

/// Length of the shortest accepted prefix of an id or UID.
const SHORTEST: usize = 4;

/// Resolves a name.
///
/// # Errors
/// The name is malformed, fits no candidate, or fits several.
pub(crate) fn resolve(name: &str, among: &[Candidate]) -> Result<Resolved, Error> {
    let name = name.strip_prefix("containerd://").unwrap_or(name);
    let parts: Vec<&str> = name.split('/').collect();
    let found = match parts.as_slice() {
        [] | [""] => return Err(Error::Usage("the name is empty".to_owned())),
        [pod] => by_pod(None, pod, None, among)?.or(by_id(pod, name, among)?),
        [a, b] => by_pod(Some(a), b, None, among)?.or(by_pod(None, a, Some(b), among)?),
        [ns, pod, container] => by_pod(Some(ns), pod, Some(container), among)?,
        _ => return Err(Error::Usage(format!("{name:?} is not of the form namespace/pod/container"))),
    };
    found.ok_or_else(|| {
        Error::NotFound(format!(
            "no pod or container is named {name:?}; `berth status` lists manifests that cannot be used"
        ))
    })
}

fn by_pod(
    namespace: Option<&str>,
    pod: &str,
    container: Option<&str>,
    among: &[Candidate],
) -> Result<Option<Resolved>, Error> {
    if pod.is_empty() {
        return Ok(None);
    }
    let fits = |test: &dyn Fn(&Candidate) -> bool| -> Vec<usize> {
        among.iter().enumerate().filter(|(_, c)| test(c)).map(|(n, _)| n).collect()
    };
    let in_namespace = |c: &Candidate| namespace.is_none_or(|ns| c.key.namespace.as_str() == ns);
    let tries: [Vec<usize>; 3] = [
        // `default` comes first, but only where no namespace is given.
        fits(&|c| namespace.is_none() && c.key.namespace.as_str() == "default" && c.key.name.as_str() == pod),
        fits(&|c| in_namespace(c) && c.key.name.as_str() == pod),
        fits(&|c| in_namespace(c) && c.key.name.as_str().starts_with(pod)),
    ];
    for fit in tries {
        let whole = [namespace, Some(pod), container].into_iter().flatten().collect::<Vec<_>>().join("/");
        let Some(pod) = one(&whole, &fit, |n| among.get(n).map(|c| c.key.to_string()).unwrap_or_default())?
        else {
            continue;
        };
        let Some(container) = container else { return Ok(Some(Resolved { pod, container: None })) };
        let names: Vec<&String> =
            among.get(pod).into_iter().flat_map(|c| c.containers.iter().map(|(n, _)| n)).collect();
        if names.iter().any(|n| *n == container) {
            return Ok(Some(Resolved { pod, container: Some(container.to_owned()) }));
        }
        let begun: Vec<usize> =
            names.iter().enumerate().filter(|(_, n)| n.starts_with(container)).map(|(n, _)| n).collect();
        let name = |n: usize| names.get(n).map(ToString::to_string).unwrap_or_default();
        return Ok(one(&whole, &begun, name)?.map(|n| Resolved { pod, container: Some(name(n)) }));
    }
    Ok(None)
}

fn by_id(id: &str, name: &str, among: &[Candidate]) -> Result<Option<Resolved>, Error> {
    if id.len() < SHORTEST {
        return Ok(None);
    }
    let mut fits = Vec::new();
    for (pod, candidate) in among.iter().enumerate() {
        if candidate.uid.as_str().starts_with(id) {
            fits.push(Resolved { pod, container: None });
        }
        for (container, ids) in &candidate.containers {
            if ids.iter().any(|i| i.starts_with(id)) {
                fits.push(Resolved { pod, container: Some(container.clone()) });
            }
        }
    }
    let all: Vec<usize> = (0..fits.len()).collect();
    let shown = |n: usize| {
        let fit = fits.get(n);
        let key = fit.and_then(|f| among.get(f.pod)).map(|c| c.key.to_string()).unwrap_or_default();
        match fit.and_then(|f| f.container.as_ref()) {
            Some(container) => format!("{key}/{container}"),
            None => key,
        }
    };
    Ok(one(name, &all, shown)?.and_then(|n| fits.get(n).cloned()))
}

/// The only fit, `None` where there is none, an error that lists them where there are several.
fn one(name: &str, fits: &[usize], shown: impl Fn(usize) -> String) -> Result<Option<usize>, Error> {
    match fits {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        more => {
            let mut names: Vec<String> = more.iter().map(|n| shown(*n)).collect();
            names.sort();
            names.dedup();
            let rest = names.len().saturating_sub(8);
            names.truncate(8);
            let mut fits = names.join(", ");
            if rest > 0 {
                fits.push_str(&format!(" and {rest} more"));
            }
            Err(Error::Ambiguous { name: name.to_owned(), fits })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(key: &str, uid: &str, containers: &[(&str, &str)]) -> Candidate {
        let (ns, name) = key.split_once('/').unwrap();
        Candidate {
            key: PodKey { namespace: ns.parse().unwrap(), name: name.parse().unwrap() },
            uid: uid.parse().unwrap(),
            containers: containers.iter().map(|(n, id)| ((*n).to_owned(), vec![(*id).to_owned()])).collect(),
        }
    }

    fn all() -> Vec<Candidate> {
        vec![
            candidate("default/web-0", "uid-aaaa", &[("app", "abc1111"), ("apache", "abc2222")]),
            candidate("default/web-1", "uid-bbbb", &[("app", "def1111")]),
            candidate("prod/web-0", "uid-cccc", &[("app", "fed1111")]),
            candidate("prod/db", "uid-dddd", &[("pg", "0123456")]),
            candidate("prod/db-2", "uid-eeee", &[("pg", "9123456")]),
        ]
    }

    fn resolved(name: &str) -> String {
        match resolve(name, &all()) {
            Ok(m) => {
                let container = m.container.map(|c| format!("/{c}")).unwrap_or_default();
                format!("{}{container}", all().get(m.pod).unwrap().key)
            }
            Err(Error::NotFound(_)) => "not found".to_owned(),
            Err(Error::Ambiguous { fits, .. }) => format!("one of {fits}"),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn a_name_resolves_by_equality_then_by_unique_prefix() {
        for (name, what) in [
            ("web-0", "default/web-0"),
            ("prod/web-0", "prod/web-0"),
            ("web-1", "default/web-1"),
            ("db", "prod/db"),
            ("prod/db", "prod/db"),
            ("web-0/app", "default/web-0/app"),
            ("prod/web-0/app", "prod/web-0/app"),
            ("prod/w", "prod/web-0"),
            ("prod/w/a", "prod/web-0/app"),
            ("web-0/ap", "one of apache, app"),
            ("web-0/none", "not found"),
            ("web", "one of default/web-0, default/web-1, prod/web-0"),
            ("abc1", "default/web-0/app"),
            ("containerd://0123456", "prod/db/pg"),
            ("uid-c", "prod/web-0"),
            ("uid-", "one of default/web-0, default/web-1, prod/db, prod/db-2, prod/web-0"),
            ("abc", "not found"),
            ("", "the name is empty"),
            ("/", "not found"),
            ("a/b/c/d", "\"a/b/c/d\" is not of the form namespace/pod/container"),
        ] {
            assert_eq!(resolved(name), what, "{name}");
        }
    }
}
