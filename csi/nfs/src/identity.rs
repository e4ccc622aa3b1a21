//! The identity service: the driver's name and what it can do.

use crate::args::Mode;
use berth_csi_proto::csi::{
    self, GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse,
    plugin_capability::{self, Service, VolumeExpansion, service, volume_expansion},
};
use tonic::{Request, Response, Status};

/// The identity service.
#[derive(Debug)]
pub(crate) struct Identity {
    /// The driver's name.
    pub(crate) name: String,
    /// The services that run.
    pub(crate) mode: Mode,
}

#[tonic::async_trait]
impl csi::identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        let vendor_version = env!("CARGO_PKG_VERSION").to_owned();
        let info = GetPluginInfoResponse { name: self.name.clone(), vendor_version, ..Default::default() };
        Ok(Response::new(info))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let mut capabilities = Vec::new();
        if self.mode.has_controller() {
            let service = Service { r#type: service::Type::ControllerService.into() };
            let expansion = VolumeExpansion { r#type: volume_expansion::Type::Online.into() };
            capabilities.extend(
                [
                    plugin_capability::Type::Service(service),
                    plugin_capability::Type::VolumeExpansion(expansion),
                ]
                .map(|kind| PluginCapability { r#type: Some(kind) }),
            );
        }
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        // A server that is gone concerns its volumes, not the driver.
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}
