//! Credential provider plugins: programs that give credentials for images, executed and asked as the kubelet does it
//! (`pkg/credentialprovider/plugin`).
//!
//! Owns the answers that are kept, in memory alone, and the calls that are under way: equal requests share one. A call
//! ends after [`DEADLINE`], and with the last who wants it. A plugin that fails gives no credential, and the log has the
//! reason; neither log nor error holds a part of a request or of an answer.

use crate::metrics;
use berth_core::{
    image::{
        CredentialSource, DockerConfig, Hidden, Keyring, ObjectCoordinates,
        provider::{
            self, AccountKey, CacheKey, Provider, PullPod, Response, TokenAttributes, TokenCacheType,
            token_hash,
        },
    },
    sync::lock,
};
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    pin::Pin,
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    sync::OnceCell,
    time::timeout,
};

/// Deadline of a call.
const DEADLINE: Duration = Duration::from_secs(60);
/// The longest answer, and the most of an error's output, in bytes.
const MAX_OUTPUT: u64 = 4 << 20;
const MAX_ERROR: u64 = 4096;
/// The most answers of a plugin that are kept.
const MOST_ANSWERS: usize = 1024;

/// A boxed future, so that the trait fits behind a pointer.
pub type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

/// A ServiceAccount of the API server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceAccount {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
}

/// The ServiceAccounts and their tokens, asked from the API server.
pub trait ServiceAccounts: Send + Sync {
    /// A ServiceAccount.
    fn account<'a>(&'a self, namespace: &'a str, name: &'a str) -> Asked<'a, ServiceAccount>;

    /// A token of a ServiceAccount for this audience, bound to the pod.
    fn token<'a>(&'a self, pod: &'a PullPod, uid: &'a str, audience: &'a str) -> Asked<'a, Hidden>;
}

/// The plugins of a node. Clones share their state.
#[derive(Clone, Default)]
pub struct CredentialPlugins(Arc<Inner>);

#[derive(Default)]
struct Inner {
    plugins: Vec<Plugin>,
    /// `None` without a control plane.
    accounts: Option<Arc<dyn ServiceAccounts>>,
}

impl std::fmt::Debug for CredentialPlugins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.plugins.iter().map(|plugin| &plugin.provider.name)).finish()
    }
}

/// An answer, or the reason why there is none.
type Outcome = Result<Response, String>;

/// What tells calls apart: the image, the token, and the annotations.
type Call = (String, Option<String>, BTreeMap<String, String>);

struct Plugin {
    program: PathBuf,
    provider: Provider,
    kept: Mutex<HashMap<CacheKey, (Instant, DockerConfig)>>,
    calls: Mutex<HashMap<Call, Arc<OnceCell<Outcome>>>>,
}

/// What a plugin gets about the pod's ServiceAccount.
#[derive(Default)]
struct Account {
    token: Option<Hidden>,
    annotations: BTreeMap<String, String>,
    key: Option<AccountKey>,
    source: Option<CredentialSource>,
}

impl CredentialPlugins {
    /// The plugins of this configuration, with their programs in `dir`.
    pub fn new(
        dir: &std::path::Path,
        providers: Vec<Provider>,
        accounts: Option<Arc<dyn ServiceAccounts>>,
    ) -> CredentialPlugins {
        let plugin = |provider: Provider| Plugin {
            program: dir.join(&provider.name),
            provider,
            kept: Mutex::default(),
            calls: Mutex::default(),
        };
        let plugins = providers.into_iter().map(plugin).collect();
        CredentialPlugins(Arc::new(Inner { plugins, accounts }))
    }

