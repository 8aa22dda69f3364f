//! Removing heads (D16, D26): their mixed values become zero or the mean over prompts that do not tell the
//! answer, with attention patterns recomputed or kept.
//!
//! Main types: [`Means`], [`Knockout`]. A mean is taken per template, length and position over the ABC prompts, so
//! that only what the names say is lost.

use std::collections::{BTreeMap, BTreeSet};

use sweep_lens::{Cache, Hook, Hooks, Kind, Site, Tensor};

use super::{
    batch::{Batch, Meter},
    heads::Head,
    prompts::IoiSet,
};

/// Mean mixed values of the ABC prompts.
#[derive(Debug)]
pub(crate) struct Means {
    /// Group of each prompt: its template and length.
    groups: Vec<i64>,
    n_groups: i64,
    longest: i64,
    /// Per layer, f64 `[group, pos, head, d_head]`.
    sums: BTreeMap<u32, Tensor>,
    /// f64 `[group, 1, 1, 1]`
    counts: Option<Tensor>,
}

impl Means {
    /// No prompt seen yet.
    pub(crate) fn new(set: &IoiSet) -> Self {
        let keys: Vec<(usize, usize)> =
            set.prompts.iter().map(|prompt| (prompt.template, prompt.tokens.len())).collect();
        let distinct: Vec<(usize, usize)> =
            keys.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let group = |key| distinct.binary_search(key).map_or(0, |group| group as i64);
        Self {
            groups: keys.iter().map(group).collect(),
            n_groups: distinct.len() as i64,
            longest: keys.iter().map(|key| key.1).max().unwrap_or(0) as i64,
            sums: BTreeMap::new(),
            counts: None,
        }
    }

    /// Adds the prompts of a batch.
    pub(crate) fn see(&mut self, meter: &Meter<'_>, batch: &Batch) {
        let mut cache = Cache::only(|hook| matches!(hook, Hook::Block { site: Site::Z, .. }));
        meter.watch(&batch.abc, &mut cache);
        let groups = self.groups_of(batch);
        let double = (Kind::Double, batch.tokens.device());
        // All that takes memory comes first: a batch that fails is tried again and must not count twice.
        let wide: Vec<(u32, Tensor)> = cache
            .iter()
            .filter_map(|(hook, z)| Some((hook.layer()?, z.to_kind(Kind::Double))))
            .collect();
        for (layer, z) in &wide {
            let mut shape = z.size();
            (shape[0], shape[1]) = (self.n_groups, self.longest);
            self.sums.entry(*layer).or_insert_with(|| Tensor::zeros(shape.as_slice(), double));
        }
        for (layer, z) in &wide {
            if let Some(sum) = self.sums.get(layer) {
                let _ = sum.narrow(1, 0, batch.n_pos()).index_add_(0, &groups, z);
            }
        }
        let mut counts =
            self.counts.take().unwrap_or_else(|| Tensor::zeros([self.n_groups, 1, 1, 1], double));
        let ones = Tensor::ones([batch.n_rows(), 1, 1, 1], double);
        let _ = counts.index_add_(0, &groups, &ones);
        self.counts = Some(counts);
    }

    /// What stands in for the mixed values of a batch: per layer f64 `[row, pos, head, d_head]`.
    pub(crate) fn of(&self, batch: &Batch) -> BTreeMap<u32, Tensor> {
        let groups = self.groups_of(batch);
        let mean = |sum: &Tensor| {
            let sum = sum.narrow(1, 0, batch.n_pos()).index_select(0, &groups);
            match &self.counts {
                Some(counts) => sum / counts.index_select(0, &groups),
                None => sum,
            }
        };
        self.sums.iter().map(|(layer, sum)| (*layer, mean(sum))).collect()
    }

    fn groups_of(&self, batch: &Batch) -> Tensor {
        let rows = &self.groups[batch.first..batch.first + batch.n_rows() as usize];
        Tensor::from_slice(rows).to_device(batch.tokens.device())
    }
}

/// Removes heads in one pass.
pub(crate) struct Knockout<'a> {
    /// Which.
    pub heads: Vec<Head>,
    /// What their mixed values become, per layer `[row, pos, head, d_head]`; zero if nothing is given.
    pub means: Option<&'a BTreeMap<u32, Tensor>>,
    /// Patterns of every layer that are kept, if they are.
    pub patterns: Option<&'a Cache>,
}

impl Hooks for Knockout<'_> {
    fn wants(&self, hook: Hook) -> bool {
        match hook {
            Hook::Block { layer, site: Site::Z } => self.heads.iter().any(|h| h.layer == layer),
            Hook::Block { site: Site::Pattern, .. } => self.patterns.is_some(),
            _ => false,
        }
    }

    fn visit(&mut self, hook: Hook, activation: Tensor) -> Tensor {
        let Hook::Block { layer, site } = hook else { return activation };
        if site == Site::Pattern {
            let kept = self.patterns.and_then(|cache| cache.get(hook));
            return kept.map_or(activation, Tensor::shallow_clone);
        }
        let changed = activation.copy();
        for head in self.heads.iter().filter(|head| head.layer == layer) {
            let mut target = changed.select(2, head.head);
            match self.means.and_then(|means| means.get(&layer)) {
                Some(mean) => target.copy_(&mean.select(2, head.head)),
                None => {
                    let _ = target.zero_();
                }
            }
        }
        changed
    }
}

/// Patterns of every layer on the prompts of a batch.
pub(crate) fn patterns(meter: &Meter<'_>, batch: &Batch) -> Cache {
    let mut cache = Cache::only(|hook| matches!(hook, Hook::Block { site: Site::Pattern, .. }));
    meter.watch(&batch.tokens, &mut cache);
    cache
}
