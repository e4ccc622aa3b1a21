//! Errors of the agent's parts as answers on the local socket.

use berth_api::message::ErrorCode;
use berth_core::{error::Chain, plan::Failure};
use berth_server::ApiError;

/// The answer for an error of the runtime: [`ErrorCode::Unavailable`] where containerd did not
/// answer.
pub(super) fn from_runtime(error: &berth_runtime::Error) -> ApiError {
    let code = if error.is_unknown() { ErrorCode::Unavailable } else { ErrorCode::Failed };
    ApiError::new(code, Chain(error))
}

/// The answer while the agent is not connected to containerd.
pub(super) fn unavailable(failure: Failure) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, failure.message)
}
