//! The narrow interface to a key-value store: what a back end must be able to do, and no more.

use super::Result;

/// Changes that are applied together: a value to set, or none to remove the key. Of several
/// changes of one key the last one counts.
pub type Batch = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// Visits one key and value; returns whether to go on.
pub type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> bool + 'v;

/// An ordered key-value store with one writer and any number of readers.
pub trait Kv: Send + Sync {
    /// The value of a key.
    ///
    /// # Errors
    /// When the back end fails.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Visits keys that begin with `prefix` and are not below `from`, in order, in one consistent
    /// view: a batch is seen as a whole or not at all. `visit` must not call the store.
    ///
    /// # Errors
    /// When the back end fails.
    fn scan(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> Result<()>;

    /// Applies a batch, all or nothing, and returns when it is durable.
    ///
    /// # Errors
    /// When that failed. Whether the batch is there is then unknown.
    fn commit(&self, batch: Batch) -> Result<()>;
}
