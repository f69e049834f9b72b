//! The operations on a store, each tried again while that may help.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::list::{PaginatedListOptions, PaginatedListStore as _};
use object_store::path::Path as Key;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, ObjectMeta, ObjectStore as _, PutMode, PutOptions, PutPayload,
    RetryConfig,
};
use tokio_stream::StreamExt as _;
use tracing::warn;

use crate::credentials;
use crate::environment::Environment;
use crate::error::{Kind, StorageError};
use crate::fault::Fault;
use crate::http::{Answers, Dialer, Trust};
use crate::location::Location;
use crate::patience::{Patience, Timing};

/// Metadata of an object: who wrote it. By it a writer whose answer was lost knows its own object.
const WRITER: &str = "toroid-writer";
/// Keys that are deleted by one request; S3's own bound.
const DELETED_AT_ONCE: usize = 1000;
/// Whether the store heeds conditions of writes: not known yet, yes, no.
const UNKNOWN: u8 = 0;
const HEEDS: u8 = 1;
const HEEDS_NOT: u8 = 2;

/// An object of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Without the prefix of the store.
    pub name: String,
    pub num_bytes: u64,
    /// Another one when the content changes.
    pub etag: Option<String>,
    pub modified: SystemTime,
}

/// What is directly below a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Last parts of the names, in order.
    pub folders: Vec<String>,
    pub objects: Vec<Object>,
}

/// What of an object is to be read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// All of it otherwise.
    pub range: Option<Range<u64>>,
    /// Only if it is still the one that has this.
    pub etag: Option<String>,
}

/// What came of writing an object that must not be there yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutNew {
    /// It is ours.
    Created,
    /// Somebody else's is there, and stays as it is.
    Exists,
}

/// One bucket of one store.
#[derive(Debug)]
pub(crate) struct Client {
    pub location: Location,
    /// Where it is, unless it is AWS's own.
    pub endpoint: Option<String>,
    pub timing: Timing,
    pub s3: AmazonS3,
    /// The same, for stores that delete one object at a time.
    singly: AmazonS3,
    conditions: AtomicU8,
}

