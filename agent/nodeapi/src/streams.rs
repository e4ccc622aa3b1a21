//! Routes with streams: exec, attach, run and port-forward. Serves a request that is authenticated and authorised; the
//! request is passed whole, so that its connection can be upgraded.

use crate::{
    Caller, Connection, NodeBackend, ResponseBody, response,
    routes::{Handler, Target},
};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use std::sync::Arc;

/// Serves a request for a stream.
pub(crate) async fn serve(
    _node: &Arc<dyn NodeBackend>,
    (_caller, _connection): (&Caller, &Arc<Connection>),
    _handler: Handler,
    _target: Target<'_>,
    _request: Request<Incoming>,
) -> Response<ResponseBody> {
    response::text(StatusCode::NOT_IMPLEMENTED, "cannot serve streams: not implemented\n")
}
