//! A large object, in parts: a few of them are on their way while the next is filled.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path as Key;
use object_store::{MultipartId, PutMultipartOptions};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::client::{Client, Shared, nonce, written_by};
use crate::error::{Kind, StorageError};
use crate::fault::Fault;
use crate::store::wait;

/// The least size of a part. All parts of an object but the last have the same size: some stores insist on it.
pub const PART_BYTES: usize = 8 << 20;
/// Of an object of which nobody says how large it will be: enough for 160 GB.
const UNKNOWN_PART_BYTES: usize = 16 << 20;
/// S3's own bound is 10,000; an object may grow a little beyond what was said.
const NUM_PARTS_MAX: usize = 10_000;
const NUM_PARTS_PLANNED: u64 = 9_000;
/// Parts on their way at once. So an upload holds at most five parts.
const NUM_IN_FLIGHT: usize = 4;

/// Bytes that become an object when it is finished. Dropped before, it leaves nothing: what has been sent is taken back.
#[derive(Debug)]
pub struct Upload {
    client: Shared,
    handle: Handle,
    name: String,
    key: Key,
    part_bytes: usize,
    buffer: Vec<u8>,
    num_bytes: u64,
    parts: Option<Parts>,
}

/// What has begun at the store.
#[derive(Debug)]
struct Parts {
    id: MultipartId,
    writer: String,
    permits: Arc<Semaphore>,
    sent: Vec<JoinHandle<Result<PartId, StorageError>>>,
    /// The first that failed, for whoever writes next.
    failed: Arc<Mutex<Option<StorageError>>>,
}

impl Upload {
    pub(crate) fn new(
        client: Shared,
        handle: Handle,
        name: &str,
        num_bytes: Option<u64>,
    ) -> Result<Upload, StorageError> {
        let key = client.location.object_key(name)?;
        let planned = num_bytes.map_or(UNKNOWN_PART_BYTES, |num_bytes| num_bytes.div_ceil(NUM_PARTS_PLANNED) as usize);
        // Whole mebibytes.
        let part_bytes = planned.max(PART_BYTES).div_ceil(1 << 20) << 20;
        Ok(Upload { client, handle, name: name.into(), key, part_bytes, buffer: Vec::new(), num_bytes: 0, parts: None })
    }

    /// Bytes that were written so far.
    pub fn num_bytes(&self) -> u64 {
        self.num_bytes
    }