    /// The credentials that the plugins give for a repository. `pod`: `None` for a pull by hand.
    pub(crate) async fn keyring(&self, repository: &str, pod: &PullPod) -> Keyring {
        let mut keyring = Keyring::default();
        for plugin in &self.0.plugins {
            // A call is large, and every start of a container would carry its room.
            match Box::pin(self.0.provide(plugin, repository, pod)).await {
                Ok((config, source)) => keyring.add(&config, source.as_ref()),
                Err(why) => tracing::error!(
                    provider = plugin.provider.name,
                    image = repository,
                    pod = format!("{}/{}", pod.namespace, pod.name),
                    why,
                    "Failed to provide credentials for image"
                ),
            }
        }
        keyring
    }
}

impl Inner {
    async fn provide(
        &self,
        plugin: &Plugin,
        image: &str,
        pod: &PullPod,
    ) -> Result<(DockerConfig, Option<CredentialSource>), String> {
        if !plugin.provider.is_for(image) {
            return Ok(Default::default());
        }
        let account = match &plugin.provider.token_attributes {
            Some(wanted) => match self.account(wanted, pod).await? {
                Some(account) => account,
                None => return Ok(Default::default()),
            },
            None => Account::default(),
        };
        if let Some(known) = plugin.find(image, account.key.as_ref()) {
            return Ok((known, account.source));
        }
        let response = plugin.call(image, &account).await.map_err(|why| {
            format!("failed to get credential from external registry credential provider: {why}")
        })?;
        let echoes = |token: &Hidden| response.auth.entries.values().any(|c| c.password == *token);
        let by_token =
            plugin.provider.token_attributes.as_ref().is_some_and(|t| t.cache() == TokenCacheType::Token);
        if account.token.as_ref().is_some_and(echoes) && !by_token {
            return Err(
                "credential provider plugin returned the service account token as the password which is not \
                        allowed when service account cache type is not set to 'Token'"
                    .to_owned(),
            );
        }
        plugin.keep(image, &account, &response);
        Ok((response.auth, account.source))
    }

    /// The pod's ServiceAccount and a token of it; `None` where the plugin is not to be asked.
    async fn account(&self, wanted: &TokenAttributes, pod: &PullPod) -> Result<Option<Account>, String> {
        // A manifest's pod has no ServiceAccount of its own; its model says `default`.
        let none =
            pod.service_account.is_empty() || (self.accounts.is_none() && pod.service_account == "default");
        if none {
            let required = wanted.require_service_account.unwrap_or(true);
            return Ok((!required).then(Account::default));
        }
        let accounts = self.accounts.as_ref().ok_or_else(|| {
            "failed to get service account: cannot get ServiceAccount when kubelet is in standalone mode"
                .to_owned()
        })?;
        let account = accounts.account(&pod.namespace, &pod.service_account).await;
        let account = account.map_err(|why| format!("failed to get service account: {why}"))?;
        let mut annotations = BTreeMap::new();
        for key in &wanted.required_service_account_annotation_keys {
            let Some(value) = account.annotations.get(key) else {
                tracing::debug!(
                    pod = format!("{}/{}", pod.namespace, pod.name),
                    "required annotation {key} not found"
                );
                return Ok(None);
            };
            annotations.insert(key.clone(), value.clone());
        }
        for key in &wanted.optional_service_account_annotation_keys {
            annotations.extend(account.annotations.get(key).map(|value| (key.clone(), value.clone())));
        }
        let token = accounts.token(pod, &account.uid, &wanted.service_account_token_audience).await;
        let token = token.map_err(|why| format!("failed to get service account token: {why}"))?;
        let (namespace, name, uid) = (pod.namespace.clone(), pod.service_account.clone(), account.uid);
        let by_token = wanted.cache() == TokenCacheType::Token;
        Ok(Some(Account {
            key: Some(AccountKey {
                namespace: namespace.clone(),
                name: name.clone(),
                uid: uid.clone(),
                annotations: annotations.clone(),
                token: by_token.then(|| token_hash(&token)),
            }),
            source: Some(CredentialSource::ServiceAccount(ObjectCoordinates { uid, namespace, name })),
            annotations,
            token: Some(token),
        }))
    }
}

