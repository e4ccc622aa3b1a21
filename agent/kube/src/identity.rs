//! The agent's identity at the API server, and the trust in the server: a kubeconfig and the files that it
//! names.
//!
//! [`Source::load`] reads all files once and returns an [`Identity`], a value that does not change.
//! [`Identity::is_stale`] reports whether a file has changed since, or credentials have expired; the pool of
//! connections then loads another identity. Certificate and key are two files and can be read while only one
//! of them has been replaced: that load fails, the old identity stays, and the next check loads both.

mod bootstrap;
mod certificate;
mod exec;
mod kubeconfig;
mod tls;

pub use bootstrap::{DiscoveredCluster, with_token};
pub use certificate::Certificate;
pub use exec::DEADLINE as PLUGIN_DEADLINE;
pub use kubeconfig::Wrong;
pub(crate) use tls::explain;

use crate::Error;
use base64::{Engine, engine::general_purpose::STANDARD};
use berth_sys::fs::read_limited;
use http::{HeaderValue, Uri, uri::Scheme};
use jiff::Timestamp;
use kubeconfig::Chosen;
use rustls::ClientConfig;
use sha2::{Digest, Sha256};
use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Maximum size in bytes of a file of an identity.
const MAX_FILE: usize = 4 * 1024 * 1024;

/// Time before the expiry of a plugin's credentials at which new credentials are made.
const EARLY: Duration = Duration::from_secs(10);

/// Where an identity is loaded from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The kubeconfig.
    pub kubeconfig: PathBuf,
    /// Context to use; `None` for the file's current one.
    pub context: Option<String>,
}

/// The API server as the kubeconfig names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// URL without a path, `https://host:port`.
    pub url: String,
    /// Host name or address.
    pub host: String,
    /// TCP port of the server; 443 or 80 where the URL names none.
    pub port: u16,
    /// Path before each request's own; empty for most servers.
    pub prefix: String,
    /// The name that the server's certificate must have.
    pub name: String,
}

/// An identity as it was read.
#[derive(Clone)]
pub struct Identity {
    /// The server.
    pub server: Server,
    /// The agent's certificate, if it could be read.
    pub certificate: Option<Certificate>,
    /// The file of the certificate, or the field of the kubeconfig.
    pub certificate_from: String,
    /// TLS; `None` for plain HTTP.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// Value of the header `Authorization`.
    pub(crate) bearer: Option<HeaderValue>,
    /// Digest of everything on which a connection depends.
    connection: [u8; 32],
    /// Whether there are credentials to connect with.
    usable: bool,
    /// The files that were read, each with its stamp.
    files: Vec<(PathBuf, Stamp)>,
    /// A plugin's credentials, with the plugin that made them.
    made: Option<(kubeconfig::Exec, exec::Credentials)>,
}

/// The properties of a file that change when the file is replaced or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of the file at the end of all links. An inaccessible file has the default stamp.
    fn of(path: &Path) -> Stamp {
        fs::metadata(path).map_or_else(
            |_| Stamp::default(),
            |m| Stamp {
                device: m.dev(),
                inode: m.ino(),
                size: m.size(),
                changed: (m.mtime(), m.mtime_nsec()),
            },
        )
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("server", &self.server)
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// Reads files and remembers their stamps.
struct Reader<'a> {
    kubeconfig: &'a Path,
    dir: &'a Path,
    files: Vec<(PathBuf, Stamp)>,
}

