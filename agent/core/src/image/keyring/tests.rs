//! The cases of `pkg/credentialprovider/keyring_test.go` by their values, and odd input.

use super::{super::Credential, *};
use proptest::prelude::*;

fn keyring(places: &[&str]) -> Keyring {
    let entries = places.iter().map(|p| ((*p).to_owned(), Credential::basic(*p, "x"))).collect();
    let mut keyring = Keyring::default();
    keyring.add(&DockerConfig { entries }, None);
    keyring
}

fn found(keyring: &Keyring, repository: &str) -> Vec<String> {
    keyring.candidates(repository).into_iter().map(|c| c.credential.username).collect()
}

#[test]
fn a_place_matches_by_labels_ports_and_a_prefix_of_the_path() {
    for (place, target, wanted) in [
        ("*.kubernetes.io", "prefix.kubernetes.io", true),
        ("prefix.*.io", "prefix.kubernetes.io", true),
        ("prefix.kubernetes.*", "prefix.kubernetes.io", true),
        ("*-good.kubernetes.io", "prefix-good.kubernetes.io", true),
        ("*.kubernetes.io/blah", "prefix.kubernetes.io/blah", true),
        ("prefix.*.io/foo", "prefix.kubernetes.io/foo/bar", true),
        ("*.kubernetes.io:1111/blah", "prefix.kubernetes.io:1111/blah", true),
        ("prefix.*.io:1111/foo", "prefix.kubernetes.io:1111/foo/bar", true),
        ("*.kubernetes.io", "kubernetes.io", false),
        ("*.*.kubernetes.io", "prefix.kubernetes.io", false),
        ("*.*.kubernetes.io", "kubernetes.io", false),
        ("*kubernetes.io", "a.kubernetes.io", false),
        ("*kubernetes.io", "kubernetes.io", true),
        ("*.*.*.kubernetes.io", "a.b.c.kubernetes.io", true),
        ("kubernetes.io", "kubernetes.com", false),
        ("k*.io", "quay.io", false),
        ("*.kubernetes.io:1234/blah", "prefix.kubernetes.io:1111/blah", false),
        ("prefix.*.io/foo", "prefix.kubernetes.io:1111/foo/bar", false),
    ] {
        assert_eq!(matches(place, target), wanted, "{place} for {target}");
    }
}

#[test]
fn written_places_find_their_images() {
    for (place, target) in [
        ("https://hello.kubernetes.io", "hello.kubernetes.io"),
        ("https://*.docker.io", "prefix.docker.io"),
        ("https://prefix.*.io", "prefix.docker.io"),
        ("https://prefix.docker.*", "prefix.docker.io"),
        ("https://*.docker.io/path", "prefix.docker.io/path"),
        ("https://prefix.*.io/path", "prefix.docker.io/path/subpath"),
        ("https://prefix.docker.*/path", "prefix.docker.io/path"),
        ("https://*.docker.io:8888", "prefix.docker.io:8888"),
        ("https://*.docker.io/path:1111", "prefix.docker.io/path:1111"),
        ("https://*.docker.io/v1/", "prefix.docker.io/path:1111"),
        ("https://*.docker.io/v2/", "prefix.docker.io/path:1111"),
        ("https://prefix.docker.*/path:1111", "prefix.docker.io/path:1111"),
        ("prefix.docker.io:1111", "prefix.docker.io:1111/path"),
        ("*.docker.io:1111", "prefix.docker.io:1111/path"),
        ("http://127.0.0.1:5000/v2/team", "127.0.0.1:5000/team"),
        ("https://me@quay.io", "quay.io"),
        ("[::1]:5000", "[::1]:5000"),
    ] {
        let repository = format!("{target}/foo/bar");
        assert_eq!(found(&keyring(&[place]), &repository), [place], "{place} for {repository}");
    }
    for (place, target) in [
        ("https://hello.kubernetes.io", "world.mesos.org"),
        ("https://*.docker.com", "prefix.docker.io"),
        ("https://suffix.*.io", "prefix.docker.io"),
        ("https://prefix.docker.c*", "prefix.docker.io"),
        ("https://prefix.*.io/path:1111", "prefix.docker.io/path/subpath:1111"),
        ("suffix.*.io", "prefix.docker.io"),
        ("https://index.docker.io/v1/", "world.mesos.org"),
    ] {
        let repository = format!("{target}/foo/bar");
        assert!(keyring(&[place]).candidates(&repository).is_empty(), "{place} for {repository}");
    }
}

#[test]
fn docker_hubs_place_is_for_images_without_a_registry() {
    let hub = keyring(&["https://index.docker.io/v1/"]);
    for image in
        ["google/docker-registry", "jenkins", "docker.io/library/nginx", "index.docker.io/v1//google/x"]
    {
        assert_eq!(hub.candidates(image).len(), 1, "{image}");
    }
    for (name, wanted) in [
        ("foo/bar", true),
        ("docker.io/foo/bar", true),
        ("index.docker.io/foo/bar", true),
        ("foo", true),
        ("", false),
        ("registry.tld/foo/bar", false),
        ("registry:5000/foo/bar", false),
        ("myhostdocker.io/foo/bar", false),
    ] {
        assert_eq!(is_default_registry(name), wanted, "{name}");
    }
}

