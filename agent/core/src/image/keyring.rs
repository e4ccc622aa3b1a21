//! The keyring: which credentials are for an image, and in which order they are tried. The rules are Kubernetes' own
//! (`pkg/credentialprovider/keyring.go`): the longest place first, a glob for each label of the host, equal ports, the
//! path as a prefix, and Docker Hub's place for images without a registry.

use super::{CredentialSource, DockerConfig, Sourced};
use std::collections::BTreeMap;

/// The place of Docker Hub's credentials.
const DEFAULT_REGISTRY: &str = "index.docker.io";

/// Credentials of one origin, by the place that they are for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keyring {
    places: BTreeMap<String, Vec<Sourced>>,
}

impl Keyring {
    /// Adds the entries of a configuration of this source. An entry whose place is no URL is left out.
    pub fn add(&mut self, config: &DockerConfig, source: Option<&CredentialSource>) {
        for (place, credential) in &config.entries {
            if let Some(place) = place_of(place) {
                self.places
                    .entry(place)
                    .or_default()
                    .push(Sourced { credential: credential.clone(), source: source.cloned() });
            }
        }
    }

    /// Whether there is no credential at all.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The credentials for a repository (a full name without tag and digest), in the order in which they are tried.
    pub fn candidates(&self, repository: &str) -> Vec<Sourced> {
        // From the greatest text to the least, so that a longer path comes before its prefix.
        let matching = self.places.iter().rev().filter(|(place, _)| matches(place, repository));
        let found: Vec<Sourced> = matching.flat_map(|(_, credentials)| credentials.clone()).collect();
        if found.is_empty() && is_default_registry(repository) {
            return self.places.get(DEFAULT_REGISTRY).cloned().unwrap_or_default();
        }
        found
    }
}

/// The place of an entry without scheme, and without the path of the registry's interface.
fn place_of(written: &str) -> Option<String> {
    let rest =
        ["https://", "http://"].iter().find_map(|scheme| written.strip_prefix(scheme)).unwrap_or(written);
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = split_path(rest);
    // User information is no part of the host.
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if !is_host(host) {
        return None;
    }
    let path = if path.starts_with("/v2/") || path.starts_with("/v1/") { path.get(3..)? } else { path };
    Some(if path == "/" { host.to_owned() } else { format!("{host}{path}") })
}

/// Whether Go's URL parser takes this host: no blank or control character, and a number as port.
fn is_host(host: &str) -> bool {
    let valid = |c: char| {
        !(c.is_whitespace()
            || c.is_control()
            || matches!(c, '<' | '>' | '"' | '\\' | '^' | '`' | '{' | '|' | '}'))
    };
    if !host.chars().all(valid) {
        return false;
    }
    match (host.strip_prefix('['), host.rsplit_once(':')) {
        (Some(bracketed), _) => bracketed.split_once(']').is_some_and(|(_, rest)| is_port(rest)),
        (None, Some((_, port))) => port.bytes().all(|b| b.is_ascii_digit()),
        (None, None) => true,
    }
}

fn is_port(rest: &str) -> bool {
    rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()))
}

/// Authority and path; the path begins with its slash.
fn split_path(text: &str) -> (&str, &str) {
    text.split_at(text.find('/').unwrap_or(text.len()))
}

/// Host and port. A host that does not divide is whole, with an empty port (`net.SplitHostPort`).
fn split_port(authority: &str) -> (&str, &str) {
    if let Some(bracketed) = authority.strip_prefix('[') {
        return match bracketed.split_once("]:") {
            Some((host, port)) => (host, port),
            None => (authority, ""),
        };
    }
    match authority.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, port),
        _ => (authority, ""),
    }
}

/// Whether a text is a place: a URL without its scheme.
pub(super) fn is_place(text: &str) -> bool {
    place_of(text).is_some()
}

/// Whether a place, which may have globs in its host, is one for this repository (`URLsMatchStr`).
pub(super) fn matches(place: &str, repository: &str) -> bool {
    let ((place, place_path), (target, target_path)) = (split_path(place), split_path(repository));
    let ((place, place_port), (target, target_port)) = (split_port(place), split_port(target));
    let (place, target): (Vec<&str>, Vec<&str>) = (place.split('.').collect(), target.split('.').collect());
    place_port == target_port
        && place.len() == target.len()
        && target_path.starts_with(place_path)
        && place.iter().zip(&target).all(|(glob, label)| glob_matches(glob, label))
}

/// Go's `filepath.Match` within one label: `*`, `?`, `[a-z]` and `\` before a character. A malformed pattern matches
/// nothing.
///
/// Where the rest of the glob does not match, only the last `*` takes one more character: what an earlier one took stays
/// right. So the time grows with the product of both lengths, whatever a pull secret holds.
fn glob_matches(glob: &str, text: &str) -> bool {
    let (glob, text): (Vec<char>, Vec<char>) = (glob.chars().collect(), text.chars().collect());
    let (mut glob, mut text) = (glob.as_slice(), text.as_slice());
    // What follows the last `*`, and the text from which it is tried.
    let mut star: Option<(&[char], &[char])> = None;
    loop {
        match (glob.split_first(), text.split_first()) {
            (Some(('*', rest)), _) => (star, glob) = (Some((rest, text)), rest),
            (None, None) => return true,
            (_, found) => {
                let matched = found.and_then(|(c, after)| Some((one_matches(glob, *c)?, after)));
                let Some((rest, after)) = matched.or_else(|| {
                    let (rest, (_, later)) =
                        star.and_then(|(rest, from)| Some((rest, from.split_first()?)))?;
                    star = Some((rest, later));
                    Some((rest, later))
                }) else {
                    return false;
                };
                (glob, text) = (rest, after);
            }
        }
    }
}

/// What follows the first element of a glob, which is no `*`; `None` where that does not match the character.
fn one_matches(glob: &[char], found: char) -> Option<&[char]> {
    let (first, rest) = glob.split_first()?;
    match first {
        '?' => Some(rest),
        '[' => class(rest, found).and_then(|(within, rest)| within.then_some(rest)),
        '\\' => rest.split_first().and_then(|(wanted, rest)| (*wanted == found).then_some(rest)),
        wanted => (*wanted == found).then_some(rest),
    }
}

/// Whether a character is in the class that begins here, and what follows the class; `None` for a malformed one.
fn class(mut glob: &[char], found: char) -> Option<(bool, &[char])> {
    let negated = glob.first() == Some(&'^');
    if negated {
        glob = glob.get(1..)?;
    }
    let (mut within, mut ranges) = (false, 0);
    loop {
        if glob.first() == Some(&']') && ranges > 0 {
            return Some((within != negated, glob.get(1..)?));
        }
        let low;
        (low, glob) = class_char(glob)?;
        let mut high = low;
        if glob.first() == Some(&'-') {
            (high, glob) = class_char(glob.get(1..)?)?;
        }
        within |= (low..=high).contains(&found);
        ranges += 1;
    }
}

fn class_char(glob: &[char]) -> Option<(char, &[char])> {
    let (first, rest) = glob.split_first()?;
    match first {
        '-' | ']' => None,
        '\\' => rest.split_first().map(|(c, rest)| (*c, rest)),
        c => Some((*c, rest)),
    }
}

/// Whether an image of this name comes from Docker Hub.
fn is_default_registry(repository: &str) -> bool {
    match repository.split_once('/') {
        None => !repository.is_empty(),
        Some(("", _)) => false,
        Some(("docker.io" | "index.docker.io", _)) => true,
        Some((first, _)) => !first.contains(['.', ':']),
    }
}

#[cfg(test)]
mod tests;
