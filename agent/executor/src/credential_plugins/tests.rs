//! Plugins that are scripts, executed for real.

use super::*;
use berth_core::image::provider::EnvVar;
use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

const V1: &str = "credentialprovider.kubelet.k8s.io/v1";
const IMAGE: &str = "b.a.test:5000/x";

/// A script that notes each call in `calls`, and answers with `rest`.
fn plugin(dir: &Path, rest: &str, change: impl FnOnce(&mut Provider)) -> CredentialPlugins {
    let answer = format!(r#"{{"kind":"CredentialProviderResponse","apiVersion":"{V1}",{rest}}}"#);
    script(
        dir,
        &format!("cat >> {0}/calls; echo \"$@ $VAR $HOME\" >> {0}/args; echo '{answer}'", dir.display()),
    );
    of(dir, change)
}

fn script(dir: &Path, text: &str) {
    std::fs::create_dir_all(dir).unwrap();
    // Written beside and moved: a file that is open for writing cannot be executed.
    std::fs::write(dir.join("new"), format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(dir.join("new"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(dir.join("new"), dir.join("p")).unwrap();
}

fn of(dir: &Path, change: impl FnOnce(&mut Provider)) -> CredentialPlugins {
    let mut provider = Provider {
        name: "p".into(),
        match_images: vec!["*.a.test:5000".into()],
        default_cache_duration: Some(Duration::from_secs(60)),
        api_version: V1.into(),
        args: vec!["one".into(), "two words".into()],
        env: vec![EnvVar { name: "VAR".into(), value: "value".into() }],
        token_attributes: None,
    };
    change(&mut provider);
    CredentialPlugins::new(dir, vec![provider], Some(Arc::new(Accounts::default())))
}

fn calls(dir: &Path) -> usize {
    std::fs::read_to_string(dir.join("calls")).unwrap_or_default().lines().count()
}

fn pod(account: &str) -> PullPod {
    PullPod { namespace: "ns".into(), name: "p".into(), uid: "1".into(), service_account: account.into() }
}

async fn names(plugins: &CredentialPlugins, image: &str, pod: &PullPod) -> Vec<String> {
    let found = plugins.keyring(image, pod).await.candidates(image);
    found.into_iter().map(|c| c.credential.username).collect()
}

/// ServiceAccounts of the test: `sa` with an annotation, a new token at each request.
#[derive(Default)]
struct Accounts(AtomicUsize);

impl ServiceAccounts for Accounts {
    fn account<'a>(&'a self, _namespace: &'a str, name: &'a str) -> Asked<'a, ServiceAccount> {
        Box::pin(async move {
            let annotations = [("a.test/role".to_owned(), "r".to_owned())].into();
            if name == "sa" {
                Ok(ServiceAccount { uid: "sa-1".into(), annotations })
            } else {
                Err(format!("serviceaccounts {name:?} not found"))
            }
        })
    }

    fn token<'a>(&'a self, _pod: &'a PullPod, _uid: &'a str, audience: &'a str) -> Asked<'a, Hidden> {
        let n = self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move { Ok(Hidden::new(format!("{audience}-{n}"))) })
    }
}

const AUTH: &str = r#""auth":{"*.a.test:5000":{"username":"u","password":"p"}}"#;

#[tokio::test]
async fn a_plugin_is_asked_for_its_images_and_its_answer_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let plugins = plugin(dir.path(), &format!(r#""cacheKeyType":"Registry",{AUTH}"#), |_| {});
    assert!(names(&plugins, "c.test/x", &pod("")).await.is_empty());
    assert_eq!(calls(dir.path()), 0, "the image is none of its");
    assert_eq!(names(&plugins, IMAGE, &pod("")).await, ["u"]);
    let request = std::fs::read_to_string(dir.path().join("calls")).unwrap();
    assert!(request.contains(&format!("\"image\":\"{IMAGE}\"")), "{request}");
    let args = std::fs::read_to_string(dir.path().join("args")).unwrap();
    let home = std::env::var("HOME").unwrap_or_default();
    assert_eq!(args, format!("one two words value {home}\n"));
    assert_eq!(names(&plugins, "b.a.test:5000/y", &pod("")).await, ["u"]);
    assert_eq!(calls(dir.path()), 1, "the answer is for the registry");
    names(&plugins, "c.a.test:5000/y", &pod("")).await;
    assert_eq!(calls(dir.path()), 2);
}

#[tokio::test]
async fn an_answer_is_kept_as_long_as_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let rest = format!(r#""cacheKeyType":"Global","cacheDuration":"0s",{AUTH}"#);
    let plugins = plugin(dir.path(), &rest, |_| {});
    for n in 1..3 {
        assert_eq!(names(&plugins, IMAGE, &pod("")).await, ["u"]);
        assert_eq!(calls(dir.path()), n, "zero is never kept");
    }
    let other = dir.path().join("other");
    let plugins = plugin(&other, &format!(r#""cacheKeyType":"Image",{AUTH}"#), |p| {
        p.default_cache_duration = Some(Duration::ZERO);
    });
    names(&plugins, IMAGE, &pod("")).await;
    names(&plugins, IMAGE, &pod("")).await;
    assert_eq!(calls(&other), 2, "the configured time is zero");
}

#[tokio::test]
async fn equal_requests_at_once_are_one_call() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    let answer = format!(
        r#"{{"kind":"CredentialProviderResponse","apiVersion":"{V1}","cacheKeyType":"Image","cacheDuration":"0s",{AUTH}}}"#
    );
    script(
        dir.path(),
        &format!("cat >> {at}/calls; while ! [ -e {at}/go ]; do sleep 0.01; done; echo '{answer}'"),
    );
    let plugins = of(dir.path(), |_| {});
    let others: Vec<_> = (0..5)
        .map(|_| {
            let plugins = plugins.clone();
            tokio::spawn(async move { names(&plugins, IMAGE, &pod("")).await })
        })
        .collect();
    while calls(dir.path()) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    std::fs::write(dir.path().join("go"), "").unwrap();
    for other in others {
        assert_eq!(other.await.unwrap(), ["u"]);
    }
    assert_eq!(calls(dir.path()), 1);
    assert!(lock(&plugins.0.plugins[0].calls).is_empty());
}

#[tokio::test]
async fn a_plugin_that_fails_gives_nothing_and_the_reason_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let plugins = of(dir.path(), |_| {});
    let why = |plugins: CredentialPlugins| async move {
        plugins.0.provide(&plugins.0.plugins[0], IMAGE, &pod("")).await.unwrap_err()
    };
    let absent = why(plugins).await;
    assert!(
        absent.contains("error execing credential provider plugin p for image b.a.test:5000/x"),
        "{absent}"
    );
    script(dir.path(), "echo broken >&2; exit 3");
    let failed = why(of(dir.path(), |_| {})).await;
    assert!(failed.ends_with("exit status 3: broken\n"), "{failed}");
    script(dir.path(), "echo '{\"password\":\"geheim\"'");
    let garbled = why(of(dir.path(), |_| {})).await;
    assert!(garbled.contains("error reading GVK from response") && !garbled.contains("geheim"), "{garbled}");
    assert!(names(&of(dir.path(), |_| {}), IMAGE, &pod("")).await.is_empty());
}

