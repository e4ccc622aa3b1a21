//! The connection to containerd: one channel that redials lazily, and one function for all calls.
//!
//! Every request carries the containerd namespace and a deadline, which both sides enforce: containerd
//! cancels its work at the deadline, and the caller gives up shortly after, even without an answer. After a
//! restart of containerd the next call reaches the new process; calls in progress during the restart fail as
//! [`Kind::Unavailable`].

use crate::error::{Answer, Error, Kind};
use containerd_client::services::v1 as services;
use hyper_util::rt::TokioIo;
use std::{fmt::Display, future::Future, path::Path, time::Duration};
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

/// Deadline of reads and writes of containerd's own records: one bolt transaction.
pub(crate) const RECORD: Duration = Duration::from_secs(10);
/// Deadline of queries to a shim that need no runc.
pub(crate) const QUERY: Duration = Duration::from_secs(10);
/// Deadline of runc's work on a container: create, start, exec, delete. The shim itself gives up opening
/// FIFOs after 30 s.
pub(crate) const WORK: Duration = Duration::from_secs(60);
/// Deadline of lists over all shims: containerd asks them one after the other and waits 2 s for each that
/// does not answer.
pub(crate) const LIST: Duration = Duration::from_secs(60);
/// Deadline of unpacking one image.
pub(crate) const UNPACK: Duration = Duration::from_secs(600);

/// Extra time that the caller waits beyond the deadline of containerd.
const SLACK: Duration = Duration::from_millis(500);
/// Maximum message size, equal to containerd's own limit.
const MAX_MESSAGE: usize = 16 << 20;

/// Clients for each service over one channel.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
}

macro_rules! service {
    ($name:ident, $client:ty) => {
        pub(crate) fn $name(&self) -> $client {
            <$client>::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
        }
    };
}

impl Client {
    /// A client of the daemon behind `socket`. The first call dials.
    pub(crate) fn new(socket: &Path, namespace: &str) -> Result<Client, Error> {
        let value = namespace.parse().map_err(|_invalid| Error::Config {
            what: "containerd namespace",
            value: namespace.to_owned(),
        })?;
        let path = socket.to_path_buf();
        // This address is never resolved: the connector below dials the socket.
        let endpoint = Endpoint::from_static("http://containerd.invalid");
        let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }));
        Ok(Client { channel, namespace: value })
    }

    service!(containers, services::containers_client::ContainersClient<Channel>);
    service!(content, services::content_client::ContentClient<Channel>);
    service!(diff, services::diff_client::DiffClient<Channel>);
    service!(events, services::events_client::EventsClient<Channel>);
    service!(images, services::images_client::ImagesClient<Channel>);
    service!(introspection, services::introspection_client::IntrospectionClient<Channel>);
    service!(leases, services::leases_client::LeasesClient<Channel>);
    service!(sandboxes, services::sandbox::store_client::StoreClient<Channel>);
    service!(snapshots, services::snapshots::snapshots_client::SnapshotsClient<Channel>);
    service!(streaming, services::streaming_client::StreamingClient<Channel>);
    service!(tasks, services::tasks_client::TasksClient<Channel>);
    service!(transfer, services::transfer_client::TransferClient<Channel>);
    service!(version, services::version_client::VersionClient<Channel>);

    /// A request in the node's containerd namespace without a deadline, for a stream.
    pub(crate) fn endless<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// A request in the node's containerd namespace with a deadline.
    pub(crate) fn request<T>(&self, message: T, deadline: Duration) -> Request<T> {
        let mut request = self.endless(message);
        request.set_timeout(deadline);
        request
    }

    /// As [`Client::request`]; the lease holds the resources that the call creates.
    pub(crate) fn leased<T>(&self, message: T, deadline: Duration, lease: &str) -> Request<T> {
        self.with_lease(self.request(message, deadline), lease)
    }

    /// The request, whose resources are held by the lease.
    pub(crate) fn with_lease<T>(&self, mut request: Request<T>, lease: &str) -> Request<T> {
        // A lease id consists of letters, digits and dashes, so it always parses; without it the call is
        // still correct.
        if let Ok(value) = lease.parse() {
            request.metadata_mut().insert("containerd-lease", value);
        }
        request
    }
}

/// Waits for a call's answer, at most its deadline and the slack. The answer is boxed at once: gRPC futures
/// have several kilobytes, and each caller's future would contain them.
pub(crate) fn call<'a, T: 'a>(
    operation: &'static str,
    subject: impl Display + 'a,
    deadline: Duration,
    answer: impl Future<Output = Result<Response<T>, Status>> + 'a,
) -> impl Future<Output = Result<T, Error>> + 'a {
    let answer = Box::pin(answer);
    async move {
        match tokio::time::timeout(deadline + SLACK, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(from_status(operation, &subject, deadline, status)),
            Err(_elapsed) => {
                Err(Error::Deadline { operation, subject: subject.to_string(), after: deadline })
            }
        }
    }
}

/// Converts the gRPC status of a failed call to the typed error.
pub(crate) fn from_status(
    operation: &'static str,
    subject: &impl Display,
    deadline: Duration,
    status: Status,
) -> Error {
    let kind = classify(&status);
    if kind == Kind::Deadline {
        return Error::Deadline { operation, subject: subject.to_string(), after: deadline };
    }
    Error::Call { operation, subject: subject.to_string(), kind, source: Answer::from(status) }
}

fn classify(status: &Status) -> Kind {
    match status.code() {
        Code::NotFound => Kind::NotFound,
        Code::AlreadyExists => Kind::AlreadyExists,
        Code::Unavailable => Kind::Unavailable,
        Code::DeadlineExceeded => Kind::Deadline,
        // tonic's own timer, which is set to the same deadline.
        Code::Cancelled if status.message() == "Timeout expired" => Kind::Deadline,
        Code::Cancelled => Kind::Unavailable,
        Code::FailedPrecondition => Kind::Precondition,
        // A stream that broke below gRPC did not come from containerd's handler.
        _ if from_transport(status) => Kind::Unavailable,
        // The shim's own error text has no code.
        Code::Unknown if status.message().contains("ttrpc: closed") => Kind::Unavailable,
        Code::Unknown if status.message().contains("cannot delete a running process") => Kind::Precondition,
        _ => Kind::Refused,
    }
}

fn from_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_by_code_and_the_shims_by_its_words() {
        assert_eq!(classify(&Status::not_found("x")), Kind::NotFound);
        assert_eq!(classify(&Status::already_exists("x")), Kind::AlreadyExists);
        assert_eq!(classify(&Status::unavailable("x")), Kind::Unavailable);
        assert_eq!(classify(&Status::deadline_exceeded("x")), Kind::Deadline);
        assert_eq!(classify(&Status::failed_precondition("x")), Kind::Precondition);
        let running = "failed to delete task: cannot delete a running process";
        assert_eq!(classify(&Status::unknown(running)), Kind::Precondition);
        assert_eq!(classify(&Status::unknown("OCI runtime create failed: not found")), Kind::Refused);
    }

    #[tokio::test]
    async fn a_call_without_an_answer_ends_at_its_deadline() {
        let error = call("wait for", "nothing", Duration::from_millis(1), async {
            std::future::pending::<Result<Response<()>, Status>>().await
        })
        .await
        .unwrap_err();
        assert_eq!(error.kind(), Kind::Deadline);
        assert_eq!(error.to_string(), "no answer to wait for nothing within 1ms");
    }
}