    /// Waits while as many parts as may be are on their way.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), StorageError> {
        self.num_bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            if self.buffer.len() == self.part_bytes {
                self.send()?;
            }
            if self.buffer.capacity() == 0 {
                self.buffer.reserve_exact(self.part_bytes);
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.part_bytes - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Sends the full buffer as a part.
    fn send(&mut self) -> Result<(), StorageError> {
        if self.parts.is_none() {
            self.parts = Some(self.begin()?);
        }
        let Some(parts) = &mut self.parts else { return Ok(()) };
        let index = parts.sent.len();
        if index == NUM_PARTS_MAX {
            let (what, url) =
                (format!("it has more than {NUM_PARTS_MAX} parts of {} bytes", self.part_bytes), &self.name);
            return Err(StorageError::new(Kind::TooLarge, "write", &self.client.location.url_of(url), what));
        }
        let permits = Arc::clone(&parts.permits);
        let permit = wait(&self.handle, async move { permits.acquire_owned().await });
        if let Some(error) = parts.failed.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Err(error);
        }
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let (client, key, id, name) = (Arc::clone(&self.client), self.key.clone(), parts.id.clone(), self.name.clone());
        let failed = Arc::clone(&parts.failed);
        parts.sent.push(self.handle.spawn(async move {
            let put =
                || async { client.s3.put_part(&key, &id, index, bytes.clone().into()).await.map_err(Fault::from) };
            let part = client.patience("write a part of", &name).until(put).await;
            if let Err(error) = &part {
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.clone());
            }
            drop(permit);
            part
        }));
        Ok(())
    }

    fn begin(&self) -> Result<Parts, StorageError> {
        let (client, key, name) = (Arc::clone(&self.client), self.key.clone(), self.name.clone());
        let (id, writer) = wait(&self.handle, async move {
            let patience = client.patience("begin", &name);
            let writer = nonce().map_err(|fault| patience.error(&fault))?;
            let begin = || async {
                let options = PutMultipartOptions { attributes: written_by(&writer), ..PutMultipartOptions::default() };
                client.s3.create_multipart_opts(&key, options).await.map_err(Fault::from)
            };
            let id = patience.until(begin).await?;
            Ok::<_, StorageError>((id, writer))
        })?;
        let permits = Arc::new(Semaphore::new(NUM_IN_FLIGHT));
        Ok(Parts { id, writer, permits, sent: Vec::new(), failed: Arc::default() })
    }

    /// The object is there, whole and durable, when this returns; otherwise it is as it was before.
    pub fn finish(mut self) -> Result<(), StorageError> {
        if self.parts.is_none() {
            let (client, name, bytes) =
                (Arc::clone(&self.client), self.name.clone(), Bytes::from(std::mem::take(&mut self.buffer)));
            return wait(&self.handle, async move { client.put(&name, bytes).await });
        }
        if !self.buffer.is_empty() {
            self.send()?;
        }
        let Some(mut parts) = self.parts.take() else { return Ok(()) };
        let sent = std::mem::take(&mut parts.sent);
        let whole = wait(&self.handle, all(sent));
        let (client, key, name) = (Arc::clone(&self.client), self.key.clone(), self.name.clone());
        let result = match whole {
            Ok(whole) => {
                let (id, writer) = (parts.id.clone(), parts.writer.clone());
                wait(&self.handle, async move { complete(&client, &key, &name, &id, &writer, whole).await })
            }
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.parts = Some(parts);
        }
        result
    }
}

/// What the parts are called, once all are there; the first error otherwise, once none is on its way any more.
async fn all(sent: Vec<JoinHandle<Result<PartId, StorageError>>>) -> Result<Vec<PartId>, StorageError> {
    let (mut parts, mut failed) = (Vec::with_capacity(sent.len()), None);
    for part in sent {
        match part.await.expect("sending a part does not panic, and nobody ends it") {
            Ok(part) => parts.push(part),
            Err(error) => drop(failed.get_or_insert(error)),
        }
    }
    failed.map_or(Ok(parts), Err)
}

async fn complete(
    client: &Client,
    key: &Key,
    name: &str,
    id: &MultipartId,
    writer: &str,
    parts: Vec<PartId>,
) -> Result<(), StorageError> {
    let mut patience = client.patience("complete", name);
    loop {
        let fault = match client.s3.complete_multipart(key, id, parts.clone()).await.map_err(Fault::from) {
            Ok(_) => return Ok(()),
            Err(fault) => fault,
        };
        // Completed already, by an attempt whose answer was lost; or gone.
        if fault.is_status(404) && client.writer_of(name).await?.as_deref() == Some(writer) {
            return Ok(());
        }
        patience.after(fault).await?;
    }
}

impl Drop for Upload {
    /// What is not finished is taken back, without waiting for it: after a kill, or without a connection, a rule of the bucket's life cycle does it.
    fn drop(&mut self) {
        let Some(parts) = self.parts.take() else { return };
        let (client, key, name) = (Arc::clone(&self.client), self.key.clone(), self.name.clone());
        self.handle.spawn(async move {
            for part in &parts.sent {
                part.abort();
            }
            for part in parts.sent {
                let _ = part.await;
            }
            let abort = || async { client.s3.abort_multipart(&key, &parts.id).await.map_err(Fault::from) };
            match client.patience("take back parts of", &name).until(abort).await {
                Ok(()) => debug!("storage: parts of {} are taken back", client.location.url_of(&name)),
                Err(error) if error.kind() == Kind::Missing => {}
                Err(error) => warn!(
                    "storage: {error}; parts that are left cost until a rule of the bucket's life cycle removes them"
                ),
            }
        });
    }
}
