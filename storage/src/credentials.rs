//! Who we are to a store: the first of the places that names a key, in the order of AWS's tools.
//!
//! Keys in the environment; a web identity (EKS, any OIDC); a profile in a file; a container's agent (ECS, EKS pod identity); an instance's
//! metadata service. `object_store` has all of them but the file, which is read again when it changes: whoever renews credentials that expire
//! replaces it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use object_store::aws::{AmazonS3Builder, AwsCredential, AwsCredentialProvider};
use object_store::{CredentialProvider, RetryConfig, StaticCredentialProvider};

use crate::environment::{Environment, read_profile};
use crate::fault::Fault;
use crate::http::{Answers, Dialer};

const STORE: &str = "S3";
/// Settings of a profile by which others get keys, and we do not.
const OTHERS: [&str; 4] = ["sso_session", "sso_start_url", "credential_process", "role_arn"];
/// How long a file may be in the middle of being written.
const HALF_WRITTEN: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(150), Duration::from_millis(300), Duration::from_millis(500)];

fn wrong(why: impl Into<String>) -> Fault {
    Fault::Credentials { why: why.into(), is_passing: false }
}

fn as_error(fault: Fault) -> object_store::Error {
    object_store::Error::Generic { store: STORE, source: Box::new(fault) }
}

/// The credentials of this environment. Asks nobody yet.
pub(crate) fn find(environment: &Environment, dialer: &Dialer) -> Result<AwsCredentialProvider, Fault> {
    let set = |name: &str| environment.get(name).map(String::from);
    match (set("AWS_ACCESS_KEY_ID"), set("AWS_SECRET_ACCESS_KEY")) {
        (Some(key_id), Some(secret_key)) => {
            let credential = AwsCredential { key_id, secret_key, token: set("AWS_SESSION_TOKEN") };
            return Ok(Arc::new(StaticCredentialProvider::new(credential)));
        }
        (Some(_), None) => return Err(wrong("AWS_ACCESS_KEY_ID is set, and AWS_SECRET_ACCESS_KEY is not: set both")),
        (None, Some(_)) => return Err(wrong("AWS_SECRET_ACCESS_KEY is set, and AWS_ACCESS_KEY_ID is not: set both")),
        (None, None) => {}
    }
    if set("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() && set("AWS_ROLE_ARN").is_some() {
        let who = "the web identity of AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN";
        return asked(environment, dialer, who, String::new());
    }
    let paths: Vec<_> = environment.files().into_iter().flatten().collect();
    let file = File { paths: paths.clone(), profile: environment.profile().into(), read: Mutex::default() };
    match file.find().map_err(wrong)? {
        Found::Key(_) => return Ok(Arc::new(file)),
        Found::Nothing if environment.get("AWS_PROFILE").is_some() => return Err(wrong(file.lacks())),
        Found::Other(name) => {
            let why = format!("{}; it has {name}, which needs AWS's own tools", file.lacks());
            let advice = "put the keys that `aws configure export-credentials` prints into a file or the environment";
            return Err(wrong(format!("{why}: {advice}")));
        }
        Found::Nothing => {}
    }
    if set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").is_some() || set("AWS_CONTAINER_CREDENTIALS_FULL_URI").is_some() {
        return asked(environment, dialer, "the container's agent of AWS_CONTAINER_CREDENTIALS_*_URI", String::new());
    }
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    let looked = format!(
        "no credentials found: looked for AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN, \
         for profile {} in {}, for AWS_CONTAINER_CREDENTIALS_*_URI, ",
        environment.profile(),
        if paths.is_empty() { "no file (HOME is not set)".into() } else { paths.join(" and ") },
    );
    if environment.is_set("AWS_EC2_METADATA_DISABLED") {
        return Err(wrong(looked + "and not at the instance's metadata service (AWS_EC2_METADATA_DISABLED)"));
    }
    asked(environment, dialer, "the instance's metadata service", looked + "and at ")
}