/// `TestDockerKeyringLookup` and `TestIssue3797`.
#[test]
fn the_more_specific_place_comes_first() {
    let ring = keyring(&["bar.example.com/pong", "bar.example.com"]);
    for (image, wanted) in [
        ("bar.example.com", &["bar.example.com"][..]),
        ("bar.example.com/foo", &["bar.example.com"]),
        ("bar.example.com/pong", &["bar.example.com/pong", "bar.example.com"]),
        ("bar.example.com/pong/x", &["bar.example.com/pong", "bar.example.com"]),
        ("bar.example.com/pongx", &["bar.example.com/pong", "bar.example.com"]),
        ("example.com", &[]),
        ("foo.example.com", &[]),
    ] {
        assert_eq!(found(&ring, image), wanted, "{image}");
    }
    let ring = keyring(&["https://quay.io/v1/", "https://quay.io"]);
    assert_eq!(ring.candidates("quay.io/x").len(), 2, "both are for the same place");
    let mut twice = keyring(&["quay.io"]);
    twice.add(
        &DockerConfig { entries: [("quay.io".to_owned(), Credential::basic("later", "x"))].into() },
        None,
    );
    assert_eq!(found(&twice, "quay.io/a"), ["quay.io", "later"], "in the order in which they were added");
}

#[test]
fn globs_are_those_of_go() {
    for (glob, text, wanted) in [
        ("abc", "abc", true),
        ("*", "abc", true),
        ("*c", "abc", true),
        ("a*", "a", true),
        ("a*b?c*x", "abxbbxdbxebxczzx", true),
        ("a*b?c*x", "abxbbxdbxebxczzy", false),
        ("ab[c]", "abc", true),
        ("ab[b-d]", "abc", true),
        ("ab[e-g]", "abc", false),
        ("ab[^c]", "abc", false),
        ("ab[^e-g]", "abc", true),
        ("a\\*b", "a*b", true),
        ("a\\*b", "ab", false),
        ("[a-ζ]*", "α", true),
        ("[]a]", "]", false),
        ("[-]", "-", false),
        ("[x-]", "x", false),
        ("[", "a", false),
        ("a[", "a", false),
        ("[^", "a", false),
        ("*x", "xxx", true),
    ] {
        assert_eq!(glob_matches(glob, text), wanted, "{glob} for {text}");
    }
}

#[test]
fn a_glob_of_many_stars_takes_no_more_than_the_product_of_both_lengths() {
    let (stars, text) = ("*a".repeat(2000), "a".repeat(250));
    assert!(!glob_matches(&format!("{}*b", "*a".repeat(60)), &text));
    assert!(!glob_matches(&stars, &text), "it wants more than there is");
    assert!(glob_matches(&format!("{}*", "*a".repeat(60)), &text));
}

#[test]
fn what_is_no_place_is_left_out() {
    for place in ["a b.io", "quay.io:port", "[::1", "[::1]x", "quay.io:50:60x"] {
        assert!(keyring(&[place]).is_empty(), "{place}");
    }
}

proptest! {
    #[test]
    fn no_input_panics(place in "\\PC{0,24}", repository in "\\PC{0,24}") {
        let ring = keyring(&[&place]);
        let _ = ring.candidates(&repository);
        prop_assert!(ring.candidates(&repository).len() <= 1);
    }

    #[test]
    fn a_repository_finds_its_own_host_and_each_prefix_of_its_path(
        host in "[a-z]{1,8}(\\.[a-z]{1,8}){1,3}(:[1-9][0-9]{1,3})?",
        path in prop::collection::vec("[a-z0-9]{1,6}", 1..5),
        depth in 0_usize..5,
    ) {
        let repository = format!("{host}/{}", path.join("/"));
        let depth = depth.min(path.len());
        let place = std::iter::once(host.as_str()).chain(path[..depth].iter().map(String::as_str));
        let place = place.collect::<Vec<_>>().join("/");
        // A path that begins with the name of the interface's version is no path.
        prop_assume!(!place.contains("/v1") && !place.contains("/v2"));
        prop_assert_eq!(keyring(&[&place]).candidates(&repository).len(), 1, "{} for {}", place, repository);
        let both = keyring(&[&host, &place]);
        let order = found(&both, &repository);
        prop_assert_eq!(order.first().map(String::as_str), Some(place.as_str()));
    }

    #[test]
    fn a_glob_without_wild_cards_matches_itself_alone(a in "[a-z0-9-]{0,6}", b in "[a-z0-9-]{0,6}") {
        prop_assert_eq!(glob_matches(&a, &b), a == b);
        prop_assert!(glob_matches("*", &b));
    }
}
