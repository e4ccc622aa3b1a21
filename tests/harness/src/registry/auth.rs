//! Who may pull: everyone, a name with a password, or a bearer of a token that the registry's own token service gives.

use super::http::Request;
use base64::{Engine, engine::general_purpose::STANDARD};
use std::net::SocketAddr;

/// The access token that the token service gives.
const ACCESS: &str = "access-of-the-test";

/// Who may pull.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Auth {
    /// Any client, without a credential.
    #[default]
    Open,
    /// A name with its password, sent with each request.
    Basic(String, String),
    /// A name with its password, for which the token service gives an access token.
    Token(String, String),
    /// An identity token, for which the token service gives an access token.
    Identity(String),
}

/// What is missing for an answer.
pub(super) struct Challenge(pub(super) String);

impl Auth {
    /// Whether the request may be answered.
    pub(super) fn check(&self, request: &Request, address: SocketAddr, tls: bool) -> Result<(), Challenge> {
        let sent = request.header("authorization").unwrap_or_default();
        match self {
            Auth::Open => Ok(()),
            Auth::Basic(user, password) if sent == basic(user, password) => Ok(()),
            Auth::Basic(..) => Err(Challenge("Basic realm=\"test\"".to_owned())),
            Auth::Token(..) | Auth::Identity(_) if sent == format!("Bearer {ACCESS}") => Ok(()),
            Auth::Token(..) | Auth::Identity(_) => {
                let scheme = if tls { "https" } else { "http" };
                Err(Challenge(format!(
                    "Bearer realm=\"{scheme}://{address}/token\",service=\"test\",scope=\"repository:test:pull\""
                )))
            }
        }
    }

    /// The answer of the token service, as JSON; `None` refuses.
    pub(super) fn token(&self, request: &Request) -> Option<String> {
        let form = String::from_utf8_lossy(&request.body).into_owned();
        let field = |name: &str| {
            let of =
                |pair: &str| pair.split_once('=').filter(|(key, _)| *key == name).map(|(_, v)| v.to_owned());
            form.split('&').find_map(of)
        };
        let allowed = match self {
            Auth::Open | Auth::Basic(..) => false,
            Auth::Token(user, password) => {
                request.header("authorization") == Some(basic(user, password).as_str())
                    || field("username").as_ref() == Some(user)
                        && field("password").as_ref() == Some(password)
            }
            Auth::Identity(token) => field("refresh_token").as_ref() == Some(token),
        };
        allowed
            .then(|| format!("{{\"token\":\"{ACCESS}\",\"access_token\":\"{ACCESS}\",\"expires_in\":300}}"))
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}