impl Reader<'_> {
    /// Reads the file that a field names. The stamp is taken before the read, so that a later check notices a
    /// change during the read.
    fn file(&mut self, field: &str, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.dir.join(name);
        self.files.push((path.clone(), Stamp::of(&path)));
        read_limited(&path, MAX_FILE).map_err(|source| Error::IdentityFile {
            kubeconfig: self.kubeconfig.into(),
            field: field.to_owned(),
            source,
        })
    }

    /// Reads a field with data in base64, or else the file of another field, in client-go's order.
    fn data_or_file(
        &mut self,
        (data_field, data): (String, &str),
        (file_field, file): (String, &str),
    ) -> Result<Option<(String, Vec<u8>)>, Error> {
        if !data.is_empty() {
            let compact: String = data.chars().filter(|c| !c.is_whitespace()).collect();
            let bytes =
                STANDARD.decode(compact).map_err(|_invalid| self.wrong(&data_field, "is no base64"))?;
            return Ok(Some((data_field, bytes)));
        }
        if file.is_empty() {
            return Ok(None);
        }
        let bytes = self.file(&file_field, file)?;
        Ok(Some((self.dir.join(file).display().to_string(), bytes)))
    }

    fn wrong(&self, field: &str, reason: impl Into<String>) -> Error {
        Error::Kubeconfig { path: self.kubeconfig.into(), wrong: Wrong::new(field, reason) }
    }
}

/// The content of the files, without a plugin's credentials.
struct Read {
    chosen: Chosen,
    server: Server,
    secure: bool,
    /// CA in PEM with its origin; `None` for the system's CAs, or without TLS.
    ca: Option<(String, Vec<u8>)>,
    certificate: Option<(String, Vec<u8>)>,
    key: Option<(String, Vec<u8>)>,
    token: Option<(String, String)>,
    files: Vec<(PathBuf, Stamp)>,
}

impl Source {
    /// Reads the identity. `last` is the previous identity: a plugin's credentials are taken from it as long
    /// as they are valid.
    ///
    /// # Errors
    /// A file is missing or wrong, a plugin fails, or certificate and key do not belong together. The text is
    /// one line and names the file and the field.
    pub async fn load(&self, last: Option<&Identity>) -> Result<Identity, Error> {
        let source = self.clone();
        let read = tokio::task::spawn_blocking(move || source.read());
        let mut read =
            read.await.map_err(|e| Error::Setup { what: "read the identity", reason: e.to_string() })??;
        let mut made = None;
        if let Some(plugin) = read.chosen.user.exec.clone() {
            let now = jiff::Timestamp::now();
            let held = last
                .and_then(|last| last.made.clone())
                .filter(|(of, credentials)| *of == plugin && credentials.expires.is_none_or(|at| now < at));
            let credentials = match held {
                Some((_, credentials)) if !last.is_some_and(|last| last.is_expired(now)) => credentials,
                _ => {
                    let dir = self.dir();
                    let ca = read.ca.as_ref().map(|(_, ca)| STANDARD.encode(ca)).unwrap_or_default();
                    exec::run(&read.chosen, &plugin, dir, &ca).await?
                }
            };
            let from = format!("exec plugin {}", plugin.command);
            if let Some((certificate, key)) = &credentials.certificate {
                read.certificate = Some((from.clone(), certificate.clone().into_bytes()));
                read.key = Some((from.clone(), key.clone().into_bytes()));
            }
            if let Some(token) = &credentials.token {
                read.token = Some((from, token.clone()));
            }
            made = Some((plugin, credentials));
        }
        self.build(read, made)
    }

    fn dir(&self) -> &Path {
        self.kubeconfig.parent().unwrap_or(Path::new("/"))
    }