/// Credentials that somebody gives when asked: `object_store` knows how.
fn asked(
    environment: &Environment,
    dialer: &Dialer,
    who: &'static str,
    looked: String,
) -> Result<AwsCredentialProvider, Fault> {
    let once = RetryConfig { max_retries: 1, retry_timeout: Duration::from_secs(5), ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name("credentials")
        .with_region(environment.region())
        .with_retry(once)
        .with_http_connector(Dialer { answers: Answers::Raw, ..dialer.clone() });
    if let Some(endpoint) = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") {
        builder = builder.with_metadata_endpoint(endpoint.trim_end_matches('/'));
    }
    for (name, value) in environment.of_aws() {
        let is_ours = ["AWS_WEB_", "AWS_ROLE_", "AWS_CONTAINER_", "AWS_ENDPOINT_URL_STS"]
            .iter()
            .any(|start| name.starts_with(start));
        if let (true, Ok(key)) = (is_ours, name.to_ascii_lowercase().parse()) {
            builder = builder.with_config(key, value);
        }
    }
    let store = builder.build().map_err(|e| wrong(format!("{looked}{who}: {e}")))?;
    Ok(Arc::new(Asked { inner: Arc::clone(store.credentials()), who, looked, has_answered: Mutex::new(false) }))
}

#[derive(Debug)]
struct Asked {
    inner: AwsCredentialProvider,
    who: &'static str,
    /// What was looked for before.
    looked: String,
    has_answered: Mutex<bool>,
}

#[async_trait]
impl CredentialProvider for Asked {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        match self.inner.get_credential().await {
            Ok(credential) => {
                *self.has_answered.lock().unwrap_or_else(PoisonError::into_inner) = true;
                Ok(credential)
            }
            Err(error) => {
                // One that has answered before will again; one that never has is most likely not there.
                let is_passing = *self.has_answered.lock().unwrap_or_else(PoisonError::into_inner);
                let reason = Fault::of(&error).to_string();
                let why = match self.looked.as_str() {
                    "" => format!("{} gives no credentials: {reason}", self.who),
                    looked => format!("{looked}{} ({reason})", self.who),
                };
                Err(as_error(Fault::Credentials { why, is_passing }))
            }
        }
    }
}

/// What a profile has.
enum Found {
    Key(AwsCredential),
    /// No keys, but this setting.
    Other(&'static str),
    Nothing,
}

/// When a file was written, and its length: it has changed when these have.
type Stamp = Vec<Option<(SystemTime, u64)>>;

/// A profile in the files of AWS's tools.
#[derive(Debug)]
struct File {
    paths: Vec<PathBuf>,
    profile: String,
    read: Mutex<Option<(Stamp, Arc<AwsCredential>)>>,
}

impl File {
    fn stamp(&self) -> Stamp {
        let stamp = |path: &PathBuf| std::fs::metadata(path).and_then(|meta| Ok((meta.modified()?, meta.len()))).ok();
        self.paths.iter().map(stamp).collect()
    }

    fn lacks(&self) -> String {
        let paths: Vec<_> = self.paths.iter().map(|path| path.display().to_string()).collect();
        format!(
            "profile {} has no aws_access_key_id with aws_secret_access_key in {}",
            self.profile,
            paths.join(" and ")
        )
    }

    fn find(&self) -> Result<Found, String> {
        let mut other = Found::Nothing;
        for path in &self.paths {
            let Some(mut profile) = read_profile(path, &self.profile)? else { continue };
            let key = (profile.remove("aws_access_key_id"), profile.remove("aws_secret_access_key"));
            if let (Some(key_id), Some(secret_key)) = key {
                return Ok(Found::Key(AwsCredential {
                    key_id,
                    secret_key,
                    token: profile.remove("aws_session_token"),
                }));
            }
            if let Some(name) = OTHERS.into_iter().find(|name| profile.contains_key(*name)) {
                other = Found::Other(name);
            }
        }
        Ok(other)
    }

    /// As the files are now.
    fn current(&self) -> Result<Arc<AwsCredential>, String> {
        let stamp = self.stamp();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, credential)) = &*read
            && *at == stamp
        {
            return Ok(Arc::clone(credential));
        }
        match self.find()? {
            Found::Key(credential) => {
                let credential = Arc::new(credential);
                *read = Some((stamp, Arc::clone(&credential)));
                Ok(credential)
            }
            _ => Err(self.lacks()),
        }
    }
}

#[async_trait]
impl CredentialProvider for File {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        for pause in HALF_WRITTEN {
            if let Ok(credential) = self.current() {
                return Ok(credential);
            }
            tokio::time::sleep(pause).await;
        }
        self.current().map_err(|why| as_error(wrong(why)))
    }
}
