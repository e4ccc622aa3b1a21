//! The text of a pod's `/etc/resolv.conf`.

use crate::{Error, PodFacts, hosts::one_word};
use berth_core::{
    event::Event,
    model::{DnsPolicy, Pod},
};
use std::{collections::BTreeSet, net::IpAddr};

/// Limit of nameservers: resolvers use no more.
const MAX_NAMESERVERS: usize = 3;
/// Limit of search domains.
const MAX_SEARCHES: usize = 32;
/// Limit of the search line after `search `, in bytes.
const MAX_SEARCH_LINE: usize = 2048;
/// Limit of a domain in bytes. A longer one is left out, since some resolvers abort on it.
const MAX_DOMAIN: usize = 253;

/// A resolver configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ResolvConf {
    nameservers: Vec<String>,
    searches: Vec<String>,
    /// Options by name and value (`ndots:5`), each name once.
    options: Vec<(String, Option<String>)>,
}

impl ResolvConf {
    /// Parses a resolver file. Nameservers add up; of several search lines, and of equal options, the last counts. Unknown
    /// lines are skipped.
    pub(crate) fn parse(text: &str) -> ResolvConf {
        let mut conf = ResolvConf::default();
        for line in text.lines().map(str::trim).filter(|l| !l.starts_with('#')) {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => conf.nameservers.extend(words.next().map(str::to_owned)),
                Some("search") => {
                    conf.searches =
                        words.map(|d| d.trim_end_matches('.').to_owned()).filter(|d| !d.is_empty()).collect();
                }
                Some("options") => {
                    for word in words {
                        let (name, value) = match word.split_once(':') {
                            Some((name, value)) => (name, Some(value.to_owned())),
                            None => (word, None),
                        };
                        if !name.is_empty() {
                            conf.set_option(name, value);
                        }
                    }
                }
                _ => {}
            }
        }
        conf
    }

    fn set_option(&mut self, name: &str, value: Option<String>) {
        match self.options.iter_mut().find(|(n, _)| n == name) {
            Some((_, v)) => *v = value,
            None => self.options.push((name.to_owned(), value)),
        }
    }

    /// The file's text, in the order search, nameserver, options; an empty part has no line.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.nameservers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            let words: Vec<String> = self
                .options
                .iter()
                .map(|(name, value)| match value.as_deref().filter(|v| !v.is_empty()) {
                    Some(value) => format!("{name}:{value}"),
                    None => name.clone(),
                })
                .collect();
            text.push_str(&format!("options {}\n", words.join(" ")));
        }
        text
    }
}

/// The configuration of `pod`. `node` is the node's own, or `None` if that is not used (`resolvConf: ""`). The events say
/// what was left out.
pub(crate) fn pod_conf(
    pod: &Pod,
    facts: &PodFacts,
    node: Option<ResolvConf>,
) -> Result<(ResolvConf, Vec<Event>), Error> {
    let mut events = Vec::new();
    let mut conf = match base(pod.dns.policy, pod.namespaces.host_network) {
        Base::Nothing => ResolvConf::default(),
        Base::Cluster if !facts.node.cluster_dns.is_empty() => {
            cluster_first(pod, facts, node.unwrap_or_default())
        }
        Base::Cluster => {
            events.push(Event::warning(
                "MissingClusterDNS",
                "the node has no cluster DNS address, so that dnsPolicy ClusterFirst cannot be followed; \
                 dnsPolicy Default is used",
            ));
            node.unwrap_or_else(|| no_resolver(facts))
        }
        Base::Node => node.unwrap_or_else(|| no_resolver(facts)),
    };
    merge_dns_config(&mut conf, pod)?;
    apply_limits(&mut conf, &mut events);
    Ok((conf, events))
}

/// The configuration from which a pod's starts.
enum Base {
    Nothing,
    Cluster,
    Node,
}