    fn read(&self) -> Result<Read, Error> {
        let mut reader = Reader { kubeconfig: &self.kubeconfig, dir: self.dir(), files: Vec::new() };
        reader.files.push((self.kubeconfig.clone(), Stamp::of(&self.kubeconfig)));
        let text = read_limited(&self.kubeconfig, MAX_FILE)
            .map_err(|source| Error::KubeconfigFile { path: self.kubeconfig.clone(), source })?;
        let text = String::from_utf8(text).map_err(|_invalid| reader.wrong("", "the file is no UTF-8"))?;
        let wrong = |wrong| Error::Kubeconfig { path: self.kubeconfig.clone(), wrong };
        let chosen = kubeconfig::choose(&text, self.context.as_deref()).map_err(wrong)?;
        let (server, secure) = server(&chosen).map_err(wrong)?;
        let (cluster, user) = (&chosen.cluster, &chosen.user);
        let field = |name: &str| chosen.cluster_field(name);
        let ca = reader.data_or_file(
            (field("certificate-authority-data"), &cluster.certificate_authority_data),
            (field("certificate-authority"), &cluster.certificate_authority),
        )?;
        let field = |name: &str| chosen.user_field(name);
        let certificate = reader.data_or_file(
            (field("client-certificate-data"), &user.client_certificate_data),
            (field("client-certificate"), &user.client_certificate),
        )?;
        let key = reader.data_or_file(
            (field("client-key-data"), &user.client_key_data),
            (field("client-key"), &user.client_key),
        )?;
        let token = if !user.token_file.is_empty() {
            let text = reader.file(&field("tokenFile"), &user.token_file)?;
            let text = String::from_utf8_lossy(&text).trim().to_owned();
            if text.is_empty() {
                return Err(reader.wrong(&field("tokenFile"), format!("{} is empty", user.token_file)));
            }
            Some((reader.dir.join(&user.token_file).display().to_string(), text))
        } else {
            Some((field("token"), user.token.clone())).filter(|(_, token)| !token.is_empty())
        };
        let files = reader.files;
        Ok(Read { server, secure, ca, certificate, key, token, files, chosen })
    }

    fn build(
        &self,
        read: Read,
        made: Option<(kubeconfig::Exec, exec::Credentials)>,
    ) -> Result<Identity, Error> {
        let wrong = |field: &str, reason: String| Error::Kubeconfig {
            path: self.kubeconfig.clone(),
            wrong: Wrong::new(field, reason),
        };
        let bearer = match &read.token {
            Some((from, token)) => {
                let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_invalid| {
                    wrong(from, "the token has characters that a header cannot hold".to_owned())
                })?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let mut digest = Sha256::new();
        digest.update(format!("{:?} {} ", read.server, read.chosen.cluster.insecure_skip_tls_verify));
        for (_, bytes) in [&read.ca, &read.certificate, &read.key].into_iter().flatten() {
            digest.update(Sha256::digest(bytes));
        }
        let own = read.certificate.as_ref().zip(read.key.as_ref());
        let (mut tls, mut certificate) = (None, None);
        if read.secure {
            let trust = match &read.ca {
                _ if read.chosen.cluster.insecure_skip_tls_verify => tls::Trust::Anyone,
                Some((from, pem)) => tls::roots(pem).map_err(|reason| wrong(from, reason))?,
                None => tls::system_roots()
                    .map_err(|reason| wrong(&read.chosen.cluster_field("certificate-authority"), reason))?,
            };
            let pair = match own {
                Some(((certificate_from, chain), (key_from, key))) => Some((
                    tls::chain(chain).map_err(|reason| wrong(certificate_from, reason))?,
                    tls::key(key).map_err(|reason| wrong(key_from, reason))?,
                )),
                None => None,
            };
            certificate = pair.as_ref().and_then(|(chain, _)| Certificate::read(chain.first()?));
            let config = tls::config(trust, pair).map_err(|reason| {
                let from = own.map_or_else(String::new, |((_, _), (from, _))| from.clone());
                wrong(&from, reason)
            })?;
            tls = Some(Arc::new(config));
        }
        Ok(Identity {
            server: read.server,
            certificate,
            certificate_from: read.certificate.map(|(from, _)| from).unwrap_or_default(),
            tls,
            bearer,
            connection: digest.finalize().into(),
            usable: true,
            files: read.files,
            made,
        })
    }
}

impl Identity {
    /// An identity without credentials, as long as the kubeconfig does not change. `of` has the server, as far as it is
    /// known already.
    pub(crate) fn awaited(source: &Source, of: &Identity) -> Identity {
        Identity {
            certificate: None,
            certificate_from: String::new(),
            tls: None,
            bearer: None,
            connection: [0; 32],
            usable: false,
            files: vec![(source.kubeconfig.clone(), Stamp::of(&source.kubeconfig))],
            made: None,
            ..of.clone()
        }
    }

