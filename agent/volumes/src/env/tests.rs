use super::*;
use crate::testing::{config_map, container, facts, keyed, pod};
use berth_core::model::{EnvFrom, EnvVar, ResourceFieldRef};
use proptest::prelude::*;

fn var(name: &str, value: EnvValue) -> EnvVar {
    EnvVar { name: name.into(), value }
}

fn text_var(name: &str, value: &str) -> EnvVar {
    var(name, EnvValue::Text(value.into()))
}

fn key(name: &str, key: &str, optional: bool) -> KeyRef {
    KeyRef { name: name.into(), key: key.into(), optional }
}

fn from(prefix: &str, source: EnvFromSource, optional: bool) -> EnvFrom {
    EnvFrom { prefix: prefix.into(), source, optional }
}

fn run(
    c: &Container,
    objects: &Objects,
    services: &[(&str, &str)],
) -> Result<Vec<(String, String)>, EnvError> {
    let services: Vec<_> = services.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    resolve(&pod("web"), c, &facts(), objects, &services)
}

fn pairs(env: &[(String, String)]) -> Vec<(&str, &str)> {
    env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()
}

#[test]
fn env_wins_over_env_from_and_that_over_service_variables() {
    let mut c = container("main");
    let objects = config_map("cm", &[("A", b"from-cm"), ("SVC_HOST", b"cm-svc"), ("B", b"b")]);
    c.env_from = vec![from("", EnvFromSource::ConfigMap("cm".into()), false)];
    c.env = vec![
        text_var("B", "env-b"),
        text_var("C", "$(A)-$(B)-$(SVC_PORT)-$(D)-$$(A)"),
        text_var("D", "late"),
        text_var("C", "$(C)!"),
    ];
    let env = run(&c, &objects, &[("SVC_HOST", "1.1.1.1"), ("SVC_PORT", "80")]).unwrap();
    assert_eq!(
        pairs(&env),
        [
            ("SVC_PORT", "80"),
            ("A", "from-cm"),
            ("SVC_HOST", "cm-svc"),
            ("B", "env-b"),
            ("D", "late"),
            ("C", "from-cm-env-b-80-$(D)-$(A)!"),
        ]
    );
}

#[test]
fn env_from_has_prefixes_and_skips_binary_data() {
    let mut c = container("main");
    let mut objects = Objects::listed();
    let binary_data = [("bin", &b"\xff\xfe"[..]), ("t", b"hi")].map(|(k, v)| (k.to_owned(), v.to_vec()));
    objects.put_config_map(KeyedData {
        binary_data: binary_data.into(),
        ..keyed("cm", &[("k.with-dots", b"v")])
    });
    objects.put_secret(keyed("s", &[("pw", b"x")]));
    c.env_from = vec![
        from("P_", EnvFromSource::ConfigMap("cm".into()), false),
        from("", EnvFromSource::Secret("s".into()), false),
        from("", EnvFromSource::Secret("gone".into()), true),
    ];
    c.env = vec![var("T", EnvValue::ConfigMapKey(key("cm", "t", true)))];
    assert_eq!(pairs(&run(&c, &objects, &[]).unwrap()), [("P_k.with-dots", "v"), ("pw", "x")]);
    c.env = vec![var("T", EnvValue::ConfigMapKey(key("cm", "t", false)))];
    assert_eq!(
        run(&c, &objects, &[]).unwrap_err().message(),
        "couldn't find key t in ConfigMap default/cm",
        "text or not: it is binaryData"
    );
}

#[test]
fn a_missing_object_or_key_has_the_kubelets_error() {
    let objects = {
        let mut o = config_map("cm", &[("k", b"v")]);
        o.put_secret(keyed("s", &[("k", b"v"), ("raw", b"\xff")]));
        o
    };
    let cases: [(EnvValue, &str); 6] = [
        (EnvValue::ConfigMapKey(key("no", "k", false)), "configmap \"no\" not found"),
        (EnvValue::SecretKey(key("no", "k", false)), "secret \"no\" not found"),
        (EnvValue::ConfigMapKey(key("cm", "x", false)), "couldn't find key x in ConfigMap default/cm"),
        (EnvValue::SecretKey(key("s", "x", false)), "couldn't find key x in Secret default/s"),
        (EnvValue::SecretKey(key("s", "raw", false)), "environment variable \"V\" is not UTF-8 text"),
        (
            EnvValue::Field("spec.nope".into()),
            "environment variable \"V\" has no value: unsupported fieldPath: spec.nope",
        ),
    ];
    for (value, text) in cases {
        let mut c = container("main");
        c.env = vec![var("V", value)];
        assert_eq!(run(&c, &objects, &[]).unwrap_err().message(), text);
    }
    let mut c = container("main");
    c.env_from = vec![from("", EnvFromSource::ConfigMap("gone".into()), false)];
    assert_eq!(
        run(&c, &objects, &[]).unwrap_err(),
        EnvError::MissingObject { kind: ObjectKind::ConfigMap, name: "gone".into() }
    );
}

