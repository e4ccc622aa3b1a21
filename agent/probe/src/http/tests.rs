use super::*;
use crate::action::Endpoint;

fn action(host: &str, port: u16) -> HttpAction {
    HttpAction {
        endpoint: Endpoint {
            host: host.parse().map_or_else(|_| Host::Name(host.to_owned()), Host::Address),
            port,
            node_local: true,
        },
        https: false,
        path: "/".into(),
        headers: vec![],
        host_header: None,
    }
}

#[test]
fn paths_become_request_targets() {
    for (path, want) in [
        ("", "/"),
        ("healthz", "/healthz"),
        ("/a?b=c&d=%20", "/a?b=c&d=%20"),
        ("/a b\"ä", "/a%20b%22%C3%A4"),
        ("/a#frag", "/a"),
        ("/100%?x", "/100%25%3Fx"),
        ("/\r\nHost: x", "/%0D%0AHost:%20x"),
    ] {
        assert_eq!(request_target(path), want, "{path:?}");
        assert!(request_target(path).parse::<Uri>().is_ok(), "{path:?}");
    }
}

#[test]
fn headers_follow_the_kubelet() {
    let header =
        |r: &Request<Empty<Bytes>>, name: &str| r.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
    let mut a = action("10.0.0.1", 8080);
    a.headers =
        vec![("X-A".into(), "1".into()), ("x-a".into(), "2".into()), ("Content-Length".into(), "9".into())];
    let r = request(&a, "/", PROBE_AGENT).unwrap();
    assert_eq!(header(&r, "host").as_deref(), Some("10.0.0.1:8080"));
    assert_eq!(header(&r, "user-agent").as_deref(), Some("kube-probe/1.36"));
    assert_eq!(header(&r, "accept").as_deref(), Some("*/*"));
    assert_eq!(header(&r, "connection").as_deref(), Some("close"));
    assert_eq!(header(&r, "accept-encoding"), None);
    assert_eq!(header(&r, "content-length"), None);
    assert_eq!(r.headers().get_all("x-a").iter().count(), 2);
    // The order of the kubelet's headers (`tests/golden/output/probe-request-http.json`).
    let names: Vec<&str> = r.headers().keys().map(HeaderName::as_str).collect();
    assert_eq!(names, ["host", "user-agent", "accept", "x-a", "connection"]);
    a.headers = vec![("User-Agent".into(), String::new()), ("Accept".into(), "text/plain".into())];
    a.host_header = Some("web.example".into());
    let r = request(&a, "/", PROBE_AGENT).unwrap();
    assert_eq!(header(&r, "host").as_deref(), Some("web.example"));
    assert_eq!(header(&r, "user-agent"), None);
    assert_eq!(header(&r, "accept").as_deref(), Some("text/plain"));
    a.headers = vec![("bad name".into(), "x".into())];
    assert!(matches!(request(&a, "/", PROBE_AGENT), Err(ProbeError::Request(_))));
    let bare = request(&action("fd00::1", 80), "/", PROBE_AGENT).unwrap();
    assert_eq!(header(&bare, "host").as_deref(), Some("[fd00::1]"));
}

#[test]
fn redirects_stay_on_the_host() {
    let from = action("10.0.0.1", 8080);
    let to = |location: &str| {
        redirect(&from, "/a/b?q", location)
            .map(|next| next.map(|(a, path)| (a.https, a.endpoint.port, path)))
            .map_err(|e| e.to_string())
    };
    assert_eq!(to("/x"), Ok(Some((false, 8080, "/x".into()))));
    assert_eq!(to("x?y"), Ok(Some((false, 8080, "/a/x?y".into()))));
    assert_eq!(to("?z"), Ok(Some((false, 8080, "/a/b?z".into()))));
    assert_eq!(to("http://10.0.0.1/x"), Ok(Some((false, 80, "/x".into()))));
    assert_eq!(to("https://10.0.0.1"), Ok(Some((true, 443, "/".into()))));
    assert_eq!(to("//10.0.0.1:9?x"), Ok(Some((false, 9, "/?x".into()))));
    for other in
        ["http://169.254.169.254/latest", "https://example.com", "//10.0.0.2/", "http://10.0.0.1@evil/"]
    {
        assert_eq!(to(other), Ok(None), "{other}");
    }
    assert!(to("ftp://10.0.0.1/").is_err());
    let named = HttpAction { host_header: Some("h".into()), ..action("Web.Example", 80) };
    let (next, _) = redirect(&named, "/", "http://web.example/y").unwrap().unwrap();
    assert_eq!(next.host_header, None, "an absolute redirect names its own host");
    let (next, _) = redirect(&named, "/", "/y").unwrap().unwrap();
    assert_eq!(next.host_header.as_deref(), Some("h"));
}

proptest::proptest! {
    #[test]
    fn no_path_or_location_breaks_the_request(path in ".{0,40}", location in ".{0,60}") {
        let from = action("10.0.0.1", 8080);
        let target = request_target(&path);
        proptest::prop_assert!(request(&from, &target, PROBE_AGENT).is_ok(), "{target}");
        if let Ok(Some((next, target))) = redirect(&from, &target, &location) {
            proptest::prop_assert_eq!(&next.endpoint.host, &from.endpoint.host);
            proptest::prop_assert!(request(&next, &target, PROBE_AGENT).is_ok(), "{}", target);
        }
    }
}