    /// An identity without credentials, for what everybody may read. Without `ca` every server is accepted: what it
    /// says has to be checked by other means.
    ///
    /// # Errors
    /// The text is no URL of a server, or `ca` has no certificate in PEM.
    pub fn anonymous(server: &str, ca: Option<&[u8]>) -> Result<Identity, Error> {
        let path = PathBuf::from("(none)");
        let wrong = |wrong| Error::Kubeconfig { path: path.clone(), wrong };
        let chosen = Chosen::anonymous(server, ca.is_none());
        let (server, secure) = self::server(&chosen).map_err(wrong)?;
        let read = Read {
            chosen,
            server,
            secure,
            ca: ca.map(|pem| ("the CA".to_owned(), pem.to_vec())),
            certificate: None,
            key: None,
            token: None,
            files: Vec::new(),
        };
        Source { kubeconfig: path, context: None }.build(read, None)
    }

    /// Whether there are credentials to connect with.
    pub fn is_usable(&self) -> bool {
        self.usable
    }

    /// Whether a file has changed since it was read, or a plugin's credentials expire soon. Reads only the
    /// files' metadata.
    pub fn is_stale(&self) -> bool {
        self.is_expired(Timestamp::now()) || self.files.iter().any(|(path, stamp)| Stamp::of(path) != *stamp)
    }

    /// Whether a plugin's credentials expire soon.
    fn is_expired(&self, now: Timestamp) -> bool {
        let expires = self.made.as_ref().and_then(|(_, credentials)| credentials.expires);
        expires.is_some_and(|at| now.saturating_add(EARLY).is_ok_and(|soon| soon >= at))
    }

    /// The identity without a plugin's credentials, after the API server has refused them: the next load runs
    /// the plugin again.
    pub(crate) fn refused(&self) -> Identity {
        Identity { made: None, ..self.clone() }
    }

    /// Whether a plugin makes the credentials.
    pub(crate) fn is_made(&self) -> bool {
        self.made.is_some()
    }

    /// Whether connections of the other identity remain usable: only the token differs.
    pub(crate) fn shares_connections(&self, other: &Identity) -> bool {
        self.connection == other.connection
    }

    /// The known problem of the agent's certificate at this time.
    pub fn problem(&self, now: Timestamp) -> Option<String> {
        let why = self.certificate.as_ref()?.invalid_at(now)?;
        Some(format!("the client certificate ({}) {why}", self.certificate_from))
    }
}

/// The server of a cluster, and whether it uses TLS.
fn server(chosen: &Chosen) -> Result<(Server, bool), Wrong> {
    let text = chosen.cluster.server.trim_end_matches('/');
    let wrong = |reason: String| Wrong::new(chosen.cluster_field("server"), reason);
    let uri: Uri = text.parse().map_err(|e| wrong(format!("{text:?} is no URL: {e}")))?;
    let secure = match uri.scheme() {
        Some(s) if *s == Scheme::HTTPS => true,
        Some(s) if *s == Scheme::HTTP => false,
        _ => return Err(wrong(format!("{text:?} must begin with https://"))),
    };
    let authority = uri.authority().map(|a| a.as_str()).unwrap_or_default();
    if uri.query().is_some() || authority.contains('@') {
        return Err(wrong("must have neither a query nor a user".to_owned()));
    }
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.is_empty() {
        return Err(wrong(format!("{text:?} has no host")));
    }
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let name = Some(chosen.cluster.tls_server_name.clone()).filter(|n| !n.is_empty());
    let server = Server {
        url: format!("{}://{bracketed}:{port}", if secure { "https" } else { "http" }),
        name: name.unwrap_or_else(|| host.clone()),
        prefix: uri.path().trim_end_matches('/').to_owned(),
        host,
        port,
    };
    if secure && rustls::pki_types::ServerName::try_from(server.name.as_str()).is_err() {
        return Err(wrong(format!("{:?} is no host name or address", server.name)));
    }
    Ok((server, secure))
}

#[cfg(test)]
mod tests;