/// A name that no other writer has.
pub(crate) fn nonce() -> Result<String, Fault> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| Fault::Lost(format!("this machine has no random bytes: {e}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(crate) fn written_by(writer: &str) -> Attributes {
    Attributes::from_iter([(Attribute::Metadata(WRITER.into()), writer.to_string())])
}

impl Client {
    pub fn new(location: Location, environment: &Environment, timing: Timing) -> Result<Client, StorageError> {
        let url = location.to_string();
        let setup = |why: String| StorageError::new(Kind::Setup, "open", &url, why);
        let endpoint = environment.endpoint();
        if let Some(endpoint) = &endpoint {
            check_endpoint(endpoint).map_err(setup)?;
        }
        let dialer = Dialer {
            timing,
            trust: Trust::of(environment),
            proxies: environment.proxies().into(),
            answers: Answers::Judged,
        };
        // Whatever else `object_store` knows of AWS's names: encryption, addressing, requester pays, checksums.
        let mut builder = AmazonS3Builder::new();
        for (name, value) in environment.of_aws() {
            if let Ok(key) = name.to_ascii_lowercase().parse() {
                builder = builder.with_config(key, value);
            }
        }
        let is_plain = endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        // Tries are counted by us; see the crate's page.
        let never = RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() };
        builder = builder
            .with_bucket_name(location.bucket())
            .with_region(environment.region())
            .with_http_connector(dialer.clone())
            .with_retry(never)
            .with_allow_http(is_plain);
        if let Some(endpoint) = &endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        // What everybody may read needs no credentials.
        if !environment.is_set("AWS_SKIP_SIGNATURE") {
            let credentials = credentials::find(environment, &dialer);
            let credentials = credentials.map_err(|fault| StorageError::of(&fault, "open", &url, None))?;
            builder = builder.with_credentials(credentials);
        }
        // TLS protects the bytes already, and a digest of ours is in every manifest; a hash of each part costs a core for 1 GB/s or less.
        if environment.get("AWS_UNSIGNED_PAYLOAD").is_none() {
            builder = builder.with_unsigned_payload(!is_plain);
        }
        let s3 = builder.clone().build().map_err(|e| setup(e.to_string()))?;
        let singly = builder.with_config(object_store::aws::AmazonS3ConfigKey::DisableBulkDelete, "true").build();
        let singly = singly.map_err(|e| setup(e.to_string()))?;
        Ok(Client { location, endpoint, timing, s3, singly, conditions: AtomicU8::new(UNKNOWN) })
    }

    /// The same bucket, with `name` added to the prefix; over the same connections.
    pub fn below(&self, name: &str) -> Result<Client, StorageError> {
        Ok(Client {
            location: self.location.join(name)?,
            endpoint: self.endpoint.clone(),
            timing: self.timing,
            s3: self.s3.clone(),
            singly: self.singly.clone(),
            conditions: AtomicU8::new(self.conditions.load(Ordering::Relaxed)),
        })
    }

    pub fn patience(&self, action: &'static str, name: &str) -> Patience {
        Patience::new(self.timing, action, self.name_in_full(name))
    }

    fn name_in_full(&self, name: &str) -> String {
        let at = self.endpoint.as_ref().map(|endpoint| format!(" at {endpoint}")).unwrap_or_default();
        format!("{}{at}", self.location.url_of(name))
    }

    /// Whether the bucket is there and may be listed. Ends within `patience`, with what was met last.
    pub async fn check(&self, patience: Duration) -> Result<(), StorageError> {
        let name = self.name_in_full("");
        match tokio::time::timeout(patience, self.look(Timing { patience, ..self.timing })).await {
            Ok(looked) => looked,
            Err(_) => {
                let what = format!("it has not answered within {} s", patience.as_secs_f32());
                Err(StorageError::new(Kind::Unreachable, "open", &name, what))
            }
        }
    }

    async fn look(&self, timing: Timing) -> Result<(), StorageError> {
        let key = self.location.key("")?;
        let look = || async {
            let options = PaginatedListOptions { max_keys: Some(1), ..PaginatedListOptions::default() };
            self.s3.list_paginated(Some(key.as_ref()), options).await.map_err(Fault::from)
        };
        Patience::new(timing, "open", self.name_in_full("")).until(look).await.map(drop)
    }

    /// Writes an object, in the place of any that is there.
    pub async fn put(&self, name: &str, bytes: Bytes) -> Result<(), StorageError> {
        let key = self.location.object_key(name)?;
        let put =
            || async { self.s3.put_opts(&key, bytes.clone().into(), PutOptions::default()).await.map_err(Fault::from) };
        self.patience("write", name).until(put).await.map(drop)
    }

    /// Writes an object unless there is one of this name.
    pub async fn put_new(&self, name: &str, bytes: Bytes) -> Result<PutNew, StorageError> {
        let key = self.location.object_key(name)?;
        let mut patience = self.patience("write", name);
        let writer = nonce().map_err(|fault| patience.error(&fault))?;
        if !self.heeds_conditions().await? {
            return self.put_unconditionally(name, bytes, &writer).await;
        }
        loop {
            let options =
                PutOptions { mode: PutMode::Create, attributes: written_by(&writer), ..PutOptions::default() };
            let fault = match self.s3.put_opts(&key, bytes.clone().into(), options).await.map_err(Fault::from) {
                Ok(_) => return Ok(PutNew::Created),
                Err(fault) => fault,
            };
            if fault.is_status(412) || fault.is_status(304) {
                return self.whose(name, &bytes, &writer).await;
            }
            patience.after(fault).await?;
        }
    }

    /// The best that can be done where a store overwrites in any case: two writers at the same moment may both believe that they were first.
    async fn put_unconditionally(&self, name: &str, bytes: Bytes, writer: &str) -> Result<PutNew, StorageError> {
        if self.head(name).await?.is_some() {
            return Ok(PutNew::Exists);
        }
        let key = self.location.key(name)?;
        let put = || async {
            let options = PutOptions { attributes: written_by(writer), ..PutOptions::default() };
            self.s3.put_opts(&key, bytes.clone().into(), options).await.map_err(Fault::from)
        };
        self.patience("write", name).until(put).await?;
        self.whose(name, &bytes, writer).await
    }

    /// Of an object that is there: an attempt of ours, or a proxy's, may have come through without our learning of it. A store that keeps no
    /// metadata cannot say who wrote it; there the same bytes are as good as ours.
    async fn whose(&self, name: &str, bytes: &Bytes, writer: &str) -> Result<PutNew, StorageError> {
        let is_ours = match self.writer_of(name).await? {
            Some(found) => found == writer,
            None => match self.get(name, Wanted::default(), bytes.len() as u64).await {
                Ok(found) => found.as_ref() == Some(bytes),
                Err(error) if error.kind() == Kind::TooLarge => false,
                Err(error) => return Err(error),
            },
        };
        Ok(if is_ours { PutNew::Created } else { PutNew::Exists })
    }

    /// Whether a condition of a write counts in this store. Some refuse it, which is honest; some do as if it were not there.
    pub async fn heeds_conditions(&self) -> Result<bool, StorageError> {
        match self.conditions.load(Ordering::Relaxed) {
            HEEDS => return Ok(true),
            HEEDS_NOT => return Ok(false),
            _ => {}
        }
        let writer = nonce().map_err(|fault| self.patience("write", "").error(&fault))?;
        let name = format!(".toroid-probe-{writer}");
        let key = self.location.key(&name)?;
        let create = || async {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match self.s3.put_opts(&key, PutPayload::from_static(b"probe"), options).await.map_err(Fault::from) {
                Ok(_) => Ok(Some(true)),
                Err(fault) if fault.is_status(412) || fault.is_status(304) => Ok(Some(false)),
                Err(fault) if fault.is_unsupported() => Ok(None),
                Err(fault) => Err(fault),
            }
        };
        let first = self.patience("write", &name).until(create).await?;
        let second = if first.is_some() { self.patience("write", &name).until(create).await? } else { None };
        if first.is_some()
            && let Err(error) = self.delete(&name).await
        {
            warn!("storage: {error}; the object is empty of meaning and may be deleted");
        }
        let heeds = second == Some(false);
        if !heeds {
            let how = if second.is_none() { "refuses" } else { "ignores" };
            warn!(
                "storage: {} {how} conditions of writes (If-None-Match): two writers at the same moment may both believe that they were first",
                self.location
            );
        }
        self.conditions.store(if heeds { HEEDS } else { HEEDS_NOT }, Ordering::Relaxed);
        Ok(heeds)
    }

    /// Who wrote an object, by its metadata.
    pub async fn writer_of(&self, name: &str) -> Result<Option<String>, StorageError> {
        let key = self.location.key(name)?;
        let look = || async {
            let options = GetOptions { head: true, ..GetOptions::default() };
            match self.s3.get_opts(&key, options).await.map_err(Fault::from) {
                Ok(found) => {
                    Ok(found.attributes.get(&Attribute::Metadata(WRITER.into())).map(|value| value.to_string()))
                }
                Err(fault) if fault.is_status(404) => Ok(None),
                Err(fault) => Err(fault),
            }
        };
        self.patience("look at", name).until(look).await
    }

    /// An object, unless there is none.
    pub async fn head(&self, name: &str) -> Result<Option<Object>, StorageError> {
        let key = self.location.key(name)?;
        let look = || async {
            let options = GetOptions { head: true, ..GetOptions::default() };
            match self.s3.get_opts(&key, options).await.map_err(Fault::from) {
                Ok(found) => Ok(Some(found.meta)),
                Err(fault) if fault.is_status(404) => Ok(None),
                // An answer to HEAD has no words; one to GET says why.
                Err(fault @ Fault::Refused { status: 400 | 403, .. }) => {
                    let options = GetOptions { range: Some(GetRange::Bounded(0..1)), ..GetOptions::default() };
                    let why = self.s3.get_opts(&key, options).await.map_err(Fault::from).err();
                    Err(why.filter(|why| matches!(why, Fault::Refused { .. })).unwrap_or(fault))
                }
                Err(fault) => Err(fault),
            }
        };
        let found = self.patience("look at", name).until(look).await?;
        Ok(found.map(|meta| Object { name: name.into(), ..object(&meta, String::new()) }))
    }

    /// The bytes `range` of an object, or what there is of it up to `max_bytes`; `None` where there is none. An answer that ends early is
    /// taken up where it ended, as long as the object stays the same.
    pub async fn get(&self, name: &str, wanted: Wanted, max_bytes: u64) -> Result<Option<Bytes>, StorageError> {
        let Wanted { range, etag } = wanted;
        let expected = etag.filter(|etag| is_strong(etag));
        let key = self.location.key(name)?;
        let mut patience = self.patience("read", name);
        let start = range.as_ref().map_or(0, |range| range.start);
        let end = range.as_ref().map(|range| range.end);
        if end.is_some_and(|end| end <= start) {
            return Ok(Some(Bytes::new()));
        }
        let (mut bytes, mut etag) = (BytesMut::new(), expected.clone());
        loop {
            let at = start + bytes.len() as u64;
            let wanted = match end {
                Some(end) => Some(GetRange::Bounded(at..end)),
                None if at > 0 => Some(GetRange::Offset(at)),
                None => None,
            };
            let options = GetOptions { range: wanted, if_match: etag.clone(), ..GetOptions::default() };
            let found = match self.s3.get_opts(&key, options).await.map_err(Fault::from) {
                // Some stores do as if there were no condition.
                Ok(found) if is_another(etag.as_deref(), found.meta.e_tag.as_deref()) => Err(None),
                Ok(found) => Ok(found),
                Err(fault) if fault.is_status(412) && etag.is_some() => Err(None),
                Err(fault) => Err(Some(fault)),
            };
            let found = match found {
                Ok(found) => found,
                // The bucket itself is missing: that is no answer about an object.
                Err(Some(fault)) if fault.is_status(404) && !fault.is_code("NoSuchBucket") => return Ok(None),
                Err(None) if expected.is_some() => {
                    let (url, what) = (self.location.url_of(name), "it has been replaced since it was listed");
                    return Err(StorageError::new(Kind::Changed, "read", &url, what));
                }
                Err(None) => {
                    (bytes, etag) = (BytesMut::new(), None);
                    patience.after(Fault::Lost("the object was replaced while it was read".into())).await?;
                    continue;
                }
                Err(Some(fault)) => {
                    patience.after(fault).await?;
                    continue;
                }
            };
            let missing = found.range.end - found.range.start;
            if bytes.len() as u64 + missing > max_bytes {
                let what = format!("it has {} bytes; at most {max_bytes} are taken", found.meta.size);
                return Err(StorageError::new(Kind::TooLarge, "read", &self.location.url_of(name), what));
            }
            etag = found.meta.e_tag.clone().filter(|etag| is_strong(etag));
            bytes.reserve(missing as usize);
            let mut pieces = found.into_stream();
            let ended = loop {
                match pieces.next().await {
                    Some(Ok(piece)) => {
                        bytes.extend_from_slice(&piece);
                        patience.renew();
                    }
                    Some(Err(error)) => break Some(Fault::from(error)),
                    None => break None,
                }
            };
            let num_new = bytes.len() as u64 - (at - start);
            match ended {
                None if num_new == missing => return Ok(Some(bytes.freeze())),
                None => patience.after(Fault::Lost(format!("{num_new} of {missing} bytes came"))).await?,
                Some(fault) => patience.after(fault).await?,
            }
            if etag.is_none() {
                bytes.clear();
            }
        }
    }

    /// Every object below `name`, in the order of their keys; an error where there are more than `max`.
    pub async fn list(&self, name: &str, max: usize) -> Result<Vec<Object>, StorageError> {
        Ok(self.pages(name, None, max).await?.objects)
    }

    /// What is directly below `name`.
    pub async fn list_folder(&self, name: &str, max: usize) -> Result<Listing, StorageError> {
        self.pages(name, Some("/"), max).await
    }

    async fn pages(&self, name: &str, delimiter: Option<&'static str>, max: usize) -> Result<Listing, StorageError> {
        let key = self.location.key(name)?;
        let below = if key.as_ref().is_empty() { String::new() } else { format!("{key}/") };
        let (mut listing, mut token) = (Listing::default(), None::<String>);
        loop {
            let page = || async {
                let (page_token, delimiter) = (token.clone(), delimiter.map(Into::into));
                let options = PaginatedListOptions { page_token, delimiter, ..PaginatedListOptions::default() };
                let prefix = (!below.is_empty()).then_some(below.as_str());
                self.s3.list_paginated(prefix, options).await.map_err(Fault::from)
            };
            let page = self.patience("list", name).until(page).await?;
            for meta in page.result.objects {
                // The object of a folder's own name, which consoles make, is nothing below it.
                if let Some(name) = self.location.name_of(meta.location.as_ref()).filter(|_| meta.location != key) {
                    listing.objects.push(object(&meta, name));
                }
            }
            listing
                .folders
                .extend(page.result.common_prefixes.iter().filter_map(|key| Some(key.filename()?.to_string())));
            if listing.objects.len() + listing.folders.len() > max {
                let what = format!("there are more than {max} names below it");
                return Err(StorageError::new(Kind::TooLarge, "list", &self.location.url_of(name), what));
            }
            match page.page_token {
                None => return Ok(listing),
                next if next == token => {
                    let fault = Fault::Garbled("the list does not go on".into());
                    return Err(self.patience("list", name).error(&fault));
                }
                next => token = next,
            }
        }
    }

    /// Deletes an object. It is no error that there is none.
    pub async fn delete(&self, name: &str) -> Result<(), StorageError> {
        let key = self.location.key(name)?;
        self.patience("delete", name).until(|| delete_by(&self.singly, vec![key.clone()])).await
    }

    /// Deletes many objects, in no order.
    pub async fn delete_all(&self, names: &[String]) -> Result<(), StorageError> {
        let keys = names.iter().map(|name| self.location.key(name)).collect::<Result<Vec<_>, _>>()?;
        for (chunk, names) in keys.chunks(DELETED_AT_ONCE).zip(names.chunks(DELETED_AT_ONCE)) {
            let delete = || async {
                match delete_by(&self.s3, chunk.to_vec()).await {
                    Err(fault) if fault.is_unsupported() => delete_by(&self.singly, chunk.to_vec()).await,
                    result => result,
                }
            };
            self.patience("delete", &names[0]).until(delete).await?;
        }
        Ok(())
    }
}

