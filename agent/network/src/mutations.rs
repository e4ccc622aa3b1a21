//! Mutation tests of foreign input: plugins' answers and configuration files. No panic, no hang, and
//! a required share gets past the JSON parser.

use crate::{Attachment, Conflist, result::PluginFailure};
use berth_harness::mutate::{Reached, json::Corpus, run};
use serde::de::IgnoredAny;
use serde_json::Value;
use std::path::Path;

const TEXTS: &[&str] = &[
    "1.1.0",
    "0.4.0",
    "10.0.0.1/24",
    "10.0.0.1/99",
    "fd00::/129",
    "::",
    "0.0.0.0/0",
    "../../x",
    "berth-cni",
    "veth0",
    "true",
    "plugins",
    "0123456789abcdef0123456789abcdef",
];

/// Runs mutations of these documents through `parse`, which returns whether it accepted the input.
fn mutate(name: &str, documents: &[&str], parse: impl Fn(&[u8]) -> bool) {
    let documents: Vec<Value> = documents.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    let corpus = Corpus::new(documents, TEXTS);
    for document in corpus.documents() {
        assert!(parse(document.to_string().as_bytes()), "{document} is not valid to begin with");
    }
    run(
        name,
        |rng| corpus.text(rng),
        |text| match parse(text) {
            true => Reached::Taken,
            false if serde_json::from_slice::<IgnoredAny>(text).is_ok() => Reached::Checks,
            false => Reached::Syntax,
        },
    );
}

#[test]
fn mutated_plugin_output_is_never_more_than_an_error() {
    let corpus = [
        r#"{"cniVersion":"1.1.0","interfaces":[{"name":"veth0","mac":"02:00:00:00:00:01","mtu":1400},{"name":"eth0",
        "mac":"02:00:00:00:00:02","sandbox":"/run/x","socketPath":"/s","pciID":"0"}],"ips":[{"interface":1,
        "address":"10.0.0.5/32","gateway":"169.254.1.1"},{"interface":1,"address":"fd00::5/128"}],
        "routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1","mtu":1400,"scope":0}],"dns":{"nameservers":["10.0.0.2"]}}"#,
        r#"{"cniVersion":"0.4.0","interfaces":[{"name":"cni0"},{"name":"veth1"},{"name":"eth0","sandbox":"/x"}],
        "ips":[{"version":"4","interface":2,"address":"10.1.0.2/16","gateway":"10.1.0.1"}],"dns":{}}"#,
    ];
    mutate("plugin results", &corpus, |bytes| {
        let parsed = Attachment::parse("p", bytes);
        if let Ok(attachment) = &parsed {
            assert!(attachment.ips.iter().all(|ip| !ip.is_unspecified() && !ip.is_loopback()));
            // An accepted result is accepted again from the attachment file.
            assert!(Attachment::of("p", attachment.result.clone()).unwrap() == *attachment);
        }
        parsed.is_ok()
    });
    mutate(
        "plugin errors",
        &[r#"{"cniVersion":"1.1.0","code":11,"msg":"busy","details":"later"}"#],
        |bytes| {
            let failure = PluginFailure::parse(bytes, "", "exit status: 1");
            assert!(!failure.message.is_empty() && failure.message.chars().count() <= 2048);
            assert!(!failure.message.contains(char::is_control), "{failure}");
            failure.message != "exit status: 1"
        },
    );
}

#[test]
fn mutated_configuration_is_never_more_than_an_error() {
    let corpus = [
        r#"{"cniVersion":"1.1.0","cniVersions":["0.4.0","1.0.0"],"name":"pods","disableCheck":false,"disableGC":"true",
        "plugins":[{"type":"berth-cni","subnets":["10.1.0.0/16","fd00::/64"],"mtu":1400},{"type":"portmap",
        "capabilities":{"portMappings":true}}]}"#,
        r#"{"cniVersion":"1.0.0","name":"ref","plugins":[{"type":"bridge","ipam":{"type":"host-local",
        "ranges":[[{"subnet":"10.2.0.0/16","rangeStart":"10.2.0.5"}]],"subnet":"10.3.0.0/16"}}]}"#,
        r#"{"cniVersion":"0.3.1","name":"single","type":"ptp","ipam":{"type":"host-local","subnet":"10.4.0.0/24"}}"#,
    ];
    mutate("conflists", &corpus, |bytes| match Conflist::parse(Path::new("/x.conflist"), bytes) {
        Ok(list) => {
            assert!(!list.plugins.is_empty() && list.plugins.iter().all(|p| !p.kind.contains('/')));
            drop(list.pod_cidrs());
            true
        }
        Err(error) => {
            assert!(error.to_string().contains("/x.conflist"), "{error}");
            false
        }
    });
}
