//! Names of images: how what a pod says becomes the names that containerd may know it by.

/// The names under which to look for `reference`, in order, without repeats: in full (registry, `library/`, tag),
/// then as written.
pub fn candidates(reference: &str) -> Vec<String> {
    let full = normalise(reference);
    if full == reference { vec![full] } else { vec![full, reference.to_owned()] }
}

/// The full form: `busybox` is `docker.io/library/busybox:latest`. A reference with a digest keeps no tag of its own
/// making, and one that has both loses the tag, as the digest alone decides.
pub fn normalise(reference: &str) -> String {
    let (name, digest) = match reference.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (reference, None),
    };
    let (repository, tag) = split_tag(name);
    let repository = full_repository(repository);
    match (digest, tag) {
        (Some(digest), _) => format!("{repository}@{digest}"),
        (None, Some(tag)) => format!("{repository}:{tag}"),
        (None, None) => format!("{repository}:latest"),
    }
}

/// The repository of a full reference: without tag and digest.
pub fn repository(full: &str) -> &str {
    let name = full.split_once('@').map_or(full, |(name, _)| name);
    split_tag(name).0
}

/// A colon after the last slash starts a tag; one before it is a registry's port.
fn split_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (name, None),
    }
}

fn full_repository(repository: &str) -> String {
    let (domain, path) = match repository.split_once('/') {
        Some((first, rest)) if is_registry(first) => (first, rest),
        _ => ("docker.io", repository),
    };
    let domain = if domain == "index.docker.io" { "docker.io" } else { domain };
    if domain == "docker.io" && !path.contains('/') {
        return format!("docker.io/library/{path}");
    }
    format!("{domain}/{path}")
}

fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.chars().any(char::is_uppercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_get_registry_library_and_tag() {
        for (written, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("team/app", "docker.io/team/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/library/busybox:1", "docker.io/library/busybox:1"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("reg:5000/app:v1", "reg:5000/app:v1"),
            ("busybox@sha256:00", "docker.io/library/busybox@sha256:00"),
            ("busybox:1@sha256:00", "docker.io/library/busybox@sha256:00"),
        ] {
            assert_eq!(normalise(written), full, "{written}");
            assert_eq!(normalise(full), full, "{full} again");
        }
    }

    #[test]
    fn a_repository_has_neither_tag_nor_digest() {
        assert_eq!(repository("localhost:5000/a:b@sha256:0"), "localhost:5000/a");
        assert_eq!(repository("docker.io/library/busybox:latest"), "docker.io/library/busybox");
    }

    #[test]
    fn odd_input_is_carried_through() {
        for odd in ["", ":", "@", "/", "a/", "::", "@:@", "ä"] {
            assert!(!candidates(odd).is_empty(), "{odd}");
        }
        assert_eq!(candidates("docker.io/library/a:b"), ["docker.io/library/a:b"]);
    }
}
