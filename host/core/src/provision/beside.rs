//! What is done for the next run beside what is done for this one: digests of templates' memory, and room in the cache.

use super::template::Found;
use super::{Provisioner, Pruned, TemplateId};
use std::sync::PoisonError;
use tokio_util::sync::CancellationToken;

impl Provisioner {
    /// Makes room for a template in the cache, and takes the digest of its memory, beside what is done next.
    pub(super) fn digest_later(&self, id: TemplateId, cancel: &CancellationToken) {
        let (store, cancel, limit) = (self.templates.clone(), cancel.clone(), self.limit.clone());
        self.beside(move || {
            if let Found::Ready(template) = store.open_id(&id) {
                // It is in use now, and stays.
                if let Some((cache, bytes)) = limit {
                    tell_evicted(&cache.evict(bytes));
                }
                let taken = template.digest_pages(&|| !cancel.is_cancelled());
                if let Err(error) = taken {
                    tracing::debug!(%error, "no digest of a template's memory");
                }
            }
        });
    }

    /// Makes room in the cache beside what is done next; for who has made an image. It is in use, and stays.
    pub fn make_room(&self) {
        if let Some((cache, bytes)) = self.limit.clone() {
            self.beside(move || tell_evicted(&cache.evict(bytes)));
        }
    }

    /// Does something for the next run beside what is done for this one.
    fn beside(&self, work: impl FnOnce() + Send + 'static) {
        let working = tokio::task::spawn_blocking(work);
        self.working.lock().unwrap_or_else(PoisonError::into_inner).push(working);
    }

    /// Waits for what is still done beside: digests of templates that were made, and room.
    pub async fn finish(&self) {
        let working =
            std::mem::take(&mut *self.working.lock().unwrap_or_else(PoisonError::into_inner));
        for work in working {
            let _ = work.await;
        }
    }
}

fn tell_evicted(pruned: &[Pruned]) {
    for Pruned { entry, removal, .. } in pruned {
        tracing::info!(kind = entry.content.kind(), id = %entry.id, ?removal, "the cache is over its limit");
    }
}
