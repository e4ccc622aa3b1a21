use super::*;
use crate::testing::{container, facts, pod};
use std::sync::Arc;

#[test]
fn every_field_has_its_value() {
    let mut p = pod("web");
    p.labels =
        [("app", "x\"y"), ("a/b", "line\none"), ("app-1", "")].map(|(k, v)| (k.into(), v.into())).into();
    p.annotations = [("Note.Key/x".to_owned(), "tab\there".to_owned())].into();
    let mut f = facts();
    Arc::make_mut(&mut f.node).ips.push("fd00::7".parse().unwrap());
    for (path, value) in [
        ("metadata.name", "web"),
        ("metadata.namespace", "default"),
        ("metadata.uid", "uid-1"),
        ("metadata.labels", "a/b=\"line\\none\"\napp=\"x\\\"y\"\napp-1=\"\""),
        ("metadata.annotations", "Note.Key/x=\"tab\\there\""),
        ("metadata.labels['a/b']", "line\none"),
        ("metadata.labels['nope']", ""),
        ("metadata.annotations['Note.Key/x']", "tab\there"),
        ("spec.nodeName", "node-1"),
        ("spec.serviceAccountName", "robot"),
        ("status.hostIP", "192.168.0.7"),
        ("status.hostIPs", "192.168.0.7,fd00::7"),
        ("status.podIP", "10.1.2.3"),
        ("status.podIPs", "10.1.2.3,fd00::3"),
    ] {
        assert_eq!(field(&p, &f, path).as_deref(), Ok(value), "{path}");
    }
}

#[test]
fn an_unsupported_field_or_resource_is_an_error() {
    let (p, mut f) = (pod("web"), facts());
    for path in ["", "spec", "metadata", "status.phase", "['x']", "metadata.labels['x'"] {
        assert!(matches!(field(&p, &f, path), Err(FieldError::Path(_) | FieldError::Subscript(_))), "{path}");
    }
    assert!(matches!(field(&p, &f, "metadata.name['x']"), Err(FieldError::Subscript(_))));
    Arc::make_mut(&mut f.node).ips.clear();
    f.ips.clear();
    assert_eq!(field(&p, &f, "status.hostIP"), Err(FieldError::NoHostIp));
    assert_eq!(field(&p, &f, "status.hostIPs"), Err(FieldError::NoHostIp));
    assert_eq!(field(&p, &f, "status.podIP").as_deref(), Ok(""));
}

#[test]
fn quotes_are_those_of_strconv() {
    for (text, quoted) in [
        ("plain", r#""plain""#),
        ("a\\b", r#""a\\b""#),
        ("it's", r#""it's""#),
        ("\x00\x07\x08\x0b\x0c\r\x1b\x7f", r#""\x00\a\b\v\f\r\x1b\x7f""#),
        ("é€😀", r#""é€😀""#),
        ("e\u{301}", "\"e\u{301}\""),
        ("\u{a0}\u{200b}\u{2028}\u{feff}", r#""\u00a0\u200b\u2028\ufeff""#),
        ("\u{e0001}", r#""\U000e0001""#),
    ] {
        assert_eq!(quote(text), quoted);
    }
}

#[test]
fn resources_round_up_and_have_defaults() {
    let mut p = pod("web");
    let mut f = facts();
    Arc::make_mut(&mut f.node).allocatable.remove("ephemeral-storage");
    let c = &mut p.containers[0];
    c.resources.requests.insert("cpu".into(), "1100m".parse().unwrap());
    c.resources.requests.insert("memory".into(), "100Mi".parse().unwrap());
    c.resources.limits.insert("hugepages-2Mi".into(), "4Mi".parse().unwrap());
    let ask = |p: &Pod, resource: &str, divisor: &str| {
        let divisor = (!divisor.is_empty()).then(|| divisor.parse().unwrap());
        let field = ResourceFieldRef { container: None, resource: resource.into(), divisor };
        super::resource(p, Some(&p.containers[0]), &f, &field)
    };
    for (resource, divisor, value) in [
        ("requests.cpu", "", "2"),
        ("requests.cpu", "0", "2"),
        ("requests.cpu", "1m", "1100"),
        ("requests.memory", "1M", "105"),
        ("requests.memory", "", "104857600"),
        ("requests.ephemeral-storage", "", "0"),
        ("limits.cpu", "1m", "4000"),
        ("limits.memory", "1Gi", "8"),
        ("limits.ephemeral-storage", "", "0"),
        ("limits.hugepages-2Mi", "1Mi", "4"),
        ("requests.hugepages-1Gi", "", "0"),
    ] {
        assert_eq!(ask(&p, resource, divisor).as_deref(), Ok(value), "{resource} in {divisor}");
    }
    for bad in ["cpu", "limits", "limits.gpu", "max.cpu", ""] {
        assert!(matches!(ask(&p, bad, ""), Err(FieldError::Resource(_))), "{bad}");
    }
    p.resources = Some(Default::default());
    p.resources.as_mut().unwrap().limits.insert("cpu".into(), "3".parse().unwrap());
    assert_eq!(ask(&p, "limits.cpu", "").as_deref(), Ok("3"), "the pod's own limit comes before the node's");
}

#[test]
fn a_resource_field_may_name_another_container() {
    let mut p = pod("web");
    let mut other = container("other");
    other.resources.limits.insert("memory".into(), "5Mi".parse().unwrap());
    p.init_containers.push(other);
    let named = |n: &str| ResourceFieldRef {
        container: Some(n.parse().unwrap()),
        resource: "limits.memory".into(),
        divisor: None,
    };
    assert_eq!(resource(&p, None, &facts(), &named("other")).as_deref(), Ok("5242880"));
    let unnamed = ResourceFieldRef { container: None, ..named("other") };
    assert_eq!(resource(&p, None, &facts(), &unnamed), Err(FieldError::NoContainer));
    assert_eq!(resource(&p, None, &facts(), &named("gone")), Err(FieldError::Container("gone".into())));
}
