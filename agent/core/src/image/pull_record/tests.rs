//! The cases of `image_pull_manager_test.go` and `image_pull_policies_test.go` by their values.

use super::{super::Credential, *};

const AT: &str = "2026-01-02T03:04:05Z";

fn of_secret(uid: &str, name: &str, password: &str) -> Sourced {
    let source = ObjectCoordinates { uid: uid.into(), namespace: "ns".into(), name: name.into() };
    Sourced { credential: Credential::basic("u", password), source: Some(CredentialSource::Secret(source)) }
}

fn of_account(uid: &str) -> Sourced {
    let source = ObjectCoordinates { uid: uid.into(), namespace: "ns".into(), name: "sa".into() };
    Sourced {
        credential: Credential::basic("u", "p"),
        source: Some(CredentialSource::ServiceAccount(source)),
    }
}

fn of_node() -> Sourced {
    Sourced { credential: Credential::basic("u", "p"), source: None }
}

#[test]
fn the_files_are_those_of_the_kubelet() {
    let head = r#"{"kind":"ImagePullIntent","apiVersion":"kubelet.config.k8s.io/v1beta1","#;
    let intent = format!("{head}\"image\":\"docker.io/testing/test:latest\"}}");
    let read = PullIntent::read(intent.as_bytes()).unwrap();
    assert_eq!(read, PullIntent::of("docker.io/testing/test:latest"));
    assert_eq!(serde_json::to_string(&read).unwrap(), intent);
    assert_eq!(PullIntent::read(br#"{"kind":"ImagePulledRecord","apiVersion":"v1","image":"x"}"#), None);
    assert_eq!(PullIntent::read(b"{"), None);

    let record = PulledRecord::new("sha256:aa", "a.test/x", Some(&PullCredentials::of(None)), AT);
    let head = r#"{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1beta1","#;
    let rest = r#""lastUpdatedTime":"2026-01-02T03:04:05Z","imageRef":"sha256:aa","credentialMapping":{"a.test/x":{"nodePodsAccessible":true}}}"#;
    let text = format!("{head}{rest}");
    assert_eq!(serde_json::to_string(&record).unwrap(), text);
    assert_eq!(PulledRecord::read(text.as_bytes()).unwrap(), record);
    let old = text.replace("v1beta1", "v1alpha1");
    assert_eq!(PulledRecord::read(old.as_bytes()).unwrap(), record, "an older version is read as this one");
    let unknown = text.replace("\"imageRef\"", "\"more\":1,\"imageRef\"");
    assert_eq!(PulledRecord::read(unknown.as_bytes()), None, "an unknown field is no record");
    let secret = PullCredentials::of(Some(&of_secret("1", "s", "p")));
    let text = serde_json::to_string(&PulledRecord::new("sha256:aa", "x", Some(&secret), AT)).unwrap();
    let part = r#"{"kubernetesSecrets":[{"uid":"1","namespace":"ns","name":"s","credentialHash":""#;
    assert!(text.contains(part) && !text.contains("nodePods"), "{text}");

    let name = "sha256-aef2af226629a35d5f3ef0fdbb29fdbebf038d0acd8850590e8c48e1e283aa56";
    assert_eq!(file_name("docker.io/testing/test:latest").len(), name.len());
    assert!(is_file_name(name) && !is_file_name("sha256-aa.tmp") && !is_file_name("other"));
}

#[test]
fn a_name_loses_tag_and_digest() {
    for (image, repository) in [
        ("busybox", "busybox"),
        ("busybox:1", "busybox"),
        ("localhost:5000/a/b", "localhost:5000/a/b"),
        ("localhost:5000/a/b:1@sha256:aa", "localhost:5000/a/b"),
        ("a.test/b@sha256:aa", "a.test/b"),
    ] {
        assert_eq!(repository_of(image), repository);
    }
}

#[test]
fn the_policies_decide_as_the_kubelets_do() {
    use Access::{AskPod, Granted, MustPull};
    let secret = PullCredentials::of(Some(&of_secret("1", "s", "p")));
    let (everyone, nobody) = (PullCredentials::of(None), PullCredentials::default());
    let preloaded = VerificationPolicy::default();
    for (policy, was_pulled, mapping, wanted) in [
        (&preloaded, false, None, Granted),
        (&preloaded, true, None, MustPull),
        (&preloaded, true, Some(&nobody), MustPull),
        (&preloaded, true, Some(&secret), AskPod),
        (&preloaded, true, Some(&everyone), Granted),
        (&VerificationPolicy::NeverVerify, true, None, Granted),
        (&VerificationPolicy::AlwaysVerify, false, None, MustPull),
        (&VerificationPolicy::AlwaysVerify, true, Some(&everyone), Granted),
    ] {
        let decided = policy.decide("a.test/x", was_pulled, mapping);
        assert_eq!(decided, wanted, "{policy:?} {was_pulled} {mapping:?}");
    }
    let list = ["a.test/one".to_owned(), "b.test/all/*".to_owned()];
    let listed = VerificationPolicy::parse("NeverVerifyAllowlistedImages", &list).unwrap();
    assert_eq!(listed.decide("a.test/one", true, None), Granted);
    assert_eq!(listed.decide("b.test/all/of/it", true, None), Granted);
    assert_eq!(listed.decide("a.test/one/more", false, None), MustPull);
}

#[test]
fn a_policy_that_is_none_is_refused() {
    for name in ["NeverVerify", "NeverVerifyPreloadedImages", "NeverVerifyAllowlistedImages", "AlwaysVerify"]
    {
        assert_eq!(VerificationPolicy::parse(name, &[]).unwrap().name(), name);
    }
    let refused = |name: &str, list: &[&str]| {
        let list: Vec<String> = list.iter().map(|s| (*s).to_owned()).collect();
        VerificationPolicy::parse(name, &list).unwrap_err()
    };
    assert!(refused("Never", &[]).contains("option \"Never\" specified"));
    assert!(refused("NeverVerify", &["x"]).contains("can't set `preloadedImagesVerificationAllowlist`"));
    for (pattern, why) in [
        (" x", "leading/trailing spaces"),
        ("", "too short"),
        ("a*b", "not a valid wildcard pattern"),
        ("*", "not a valid wildcard pattern"),
        ("/*", "at least registry hostname"),
        ("a.test/x:1", "neither tag nor digest"),
    ] {
        let text = refused("NeverVerifyAllowlistedImages", &[pattern]);
        assert!(text.contains(why), "{pattern:?}: {text}");
    }
}

#[test]
fn a_pod_with_the_recorded_secret_is_granted_the_image() {
    let record = PullCredentials::of(Some(&of_secret("1", "s", "p")));
    assert_eq!(record.grants(&[of_node(), of_secret("1", "s", "p")]), Match::Found);
    // The same credential in another secret, and another credential in the same secret: both become part of the record.
    for other in [of_secret("2", "t", "p"), of_secret("1", "s", "q")] {
        let wanted = Match::Changed(PullCredentials::of(Some(&other)));
        assert_eq!(record.grants(&[other]), wanted);
    }
    assert_eq!(record.grants(&[of_secret("2", "t", "q")]), Match::None);
    assert_eq!(record.grants(&[of_node()]), Match::None, "the node's credential pulled nothing");
    assert_eq!(record.grants(&[]), Match::None);
    let one = |n: u32| {
        PullCredentials::of(Some(&of_secret(&n.to_string(), "s", &n.to_string()))).kubernetes_secrets
    };
    let full = PullCredentials {
        kubernetes_secrets: (0..100).flat_map(one).collect(),
        ..PullCredentials::default()
    };
    assert_eq!(full.grants(&[of_secret("x", "y", "5")]), Match::Found, "a full record takes no more");
    assert_eq!(full.grants(&[of_secret("5", "s", "new")]), Match::None);
}

#[test]
fn a_pod_of_the_recorded_service_account_is_granted_the_image() {
    let record = PullCredentials::of(Some(&of_account("1")));
    assert_eq!(record.grants(&[of_account("1")]), Match::Found);
    assert_eq!(record.grants(&[of_account("2"), of_account("1")]), Match::None, "the first one counts");
    assert_eq!(record.grants(&[of_secret("1", "sa", "p")]), Match::None);
}

#[test]
fn a_record_grows_by_what_is_new() {
    let secret = |uid, password| PullCredentials::of(Some(&of_secret(uid, "s", password)));
    let record = PulledRecord::new("sha256:aa", "x", Some(&secret("2", "p")), AT);
    assert_eq!(record.with("x", &secret("2", "p"), "later"), None, "nothing is new");
    assert_eq!(record.with("x", &PullCredentials::default(), "later"), None);
    let two = record.with("x", &secret("1", "p"), "later").unwrap();
    let uids: Vec<&str> =
        two.credential_mapping["x"].kubernetes_secrets.iter().map(|s| s.uid.as_str()).collect();
    assert_eq!((uids, two.last_updated_time.as_deref()), (vec!["1", "2"], Some("later")));
    let changed = two.with("x", &secret("2", "new"), "later").unwrap();
    assert_eq!(changed.credential_mapping["x"].kubernetes_secrets.len(), 2);
    let other = two.with("y", &secret("2", "p"), "later").unwrap();
    assert_eq!(other.credential_mapping.len(), 2);
    let account = two.with("x", &PullCredentials::of(Some(&of_account("1"))), "later").unwrap();
    assert_eq!(account.credential_mapping["x"].kubernetes_service_accounts.len(), 1);
    let everyone = account.with("x", &PullCredentials::of(None), "later").unwrap();
    assert_eq!(everyone.credential_mapping["x"], PullCredentials::of(None));
    assert_eq!(everyone.with("x", &secret("9", "p"), "later"), None, "everyone has it already");
    let unknown = PulledRecord::new("sha256:aa", "x", None, AT);
    assert!(unknown.credential_mapping.is_empty());
}