fn with_token(cache: &str, required: Option<bool>) -> impl FnOnce(&mut Provider) {
    let cache_type = cache.to_owned();
    move |provider| {
        provider.token_attributes = Some(TokenAttributes {
            service_account_token_audience: "aud".into(),
            cache_type,
            require_service_account: required,
            required_service_account_annotation_keys: vec!["a.test/role".into()],
            optional_service_account_annotation_keys: vec!["a.test/absent".into()],
        });
    }
}

#[tokio::test]
async fn a_plugin_gets_the_token_of_the_pods_service_account() {
    let dir = tempfile::tempdir().unwrap();
    let rest = format!(r#""cacheKeyType":"Registry",{AUTH}"#);
    let plugins = plugin(dir.path(), &rest, with_token("ServiceAccount", Some(true)));
    assert!(names(&plugins, IMAGE, &pod("")).await.is_empty(), "it has no ServiceAccount");
    assert!(names(&plugins, IMAGE, &pod("absent")).await.is_empty());
    assert_eq!(calls(dir.path()), 0);
    let found = plugins.keyring(IMAGE, &pod("sa")).await.candidates(IMAGE);
    let account = ObjectCoordinates { uid: "sa-1".into(), namespace: "ns".into(), name: "sa".into() };
    assert_eq!(found[0].source, Some(CredentialSource::ServiceAccount(account)));
    let request = std::fs::read_to_string(dir.path().join("calls")).unwrap();
    let part = r#""serviceAccountToken":"aud-0","serviceAccountAnnotations":{"a.test/role":"r"}"#;
    assert!(request.contains(part), "{request}");
    names(&plugins, IMAGE, &pod("sa")).await;
    assert_eq!(calls(dir.path()), 1, "the answer is for the account");

    let other = dir.path().join("token");
    let plugins = plugin(&other, &rest, with_token("Token", Some(true)));
    names(&plugins, IMAGE, &pod("sa")).await;
    names(&plugins, IMAGE, &pod("sa")).await;
    assert_eq!(calls(&other), 2, "each token has its own answer");

    let other = dir.path().join("optional");
    let plugins = plugin(&other, &rest, |p| {
        with_token("Token", Some(false))(p);
        if let Some(token) = &mut p.token_attributes {
            token.required_service_account_annotation_keys = vec!["a.test/other".into()];
        }
    });
    assert_eq!(names(&plugins, IMAGE, &pod("")).await, ["u"], "it is asked without a token");
    assert!(names(&plugins, IMAGE, &pod("sa")).await.is_empty(), "the annotation is not there");
}

#[tokio::test]
async fn a_plugin_may_not_give_the_token_back_as_the_password() {
    let dir = tempfile::tempdir().unwrap();
    let rest = r#""cacheKeyType":"Image","auth":{"*.a.test:5000":{"username":"u","password":"aud-0"}}"#;
    let plugins = plugin(dir.path(), rest, with_token("ServiceAccount", Some(true)));
    let why = plugins.0.provide(&plugins.0.plugins[0], IMAGE, &pod("sa")).await.unwrap_err();
    assert!(
        why.contains("returned the service account token as the password") && !why.contains("aud-0"),
        "{why}"
    );
    let plugins = plugin(&dir.path().join("t"), rest, with_token("Token", Some(true)));
    assert_eq!(names(&plugins, IMAGE, &pod("sa")).await, ["u"]);
}

#[tokio::test]
async fn a_node_without_a_control_plane_has_no_service_accounts() {
    let dir = tempfile::tempdir().unwrap();
    let mut provider =
        Provider { name: "p".into(), match_images: vec!["*.a.test:5000".into()], ..Provider::default() };
    with_token("Token", Some(true))(&mut provider);
    let plugins = CredentialPlugins::new(dir.path(), vec![provider], None);
    let why = plugins.0.provide(&plugins.0.plugins[0], IMAGE, &pod("sa")).await.unwrap_err();
    assert!(why.contains("standalone mode"), "{why}");
}
