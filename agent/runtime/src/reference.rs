//! Names of images: from the name in a pod to the names under which containerd may have the image.

/// The names under which to look up `reference`, in order and without repeats: the full form (registry,
/// `library/`, tag), then the name as written.
pub fn candidates(reference: &str) -> Vec<String> {
    let full = normalise(reference);
    if full == reference { vec![full] } else { vec![full, reference.to_owned()] }
}

/// The full form: `busybox` is `docker.io/library/busybox:latest`. A reference with a digest gets no default
/// tag, and a tag beside a digest is dropped, because the digest alone decides.
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

/// The fault of a reference, in the words of the reference library; `None` for a valid one. The digest of an
/// image's configuration (`sha256:…`) is valid too.
pub fn fault(reference: &str) -> Option<String> {
    const INVALID: &str = "invalid reference format";
    let hex = |text: &str| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if hex(reference) {
        return Some(format!(
            "invalid repository name ({reference}), cannot specify 64-byte hexadecimal strings"
        ));
    }
    let (name, digest) = match reference.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (reference, None),
    };
    let (repository, tag) = split_tag(name);
    let (domain, path) = match repository.split_once('/') {
        Some((first, rest)) if is_registry(first) => (Some(first), rest),
        _ => (None, repository),
    };
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        let library = if domain.is_none() && !path.contains('/') { "library/" } else { "" };
        return Some(format!("{INVALID}: repository name ({library}{path}) must be lowercase"));
    }
    let domain_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
    let good_tag = |tag: &str| {
        (1..=128).contains(&tag.len())
            && !tag.starts_with(['.', '-'])
            && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
    };
    let good_digest = |digest: &str| {
        digest.split_once(':').is_some_and(|(algorithm, hex)| {
            algorithm.starts_with(|c: char| c.is_ascii_alphabetic())
                && hex.len() >= 32
                && hex.bytes().all(|b| b.is_ascii_hexdigit())
        })
    };
    let good = domain.is_none_or(|d| !d.is_empty() && d.bytes().all(domain_byte))
        && path.split('/').all(path_component)
        && tag.is_none_or(good_tag)
        && digest.is_none_or(good_digest);
    (!good).then(|| INVALID.to_owned())
}

/// Lower-case letters and digits with single `.`, one or two `_`, or any number of `-` between them.
fn path_component(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = text.bytes().next().is_some_and(plain) && text.bytes().next_back().is_some_and(plain);
    let separators = text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends && separators
        .filter(|s| !s.is_empty())
        .all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
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
    fn a_reference_is_judged_as_the_kubelet_judges_it() {
        let hex = "548025ab".repeat(8);
        for good in [
            "busybox",
            "busybox:UPPER",
            "x/a-b.c_d__e---f:1",
            "localhost:5000/a/b@sha256:00000000000000000000000000000000",
            "UPPER.host/a",
            &format!("sha256:{hex}"),
        ] {
            assert_eq!(fault(good), None, "{good}");
        }
        let not_hex = format!("invalid repository name ({hex}), cannot specify 64-byte hexadecimal strings");
        for (bad, why) in [
            (hex.as_str(), not_hex.as_str()),
            (
                "Busybox:UPPER",
                "invalid reference format: repository name (library/Busybox) must be lowercase",
            ),
            ("h.io/a/B", "repository name (a/B) must be lowercase"),
            ("", "invalid reference format"),
            ("a//b", "invalid reference format"),
            ("a:", "invalid reference format"),
            ("a..b", "invalid reference format"),
            ("a b", "invalid reference format"),
            ("a@sha256:00", "invalid reference format"),
            (":x", "invalid reference format"),
        ] {
            assert!(fault(bad).is_some_and(|f| f.contains(why)), "{bad}: {:?}", fault(bad));
        }
    }

    #[test]
    fn odd_input_is_carried_through() {
        for odd in ["", ":", "@", "/", "a/", "::", "@:@", "ä"] {
            assert!(!candidates(odd).is_empty(), "{odd}");
        }
        assert_eq!(candidates("docker.io/library/a:b"), ["docker.io/library/a:b"]);
    }
}
