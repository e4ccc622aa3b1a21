//! Mutation tests of standard input: an invalid configuration changes nothing, and the error has
//! the form of the specification.

use crate::{
    commands,
    config::{Config, version_of},
    error::Error,
    names::NetworkId,
    output,
};
use berth_harness::mutate::{Reached, json::Corpus, run};
use serde_json::{Value, json};

fn documents() -> Vec<Value> {
    let all = json!({
        "cniVersion": "1.1.0", "name": "pods", "type": "berth-cni", "dataDir": "/run/x", "quarantineSeconds": 5,
        "ranges": [
            [{"subnet": "10.1.0.0/16", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.9.0", "gateway": "10.1.0.10"},
             {"subnet": "10.2.0.0/24"}],
            [{"subnet": "fd00::/64"}],
        ],
        "mtu": 1400,
        "routes": [{"dst": "192.168.0.0/16"}, {"dst": "fd01::/48", "gw": "fe80::2"}, {"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["10.0.0.2"]},
        "runtimeConfig": {"portMappings": []},
        "prevResult": {
            "cniVersion": "1.1.0", "interfaces": [{"name": "veth0"}, {"name": "eth0", "sandbox": "/x"}],
            "ips": [{"interface": 1, "address": "10.1.0.9/32", "gateway": "169.254.1.1"}, {"address": "fd00::9/128"}],
        },
        "cni.dev/valid-attachments": [{"containerID": "c0ffee", "ifname": "eth0"}],
    });
    let small = json!({"cniVersion": "0.4.0", "name": "a", "subnets": ["10.1.0.0/24", "fd00::/120"]});
    vec![all, small.clone(), small]
}

#[test]
fn mutated_standard_input() {
    let texts = [
        "10.0.0.0/8",
        "0.0.0.0/0",
        "::/0",
        "10.1.0.1/33",
        "10.1.0.255",
        "fd00::1",
        "::ffff:10.0.0.1/120",
        "eth0",
        "1.0.0",
        "0.2.0",
        "../x",
        "10.1.0.0/32",
        "fe80::1%eth0",
        "255.255.255.255",
    ];
    let corpus = Corpus::new(documents(), &texts);
    // The input is read like the commands read it: DEL needs the network only, ADD the plan, CHECK
    // the earlier result, GC the list.
    let read = |text: &[u8]| -> Result<(), Error> {
        let config = Config::parse(text)?;
        let network = config.network()?;
        assert!(network.journal.is_absolute() && network.journal.ends_with(&network.name));
        let previous = config.previous().map(commands::addresses_of);
        assert!(previous.is_none_or(|a| a.len() <= text.len()));
        let id = NetworkId::of(&network.journal);
        for key in config.valid_attachments().into_iter().flatten() {
            assert_eq!(id.key_of_alias(&id.alias(&key)), Some(key));
        }
        let plan = config.plan()?;
        assert!(!plan.sets.is_empty() && plan.sets.iter().all(|s| !s.ranges().is_empty()));
        assert!(plan.mtu.is_none_or(|mtu| (68..=65535).contains(&mtu)));
        assert!(plan.routes.iter().all(|r| r.destination.prefix_len() > 0));
        Ok(())
    };
    for document in corpus.documents() {
        read(document.to_string().as_bytes()).unwrap();
    }
    run(
        "standard input",
        |rng| corpus.text(rng),
        |text| match read(text) {
            Ok(()) => Reached::Taken,
            Err(error) => {
                let said = output::error(&error, &version_of(text));
                assert!(said["code"].as_u64().is_some_and(|c| [1, 6, 7].contains(&c)), "{said}");
                assert!(said["msg"].as_str().is_some_and(|m| !m.is_empty()), "{said}");
                match error {
                    // Input that is not an object is no configuration, but may be valid JSON.
                    Error::Decode(e) if !e.is_data() => Reached::Syntax,
                    _ => Reached::Checks,
                }
            }
        },
    );
}