impl Plugin {
    /// An answer that is kept.
    fn find(&self, image: &str, account: Option<&AccountKey>) -> Option<DockerConfig> {
        let mut kept = lock(&self.kept);
        let now = Instant::now();
        kept.retain(|_, (until, _)| *until > now);
        CacheKey::all(image, account).iter().find_map(|key| kept.get(key).map(|(_, config)| config.clone()))
    }

    fn keep(&self, image: &str, account: &Account, response: &Response) {
        let time = response.cache_duration.or(self.provider.default_cache_duration).unwrap_or_default();
        let Some(until) = Instant::now().checked_add(time).filter(|_| !time.is_zero()) else { return };
        let mut kept = lock(&self.kept);
        if kept.len() >= MOST_ANSWERS {
            kept.clear();
        }
        let key = CacheKey::of(response.cache_key_type, image, account.key.as_ref());
        kept.insert(key, (until, response.auth.clone()));
    }

    /// Asks the plugin, or waits for an equal call.
    async fn call(&self, image: &str, account: &Account) -> Outcome {
        let token = account.token.as_ref().map(token_hash);
        let call: Call = (image.to_owned(), token, account.annotations.clone());
        let cell = Arc::clone(lock(&self.calls).entry(call.clone()).or_default());
        let outcome = cell.get_or_init(|| self.execute(image, account)).await.clone();
        let mut calls = lock(&self.calls);
        if calls.get(&call).is_some_and(|known| Arc::ptr_eq(known, &cell)) {
            calls.remove(&call);
        }
        outcome
    }

    async fn execute(&self, image: &str, account: &Account) -> Outcome {
        let begun = Instant::now();
        let request = provider::request(
            &self.provider.api_version,
            image,
            account.token.as_ref(),
            &account.annotations,
        );
        let name = &self.provider.name;
        let ran = timeout(DEADLINE, self.run(&request))
            .await
            .unwrap_or_else(|_elapsed| Err(("context deadline exceeded".to_owned(), String::new())));
        metrics::count_plugin_call(name, begun.elapsed(), ran.is_err());
        let answer = ran.map_err(|(why, said)| {
            format!("error execing credential provider plugin {name} for image {image}: {why}: {said}")
        })?;
        provider::response(&self.provider.api_version, &answer)
    }

    /// Executes the program. A failure has its reason and what the program wrote as errors.
    async fn run(&self, request: &Hidden) -> Result<Vec<u8>, (String, String)> {
        let failed = |why: String| (why, String::new());
        let mut command = Command::new(&self.program);
        command.args(&self.provider.args).kill_on_drop(true).env_remove("NOTIFY_SOCKET");
        command.envs(self.provider.env.iter().map(|var| (&var.name, &var.value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.spawn().map_err(|e| failed(format!("fork/exec {}: {e}", self.program.display())))?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let write = async {
            // A program that reads nothing is no error.
            if let Some(mut stdin) = stdin {
                stdin.write_all(request.reveal().as_bytes()).await.ok();
            }
        };
        let ((), answer, said) = tokio::join!(write, all(stdout, MAX_OUTPUT), all(stderr, MAX_ERROR));
        let status = child.wait().await.map_err(|e| failed(e.to_string()))?;
        let said = String::from_utf8_lossy(&said).into_owned();
        match (status.success(), status.code()) {
            (true, _) if answer.len() as u64 >= MAX_OUTPUT => {
                Err(failed("its answer is too long".to_owned()))
            }
            (true, _) => Ok(answer),
            (false, Some(code)) => Err((format!("exit status {code}"), said)),
            (false, None) => Err((status.to_string(), said)),
        }
    }
}

/// The first bytes of an output. The rest is read and dropped, so that the program can end.
async fn all(output: Option<impl AsyncRead + Unpin>, most: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut output) = output {
        // What was read before a failure counts.
        (&mut output).take(most).read_to_end(&mut bytes).await.ok();
        tokio::io::copy(&mut output, &mut tokio::io::sink()).await.ok();
    }
    bytes
}

#[cfg(test)]
mod tests;