#[test]
fn optional_references_leave_the_variable_out() {
    let mut c = container("main");
    c.env = vec![
        var("A", EnvValue::ConfigMapKey(key("no", "k", true))),
        var("B", EnvValue::SecretKey(key("no", "k", true))),
        var("C", EnvValue::ConfigMapKey(key("cm", "x", true))),
        text_var("D", "$(A)"),
    ];
    assert_eq!(pairs(&run(&c, &config_map("cm", &[("k", b"v")]), &[]).unwrap()), [("D", "$(A)")]);
}

#[test]
fn fields_and_resources_become_values_of_variables() {
    let mut c = container("main");
    c.resources.limits.insert("cpu".into(), "1500m".parse().unwrap());
    let field = |p: &str| EnvValue::Field(p.into());
    let resource = |r: &str, d: Option<&str>| {
        EnvValue::Resource(ResourceFieldRef {
            container: None,
            resource: r.into(),
            divisor: d.map(|d| d.parse().unwrap()),
        })
    };
    c.env = vec![
        var("IP", field("status.podIP")),
        var("NODE", field("spec.nodeName")),
        var("CPU", resource("limits.cpu", None)),
        var("MCPU", resource("limits.cpu", Some("1m"))),
        var("MEM", resource("limits.memory", Some("1Mi"))),
        text_var("ALL", "$(IP)/$(CPU)"),
    ];
    assert_eq!(
        pairs(&run(&c, &Objects::listed(), &[]).unwrap()),
        [
            ("IP", "10.1.2.3"),
            ("NODE", "node-1"),
            ("CPU", "2"),
            ("MCPU", "1500"),
            ("MEM", "8192"),
            ("ALL", "10.1.2.3/2")
        ]
    );
}

#[test]
fn a_variable_that_no_process_can_have_is_an_error() {
    for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0y")] {
        let mut c = container("main");
        c.env = vec![text_var(name, value)];
        assert!(
            matches!(run(&c, &Objects::listed(), &[]), Err(EnvError::Invalid { .. })),
            "{name:?}={value:?}"
        );
    }
}

#[test]
fn expansion_follows_the_table() {
    let env =
        [("A", "1"), ("B", "$(A)"), ("A", "2"), ("EMPTY", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    for (text, expected) in [
        ("", ""),
        ("plain", "plain"),
        ("$(A)", "2"),
        ("$(B)", "$(A)"),
        ("x$(A)y$(A)", "x2y2"),
        ("$(EMPTY)", ""),
        ("$(NOPE)", "$(NOPE)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$2"),
        ("$$$$", "$$"),
        ("$", "$"),
        ("$x", "$x"),
        ("$(A", "$(A"),
        ("$($(A))", "$($(A))"),
        ("$()", "$()"),
        ("$é(A)", "$é(A)"),
        ("$(é)", "$(é)"),
        ("$A $(A)$", "$A 2$"),
    ] {
        assert_eq!(expand(text, &env), expected, "{text:?}");
    }
}

/// A second implementation of the same rules, one character at a time.
fn reference(text: &str, env: &[(String, String)]) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::new();
    let mut i = 0;
    while i < chars.len() {
        if chars[i] != '$' || i + 1 == chars.len() {
            out.push(chars[i]);
            i += 1;
        } else if chars[i + 1] == '$' {
            out.push('$');
            i += 2;
        } else if let (true, Some(end)) = (chars[i + 1] == '(', chars[i..].iter().position(|c| *c == ')')) {
            let name: String = chars[i + 2..i + end].iter().collect();
            match env.iter().rfind(|(n, _)| *n == name) {
                Some((_, value)) => out.push_str(value),
                None => out.extend(&chars[i..=i + end]),
            }
            i += end + 1;
        } else {
            out.push('$');
            i += 1;
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn expansion_equals_the_reference(
        text in "[$()AB€ ]{0,16}",
        values in prop::collection::vec(("[AB]{1,2}", "[$()A]{0,4}"), 0..4),
    ) {
        prop_assert_eq!(expand(&text, &values), reference(&text, &values));
    }

    #[test]
    fn any_environment_is_resolved_or_an_error(
        vars in prop::collection::vec(("\\PC{0,3}", "[$()=A\\x00-\\x7f]{0,8}"), 0..6),
    ) {
        let mut c = container("main");
        c.env = vars.iter().map(|(n, v)| text_var(n, v)).collect();
        if let Ok(env) = run(&c, &Objects::listed(), &[]) {
            let names: std::collections::BTreeSet<_> = env.iter().map(|(n, _)| n).collect();
            prop_assert_eq!(names.len(), env.len());
            prop_assert!(env.iter().all(|(n, v)| !n.is_empty() && !n.contains('=') && !v.contains('\0')));
        }
    }
}