async fn delete_by(store: &AmazonS3, keys: Vec<Key>) -> Result<(), Fault> {
    let mut deleted = store.delete_stream(Box::pin(tokio_stream::iter(keys.into_iter().map(Ok))));
    while let Some(result) = deleted.next().await {
        match result.map_err(Fault::from) {
            Err(fault) if !fault.is_status(404) || fault.is_code("NoSuchBucket") => return Err(fault),
            _ => {}
        }
    }
    Ok(())
}

fn object(meta: &ObjectMeta, name: String) -> Object {
    Object { name, num_bytes: meta.size, etag: meta.e_tag.clone(), modified: meta.last_modified.into() }
}

/// Whether conditions may be made of it: a weak one matches nothing.
fn is_strong(etag: &str) -> bool {
    !etag.starts_with("W/")
}

/// Whether an answer is about another version of an object than the one that was meant, as far as both are known.
fn is_another(meant: Option<&str>, given: Option<&str>) -> bool {
    let bare = |etag: Option<&str>| etag.filter(|etag| is_strong(etag)).map(|etag| etag.trim_matches('"').to_owned());
    let (meant, given) = (bare(meant), bare(given));
    let is_known = |etag: &Option<String>| etag.as_ref().is_some_and(|etag| !etag.is_empty());
    is_known(&meant) && is_known(&given) && meant != given
}

fn check_endpoint(endpoint: &str) -> Result<(), String> {
    let wrong = |why: String| {
        format!("the endpoint \"{endpoint}\" is not one: {why}; expected http://HOST:PORT or https://HOST")
    };
    let url = url::Url::parse(endpoint).map_err(|e| wrong(e.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(wrong("it does not name a host by http or https".into()));
    }
    Ok(())
}

/// Shared by a store and its uploads.
pub(crate) type Shared = Arc<Client>;