fn base(policy: DnsPolicy, host_network: bool) -> Base {
    match policy {
        DnsPolicy::None => Base::Nothing,
        DnsPolicy::ClusterFirstWithHostNet => Base::Cluster,
        DnsPolicy::ClusterFirst if !host_network => Base::Cluster,
        DnsPolicy::ClusterFirst | DnsPolicy::Default => Base::Node,
    }
}

fn cluster_first(pod: &Pod, facts: &PodFacts, node: ResolvConf) -> ResolvConf {
    let searches = match facts.node.cluster_domain.as_deref().filter(|d| !d.is_empty()) {
        Some(domain) => {
            let own =
                [format!("{}.svc.{domain}", pod.key.namespace), format!("svc.{domain}"), domain.to_owned()];
            unique(own.into_iter().chain(node.searches))
        }
        None => node.searches,
    };
    ResolvConf {
        nameservers: facts.node.cluster_dns.iter().map(IpAddr::to_string).collect(),
        searches,
        options: vec![("ndots".to_owned(), Some("5".to_owned()))],
    }
}

/// The configuration without a resolver: it names the pod's own loopback, as the kubelet's does.
fn no_resolver(facts: &PodFacts) -> ResolvConf {
    let mut nameservers: Vec<String> =
        facts.node.ips.iter().map(|ip| if ip.is_ipv6() { "::1" } else { "127.0.0.1" }.to_owned()).collect();
    if nameservers.is_empty() {
        nameservers.push("127.0.0.1".to_owned());
    }
    ResolvConf { nameservers, searches: vec![".".to_owned()], options: Vec::new() }
}

fn merge_dns_config(conf: &mut ResolvConf, pod: &Pod) -> Result<(), Error> {
    let dns = &pod.dns;
    let check = |field: &'static str, text: &str| {
        if one_word(text) {
            Ok(())
        } else {
            Err(Error::PodText { field, text: text.to_owned(), reason: "must be one word" })
        }
    };
    let servers = std::mem::take(&mut conf.nameservers);
    conf.nameservers = unique(servers.into_iter().chain(dns.nameservers.iter().map(IpAddr::to_string)));
    dns.searches.iter().try_for_each(|s| check("spec.dnsConfig.searches", s))?;
    let searches = std::mem::take(&mut conf.searches);
    conf.searches = unique(searches.into_iter().chain(dns.searches.iter().cloned()));
    for (name, value) in &dns.options {
        check("spec.dnsConfig.options[].name", name)?;
        if let Some(value) = value.as_deref().filter(|v| !v.is_empty()) {
            check("spec.dnsConfig.options[].value", value)?;
        }
        conf.set_option(name, value.clone());
    }
    Ok(())
}

fn unique(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    texts.filter(|t| seen.insert(t.clone())).collect()
}

/// Leaves out entries beyond the limits of resolvers, with an event for each kind.
fn apply_limits(conf: &mut ResolvConf, events: &mut Vec<Event>) {
    if conf.nameservers.len() > MAX_NAMESERVERS {
        conf.nameservers.truncate(MAX_NAMESERVERS);
        events.push(Event::warning(
            "DNSConfigForming",
            format!(
                "more than {MAX_NAMESERVERS} nameservers, the rest is left out: {}",
                conf.nameservers.join(" ")
            ),
        ));
    }
    let wanted = conf.searches.len();
    conf.searches.truncate(MAX_SEARCHES);
    conf.searches.retain(|s| s.len() <= MAX_DOMAIN);
    let mut line = 0usize;
    let fitting = conf
        .searches
        .iter()
        .take_while(|s| {
            line += s.len() + usize::from(line > 0);
            line <= MAX_SEARCH_LINE
        })
        .count();
    conf.searches.truncate(fitting);
    if conf.searches.len() < wanted {
        events.push(Event::warning(
            "DNSConfigForming",
            format!(
                "search domains beyond {MAX_SEARCHES}, beyond {MAX_SEARCH_LINE} characters a line or \
                 {MAX_DOMAIN} a domain are left out: {}",
                conf.searches.join(" ")
            ),
        ));
    }
}

#[cfg(test)]
mod tests;
