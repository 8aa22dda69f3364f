//! Runs a bundle of experiments on one loaded checkpoint ([`analyse`]): observers that read the same
//! token set share one forward pass, and layers and unembeddings that nobody reads are not computed.
//!
//! Invariant: an experiment that fails or panics takes no other one down. Only a failure of the forward
//! pass itself reaches all observers of that pass.

use sweep_lens::{Architecture, Hook, Hooks, Run, Tensor, Transformer};

use crate::{
    card::Stage,
    error::{Error, Result, catch},
    experiment::{Analysis, AnyExperiment, Observer, Subject, TokenSet},
    readout::{Read, Readout},
    sink::{Context, Sink},
};

/// One experiment to run on the subject.
pub struct AnalyseJob<'a> {
    /// Which.
    pub experiment: &'a dyn AnyExperiment,
    /// With what parameters.
    pub params: &'a serde_json::Value,
    /// Where its results go.
    pub sink: &'a mut dyn Sink,
}

/// Runs all jobs on `subject`; one result per job, in order.
pub fn analyse(jobs: &mut [AnalyseJob<'_>], subject: &Subject<'_>) -> Vec<Result<()>> {
    // Analyses never train; without this guard every pass would keep its graph.
    let _no_grad = tch::no_grad_guard();
    let mut results: Vec<Result<()>> = Vec::with_capacity(jobs.len());
    let mut passes: Vec<Pass<'_>> = Vec::new();
    for (index, job) in jobs.iter_mut().enumerate() {
        let card = job.experiment.card();
        let planned = if card.stage == Stage::Analyse {
            catch(|| job.experiment.analyse(subject, job.params))
        } else {
            Err(Error::Unsupported(format!("`{}` is not run on single checkpoints", card.name)))
        };
        results.push(match planned {
            Err(error) => Err(error),
            Ok(Analysis::Procedure(procedure)) => {
                let mut cx = Context::new(card, subject.checkpoint.step, &mut *job.sink);
                catch(|| procedure(&mut cx))
            }
            Ok(Analysis::Observe(tokens, observer)) => {
                let watcher = Watcher { job: index, observer, failure: None };
                match passes.iter_mut().find(|pass| pass.tokens.is_same(&tokens)) {
                    Some(pass) => pass.join(&tokens, watcher),
                    None => passes.push(Pass { tokens, watchers: vec![watcher] }),
                }
                Ok(())
            }
        });
    }
    for mut pass in passes {
        if let Err(error) = pass.run(subject.model, jobs) {
            pass.fail(&error);
        }
        for watcher in pass.watchers {
            let job = &mut jobs[watcher.job];
            results[watcher.job] = watcher.failure.map_or_else(
                || {
                    let card = job.experiment.card();
                    let mut cx = Context::new(card, subject.checkpoint.step, &mut *job.sink);
                    catch(|| watcher.observer.finish(&mut cx))
                },
                Err,
            );
        }
    }
    results
}

impl TokenSet {
    fn is_same(&self, other: &Self) -> bool {
        self.last_position_only == other.last_position_only
            && self.tokens.size() == other.tokens.size()
            && self.tokens.device() == other.tokens.device()
            && self.tokens.equal(&other.tokens)
    }
}

/// An observer on its way through a pass.
struct Watcher<'a> {
    job: usize,
    observer: Box<dyn Observer + 'a>,
    failure: Option<Error>,
}

impl Watcher<'_> {
    fn give(&mut self, activation: impl FnOnce(&mut dyn Observer) -> Result<()>) {
        if self.failure.is_none() {
            self.failure = catch(|| activation(self.observer.as_mut())).err();
        }
    }
}

/// All observers of one token set.
struct Pass<'a> {
    tokens: TokenSet,
    watchers: Vec<Watcher<'a>>,
}

impl<'a> Pass<'a> {
    fn join(&mut self, tokens: &TokenSet, watcher: Watcher<'a>) {
        self.tokens.rows_per_batch = self.tokens.rows_per_batch.min(tokens.rows_per_batch);
        self.watchers.push(watcher);
    }

    fn run(&mut self, model: &Transformer, jobs: &mut [AnalyseJob<'_>]) -> Result<()> {
        let n_rows = self.tokens.tokens.size()[0];
        let rows_per_batch = self.tokens.rows_per_batch.max(1);
        let wants_logits = self.watchers.iter().any(|watcher| watcher.observer.wants_logits());
        let readout = Readout {
            model,
            wants_logits,
            widths: self.watchers.iter().filter_map(|w| w.observer.wants_losses()).collect(),
        };
        let wants_readout = wants_logits || !readout.widths.is_empty();
        let hooks = model.config().hooks();
        let wanted = |hook: &Hook| self.watchers.iter().any(|w| w.observer.wants(*hook));
        let run = Run {
            last_position_only: self.tokens.last_position_only,
            // The readout unembeds; a perceptron has no unembedding apart from its last layer.
            skip_unembed: !wants_readout
                || model.config().architecture == Architecture::Transformer,
            stop_after_layer: last_layer(hooks.into_iter().filter(wanted), wants_readout),
        };
        let mut first_row = 0;
        while first_row < n_rows && self.watchers.iter().any(|w| w.failure.is_none()) {
            let length = rows_per_batch.min(n_rows - first_row);
            let tokens = self.tokens.tokens.narrow(0, first_row, length);
            let read = catch(|| {
                let mut fan_out = FanOut { first_row, watchers: &mut self.watchers };
                let normalized = model.forward(&tokens, &run, &mut fan_out);
                Ok(if wants_readout { readout.read(&normalized, &tokens) } else { Read::default() })
            })?;
            first_row += length;
            for watcher in &mut self.watchers {
                if let Some(logits) =
                    read.logits.as_ref().filter(|_| watcher.observer.wants_logits())
                {
                    watcher.give(|observer| observer.logits(first_row - length, logits));
                }
                let width = watcher.observer.wants_losses();
                if let Some(losses) = width.and_then(|width| read.losses.get(&width)) {
                    watcher.give(|observer| observer.losses(first_row - length, losses));
                }
                let progress = jobs[watcher.job].sink.progress(first_row as u64, n_rows as u64);
                watcher.give(|_| Ok(progress?));
            }
        }
        Ok(())
    }

    /// Gives every watcher that has not failed by itself the failure of the pass.
    fn fail(&mut self, error: &Error) {
        for watcher in &mut self.watchers {
            watcher.failure.get_or_insert_with(|| Error::from_panic(&error.to_string()));
        }
    }
}

/// The last block that has to run, or `None` if everything has to.
fn last_layer(wanted: impl Iterator<Item = Hook>, wants_readout: bool) -> Option<u32> {
    if wants_readout {
        return None;
    }
    let mut last = 0;
    for hook in wanted {
        match hook {
            Hook::LnFinal(_) => return None,
            Hook::Embed | Hook::PosEmbed => {}
            Hook::Block { layer, .. } => last = last.max(layer),
        }
    }
    Some(last)
}

/// Passes each activation on to everybody who wants it; never changes one.
struct FanOut<'p, 'a> {
    first_row: i64,
    watchers: &'p mut [Watcher<'a>],
}

impl Hooks for FanOut<'_, '_> {
    fn wants(&self, hook: Hook) -> bool {
        self.watchers.iter().any(|w| w.failure.is_none() && w.observer.wants(hook))
    }

    fn visit(&mut self, hook: Hook, activation: Tensor) -> Tensor {
        for watcher in self.watchers.iter_mut().filter(|w| w.observer.wants(hook)) {
            watcher.give(|observer| observer.see(hook, self.first_row, &activation));
        }
        activation
    }
}
