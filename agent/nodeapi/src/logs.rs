//! `/containerLogs`: the output of one run of a container.
//!
//! [`options`] reads the parameters, [`run`] chooses the run by the pod's status, [`writer`] makes the bytes of the answer
//! of records; all pure. [`stream`] reads and sends, one task per request, which ends with the client.
//!
//! The last line of a run that has just ended is there: the answer waits, at most [`LAST_LINES`], until the output of
//! the run is closed.

pub(crate) mod options;
pub(crate) mod run;
pub(crate) mod stream;
pub(crate) mod writer;

use crate::{NodeBackend, PodState, ResponseBody, response, routes::Target};
use berth_core::time::Wall;
use http::{Response, StatusCode};
use options::{LogOptions, WrongOptions};
use std::{sync::Arc, time::Duration};

/// Longest wait for the output of a run that has ended but whose output is not closed yet.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Answers a request for the output of a container.
pub(crate) async fn serve(
    node: &Arc<dyn NodeBackend>,
    target: Target<'_>,
    query: Option<&str>,
    now: Wall,
) -> Response<ResponseBody> {
    let options = match LogOptions::read(query, now) {
        Ok(options) => options,
        Err(wrong) => {
            let code = match wrong {
                WrongOptions::Undecodable => StatusCode::BAD_REQUEST,
                WrongOptions::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            };
            return response::text(code, wrong.to_string());
        }
    };
    let Some(PodState { pod, status }) = node.pod(target.namespace, target.pod) else {
        return response::text(StatusCode::NOT_FOUND, format!("pod {:?} does not exist", target.pod));
    };
    if !pod.all_containers().any(|container| container.name.as_str() == target.container) {
        let text = format!("container {:?} not found in pod {:?}", target.container, target.pod);
        return response::text(StatusCode::NOT_FOUND, text);
    }
    if let Some(stream) = &options.stream {
        let text = format!(
            "unable to return the given log stream: {stream:?}. Please enable PodLogsQuerySplitStreams feature gate in kubelet"
        );
        return response::text(StatusCode::BAD_REQUEST, text);
    }
    let run = match run::run(&pod, &status, target.container, options.previous) {
        Ok(run) => run,
        Err(text) => return response::text(StatusCode::BAD_REQUEST, text),
    };
    match stream::start(Arc::clone(node), run, options).await {
        Ok(body) => response::stream(body),
        Err(error) => response::text(StatusCode::BAD_REQUEST, error.to_string()),
    }
}
