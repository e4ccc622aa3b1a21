//! The types of `/stats/summary` as they are encoded. Names and optional fields are upstream's.

use serde::Serialize;

#[derive(Debug, Serialize)]
pub(super) struct Summary<'a> {
    pub(super) node: Node<'a>,
    pub(super) pods: Vec<Pod<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Node<'a> {
    pub(super) node_name: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) system_containers: Vec<Container<'a>>,
    pub(super) start_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu: Option<Cpu<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memory: Option<Memory<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) io: Option<Io<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) network: Option<Network<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fs: Option<Fs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) runtime: Option<RuntimeFs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rlimit: Option<Rlimit<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) swap: Option<Swap<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RuntimeFs<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) image_fs: Option<Fs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) container_fs: Option<Fs<'a>>,
}

#[derive(Debug, Serialize)]
pub(super) struct Rlimit<'a> {
    pub(super) time: &'a str,
    pub(super) maxpid: u64,
    pub(super) curproc: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pod<'a> {
    pub(super) pod_ref: PodReference<'a>,
    pub(super) start_time: String,
    pub(super) containers: Vec<Container<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu: Option<Cpu<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memory: Option<Memory<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) io: Option<Io<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) network: Option<Network<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) volume: Vec<Volume<'a>>,
    #[serde(rename = "ephemeral-storage", skip_serializing_if = "Option::is_none")]
    pub(super) ephemeral_storage: Option<Fs<'a>>,
    #[serde(rename = "process_stats", skip_serializing_if = "Option::is_none")]
    pub(super) process_stats: Option<Processes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) swap: Option<Swap<'a>>,
}

#[derive(Debug, Serialize)]
pub(super) struct PodReference<'a> {
    pub(super) name: &'a str,
    pub(super) namespace: &'a str,
    pub(super) uid: &'a str,
}

#[derive(Debug, Serialize)]
pub(super) struct Processes {
    pub(super) process_count: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Container<'a> {
    pub(super) name: &'a str,
    pub(super) start_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu: Option<Cpu<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memory: Option<Memory<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) io: Option<Io<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rootfs: Option<Fs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) logs: Option<Fs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) swap: Option<Swap<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cpu<'a> {
    pub(super) time: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage_nano_cores: Option<u64>,
    pub(super) usage_core_nano_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) psi: Option<Psi>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Memory<'a> {
    pub(super) time: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) available_bytes: Option<u64>,
    pub(super) usage_bytes: u64,
    pub(super) working_set_bytes: u64,
    pub(super) rss_bytes: u64,
    pub(super) page_faults: u64,
    pub(super) major_page_faults: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) psi: Option<Psi>,
}

#[derive(Debug, Serialize)]
pub(super) struct Io<'a> {
    pub(super) time: &'a str,
    pub(super) psi: Psi,
}

#[derive(Debug, Serialize)]
pub(super) struct Psi {
    pub(super) full: PsiLine,
    pub(super) some: PsiLine,
}

#[derive(Debug, Serialize)]
pub(super) struct PsiLine {
    pub(super) total: u64,
    pub(super) avg10: f64,
    pub(super) avg60: f64,
    pub(super) avg300: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Swap<'a> {
    pub(super) time: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) swap_available_bytes: Option<u64>,
    pub(super) swap_usage_bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetworkInterface<'a> {
    pub(super) name: &'a str,
    pub(super) rx_bytes: u64,
    pub(super) rx_errors: u64,
    pub(super) tx_bytes: u64,
    pub(super) tx_errors: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Network<'a> {
    pub(super) time: &'a str,
    #[serde(flatten)]
    pub(super) main: NetworkInterface<'a>,
    pub(super) interfaces: Vec<NetworkInterface<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Fs<'a> {
    pub(super) time: &'a str,
    pub(super) available_bytes: u64,
    pub(super) capacity_bytes: u64,
    pub(super) used_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) inodes_free: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) inodes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) inodes_used: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Volume<'a> {
    #[serde(flatten)]
    pub(super) fs: Fs<'a>,
    pub(super) name: String,
    #[serde(rename = "pvcRef", skip_serializing_if = "Option::is_none")]
    pub(super) pvc_ref: Option<PvcRef>,
    #[serde(rename = "volumeHealthStats", skip_serializing_if = "Option::is_none")]
    pub(super) health: Option<VolumeHealth>,
}

#[derive(Debug, Serialize)]
pub(super) struct PvcRef {
    pub(super) name: String,
    pub(super) namespace: String,
}

#[derive(Debug, Serialize)]
pub(super) struct VolumeHealth {
    pub(super) abnormal: bool,
}
