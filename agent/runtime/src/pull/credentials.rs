//! Answers to containerd's questions for a credential: one task for each pull, which ends with the pull. The credential
//! goes to the daemon over its socket and nowhere else.

use crate::{
    client::Client,
    error::Error,
    stream::{Stream, open},
    wire,
};
use berth_core::image::Credential;
use containerd_client::{
    to_any,
    types::transfer::{AuthResponse, AuthType},
};
use prost_types::Any;
use tokio::task::JoinHandle;

/// The running task. Dropping it ends the task and its stream.
pub(super) struct Answers {
    stream: String,
    task: JoinHandle<()>,
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Answers {
    /// Opens the stream and starts to answer.
    pub(super) async fn start(
        client: &Client,
        lease: &str,
        credential: Credential,
    ) -> Result<Answers, Error> {
        let Stream { id, send, mut receive } = open(client, "credential", lease).await?;
        let task = tokio::spawn(async move {
            while let Ok(Some(question)) = receive.message().await {
                if !is_question(&question) {
                    continue;
                }
                if send.send(to_any(&answer(&credential))).await.is_err() {
                    return;
                }
            }
        });
        Ok(Answers { stream: id, task })
    }

    /// The stream's id, for the request of the transfer.
    pub(super) fn stream(&self) -> &str {
        &self.stream
    }
}

fn is_question(any: &Any) -> bool {
    wire::type_name(any) == "containerd.types.transfer.AuthRequest"
}

fn answer(credential: &Credential) -> AuthResponse {
    let (username, secret) = credential.parts();
    let kind = match (username, secret) {
        ("", "") => AuthType::None,
        ("", _) => AuthType::Refresh,
        _ => AuthType::Credentials,
    };
    AuthResponse {
        auth_type: kind.into(),
        secret: secret.to_owned(),
        username: username.to_owned(),
        ..AuthResponse::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::image::Hidden;
    use containerd_client::types::transfer::{AuthRequest, WindowUpdate};

    #[test]
    fn a_name_with_a_password_and_an_identity_token_differ() {
        let basic = answer(&Credential::basic("me", "p"));
        assert_eq!((basic.auth_type(), &*basic.username, &*basic.secret), (AuthType::Credentials, "me", "p"));
        let token = answer(&Credential { identity_token: Hidden::new("t"), ..Credential::default() });
        assert_eq!((token.auth_type(), &*token.username, &*token.secret), (AuthType::Refresh, "", "t"));
        assert_eq!(answer(&Credential::default()).auth_type(), AuthType::None);
    }

    #[test]
    fn only_questions_are_answered() {
        assert!(is_question(&to_any(&AuthRequest::default())));
        assert!(!is_question(&to_any(&WindowUpdate::default())));
    }
}
