//! The sets of objects that make up the node's desired state, as the reflectors follow them.

use crate::object::{bad, meta};
use berth_core::{
    ids::NodeName,
    model::{CsiDriver, EndpointSlice, Service},
};
use berth_kube::reflector::{Bad, Kind, Meta};
use berth_source::cluster::{self, ApiPod};

/// The pods that are bound to this node.
pub(super) struct Pods {
    node: NodeName,
    query: String,
}

impl Pods {
    pub(super) fn of(node: NodeName) -> Pods {
        Pods { query: format!("fieldSelector=spec.nodeName%3D{node}"), node }
    }
}

impl Kind for Pods {
    type Item = ApiPod;

    fn path(&self) -> &str {
        "/api/v1/pods"
    }

    fn query(&self) -> &str {
        &self.query
    }

    fn read(&self, json: &[u8]) -> Result<(Meta, ApiPod), Bad> {
        let (id, pod, ignored) = cluster::pod(json, &self.node).map_err(bad)?;
        for error in ignored {
            tracing::debug!(pod = %id.name, namespace = %id.namespace, %error, "a value of the pod is ignored");
        }
        Ok((meta(id)?, pod))
    }
}

/// All Services. Those of another proxy are among them, because environment variables name them too; the model marks
/// them as foreign.
pub(super) struct Services;

impl Kind for Services {
    type Item = Service;

    fn path(&self) -> &str {
        "/api/v1/services"
    }

    fn query(&self) -> &str {
        ""
    }

    fn read(&self, json: &[u8]) -> Result<(Meta, Service), Bad> {
        let (id, service) = cluster::service(json).map_err(bad)?;
        Ok((meta(id)?, service))
    }
}

/// The EndpointSlices that kube-proxy serves: neither those of headless Services nor those of another proxy.
pub(super) struct EndpointSlices;

impl Kind for EndpointSlices {
    type Item = Option<EndpointSlice>;

    fn path(&self) -> &str {
        "/apis/discovery.k8s.io/v1/endpointslices"
    }

    fn query(&self) -> &str {
        "labelSelector=%21service.kubernetes.io%2Fheadless%2C%21service.kubernetes.io%2Fservice-proxy-name"
    }

    fn read(&self, json: &[u8]) -> Result<(Meta, Option<EndpointSlice>), Bad> {
        let (id, slice) = cluster::endpoint_slice(json).map_err(bad)?;
        Ok((meta(id)?, slice))
    }
}

/// All CSI drivers of the cluster.
pub(super) struct CsiDrivers;

impl Kind for CsiDrivers {
    type Item = CsiDriver;

    fn path(&self) -> &str {
        "/apis/storage.k8s.io/v1/csidrivers"
    }

    fn query(&self) -> &str {
        ""
    }

    fn read(&self, json: &[u8]) -> Result<(Meta, CsiDriver), Bad> {
        let (id, driver) = cluster::csi_driver(json).map_err(bad)?;
        Ok((meta(id)?, driver))
    }
}
