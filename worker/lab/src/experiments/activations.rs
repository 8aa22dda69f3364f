//! Activations and logits of given prompts, as a file.
//!
//! # What it measures
//! Nothing: it writes `activations.safetensors` with one tensor per wanted name, in TransformerLens' names and
//! shapes (`blocks.0.attn.hook_pattern` is `[batch, head, query, key]`, `logits` is `[batch, position,
//! vocabulary]`), in the model's element type, rows in the order given. `*` for a block's number means every
//! block. Names are those of `HookedTransformer`, with the hooks that it fires on demand (`hook_q_input`), and those
//! that `TransformerBridge` adds (`blocks.0.ln1.hook_out`, `hook_unembed`); `hook_normalized` is the quotient before the
//! norm's weight and bias. Metadata entries say what was run: `tokens` (JSON), `prepend_bos`, `step`, `weights_hash`,
//! `processing`, and `tokenizer_hash` where there is a tokenizer. The metrics `n_tokens` and `n_bytes` say how
//! much it was.
//!
//! # Interpretation
//! Load it with `safetensors.torch.load_file` and go on in a notebook as from a `run_with_cache`. All rows have
//! to be equally long: a padded row would need a mask that the file could not tell apart from real positions.
//!
//! # Source
//! TransformerLens' `run_with_cache`.

use std::collections::BTreeMap;

use sweep_lens::{Config, Device, Hook, Kind, Tensor, checkpoint::encode_tensors};

use crate::{
    activation_names::{self, Source},
    card::{Card, MetricDef, Requires, Stage, Unit},
    error::{Error, Result},
    experiment::{Analysis, Experiment, Inputs, Observer, Subject, TokenSet},
    params::{ParamSet, params},
    prompts::Prompts,
    sink::Context,
};

/// See the module documentation.
pub struct Activations;

params! {
    /// Which activations of which prompts.
    pub struct Params {
        /// Prompts as lists of token ids, equally long.
        tokens: Vec<Vec<i64>> = Vec::new(), min = 0.0, group = "prompts";
        /// Prompts as texts for the model's tokenizer, equally long in tokens.
        text: Vec<String> = Vec::new(), group = "prompts";
        /// TransformerLens' names of activations (`*` for every block), or `logits`.
        names: Vec<String> = vec!["logits".to_owned()];
        /// Whether the BOS token goes in front; null: the model's default for texts, no for tokens.
        prepend_bos: Option<bool> = None;
        /// Largest file, in MiB; more is refused before anything runs.
        max_mib: u64 = 1024, min = 1.0;
    }
}

impl Experiment for Activations {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "activations",
        version: 1,
        summary: "Saves activations and logits of given prompts under TransformerLens' names",
        source: "TransformerLens run_with_cache",
        stage: Stage::Analyse,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: &[],
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Checkpoint { init: false, previous: false }
    }

    fn analyse<'a>(&self, subject: &Subject<'a>, params: Params) -> Result<Analysis<'a>> {
        let config = subject.model.config();
        let wanted = resolve(&params.names, config)?;
        let prompts = Prompts::new(subject, &params.tokens, &params.text, params.prepend_bos)?;
        let Some(length) = prompts.common_length() else {
            let lengths: Vec<String> =
                prompts.rows.iter().map(|row| row.len().to_string()).collect();
            let param = if params.text.is_empty() { "tokens" } else { "text" };
            return Err(Error::params(
                param,
                format!(
                    "expected equally long rows, found {} tokens: list the experiment once for each length",
                    lengths.join(", ")
                ),
            ));
        };
        let kind = subject.model.weights().iter().next().map_or(Kind::Float, |(_, w)| w.kind());
        let n_rows = prompts.rows.len() as i64;
        let plan = Plan { wanted, n_rows, length: length as i64, kind };
        plan.check_size(config, params.max_mib << 20)?;
        let tokens = TokenSet {
            tokens: prompts.padded().to_device(subject.device),
            rows_per_batch: plan.rows_per_batch(config),
            last_position_only: false,
        };
        let recorder = Recorder::new(plan, subject, &prompts)?;
        Ok(Analysis::Observe(tokens, Box::new(recorder)))
    }
}

/// Finds what the names mean for this model, by name; a name may stand for several activations.
fn resolve(names: &[String], config: &Config) -> Result<BTreeMap<String, Source>> {
    if names.is_empty() {
        return Err(Error::params("names", "expected at least one name, found none"));
    }
    let (own, others) = (activation_names::own(config), activation_names::others(config));
    let mut wanted = BTreeMap::new();
    for name in names {
        let found: Vec<_> =
            own.iter().chain(&others).filter(|(known, _)| fits(name, known)).cloned().collect();
        if found.is_empty() {
            return Err(unknown(name, &own, &others));
        }
        wanted.extend(found);
    }
    Ok(wanted)
}

/// Whether `pattern`, in which `*` stands for a block's number, means `name`.
fn fits(pattern: &str, name: &str) -> bool {
    if pattern == name {
        return true;
    }
    let rest =
        |text: &str| text.strip_prefix("blocks.")?.split_once('.').map(|(_, rest)| rest.to_owned());
    pattern.starts_with("blocks.*.") && rest(pattern).is_some_and(|site| rest(name) == Some(site))
}

fn unknown(name: &str, own: &[(String, Source)], others: &[(String, Source)]) -> Error {
    let mut close: Vec<(usize, &str)> = own
        .iter()
        .chain(others)
        .map(|(known, _)| (strsim::damerau_levenshtein(name, known), known.as_str()))
        .filter(|(distance, known)| *distance <= 2 + known.len() / 5)
        .collect();
    close.sort_unstable();
    let hint = if let Some((_, first)) = close.first() {
        format!("did you mean `{first}`?")
    } else {
        let is_of_a_later_block =
            |source: &Source| source.hook().and_then(Hook::layer).is_some_and(|layer| layer > 0);
        let names: Vec<&str> = own
            .iter()
            .filter(|(_, source)| !is_of_a_later_block(source))
            .map(|(name, _)| name.as_str())
            .collect();
        format!("it has {}, and so on for every block", names.join(", "))
    };
    match name.parse::<Hook>() {
        Ok(_) => Error::Unsupported(format!("this model has no activation `{name}`: {hint}")),
        Err(_) => Error::params("names", format!("no activation is called `{name}`: {hint}")),
    }
}

/// What will be written, and how large it is.
struct Plan {
    wanted: BTreeMap<String, Source>,
    n_rows: i64,
    length: i64,
    kind: Kind,
}

impl Plan {
    /// Bytes of one wanted tensor for `batch` rows.
    fn n_bytes(&self, wanted: &Source, config: &Config, batch: i64) -> u64 {
        let sizes = wanted.shape(config, batch, self.length);
        let kind = match wanted {
            Source::Tokens | Source::Positions => Kind::Int64,
            _ => self.kind,
        };
        let element = kind.elt_size_in_bytes() as u64;
        sizes.into_iter().fold(element, |product, size| product.saturating_mul(size.unsigned_abs()))
    }

    fn total_bytes(&self, config: &Config, batch: i64) -> u64 {
        let sizes = self.wanted.values().map(|wanted| self.n_bytes(wanted, config, batch));
        sizes.fold(0, u64::saturating_add)
    }

    fn check_size(&self, config: &Config, limit: u64) -> Result<()> {
        let total = self.total_bytes(config, self.n_rows);
        if total <= limit {
            return Ok(());
        }
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let sizes =
            self.wanted.iter().map(|(name, w)| (self.n_bytes(w, config, self.n_rows), name));
        let largest = sizes.max().map_or_else(String::new, |(bytes, name)| {
            format!(" (`{name}` alone {} MiB)", mib(bytes))
        });
        Err(Error::params(
            "max_mib",
            format!(
                "{} tensors of {} rows × {} tokens take {} MiB{largest}, at most {} MiB are allowed",
                self.wanted.len(),
                self.n_rows,
                self.length,
                mib(total),
                mib(limit)
            ),
        ))
    }

    /// As many rows as keep what one pass holds at once within a few hundred MiB.
    fn rows_per_batch(&self, config: &Config) -> i64 {
        const PASS_BYTES: u64 = 256 << 20;
        let per_row = self.total_bytes(config, 1).max(1);
        ((PASS_BYTES / per_row) as i64).clamp(1, self.n_rows)
    }
}

fn metadata(subject: &Subject<'_>, prompts: &Prompts) -> Result<BTreeMap<String, String>> {
    let tokens = serde_json::to_string(&prompts.rows)
        .map_err(|error| Error::Sink { what: "tokens".to_owned(), source: Box::new(error) })?;
    let mut entries = BTreeMap::from([
        ("tokens".to_owned(), tokens),
        ("prepend_bos".to_owned(), prompts.prepend_bos.to_string()),
        ("step".to_owned(), subject.checkpoint.step.to_string()),
        ("weights_hash".to_owned(), subject.checkpoint.weights_hash.clone()),
        ("processing".to_owned(), subject.processing.to_owned()),
    ]);
    if let Some(codec) = subject.text {
        entries.insert("tokenizer_hash".to_owned(), codec.hash().to_owned());
    }
    Ok(entries)
}

/// Collects the wanted tensors on the CPU.
struct Recorder {
    plan: Plan,
    metadata: BTreeMap<String, String>,
    /// Weight and bias of the norms whose result is wanted, by the norm's name.
    norms: BTreeMap<String, [Option<Tensor>; 2]>,
    found: BTreeMap<String, Tensor>,
}

impl Recorder {
    fn new(plan: Plan, subject: &Subject<'_>, prompts: &Prompts) -> Result<Self> {
        let (config, weights) = (subject.model.config(), subject.model.weights());
        let mut norms = BTreeMap::new();
        let mut found = BTreeMap::new();
        for (name, source) in &plan.wanted {
            let fixed = match source {
                Source::Normed(_, norm) => {
                    let parameter = |part: &str| {
                        weights.get(&format!("{norm}.{part}")).map(Tensor::shallow_clone)
                    };
                    norms.insert(norm.clone(), [parameter("w"), parameter("b")]);
                    None
                }
                Source::Tokens => Some(prompts.padded()),
                Source::Positions => {
                    Some(Tensor::arange(plan.length, (Kind::Int64, Device::Cpu)).unsqueeze(0))
                }
                Source::Cos => config.rotary_tables(plan.length).map(|(cos, _)| cos),
                Source::Sin => config.rotary_tables(plan.length).map(|(_, sin)| sin),
                Source::Hook(_) | Source::PerHead(..) | Source::Logits => None,
            };
            found.extend(fixed.map(|tensor| (name.clone(), tensor)));
        }
        Ok(Self { metadata: metadata(subject, prompts)?, plan, norms, found })
    }

    /// Keeps what is made of one activation, or of the logits.
    fn record(&mut self, is_wanted: impl Fn(&Source) -> bool, first_row: i64, rows: &Tensor) {
        let n_rows = self.plan.n_rows;
        for (name, source) in self.plan.wanted.iter().filter(|(_, source)| is_wanted(source)) {
            let rows = match source {
                Source::Normed(_, norm) => match &self.norms[norm] {
                    [Some(w), Some(b)] => rows * w + b,
                    [Some(w), None] => rows * w,
                    [None, _] => rows.shallow_clone(),
                },
                // [batch, pos, head, d_model]
                Source::PerHead(_, heads) => rows.unsqueeze(2).expand([-1, -1, *heads, -1], false),
                _ => rows.shallow_clone(),
            };
            let place = self.found.entry(name.clone()).or_insert_with(|| {
                let mut size = rows.size();
                size[0] = n_rows;
                Tensor::empty(&size, (rows.kind(), Device::Cpu))
            });
            place.narrow(0, first_row, rows.size()[0]).copy_(&rows.detach());
        }
    }
}

impl Observer for Recorder {
    fn wants(&self, hook: Hook) -> bool {
        self.plan.wanted.values().any(|source| source.hook() == Some(hook))
    }

    fn wants_logits(&self) -> bool {
        self.plan.wanted.values().any(|source| *source == Source::Logits)
    }

    fn see(&mut self, hook: Hook, first_row: i64, activation: &Tensor) -> Result<()> {
        self.record(|source| source.hook() == Some(hook), first_row, activation);
        Ok(())
    }

    fn logits(&mut self, first_row: i64, logits: &Tensor) -> Result<()> {
        self.record(|source| *source == Source::Logits, first_row, logits);
        Ok(())
    }

    fn finish(self: Box<Self>, cx: &mut Context<'_>) -> Result<()> {
        let Self { plan, metadata, found, .. } = *self;
        if let Some(missing) = plan.wanted.keys().find(|name| !found.contains_key(*name)) {
            return Err(Error::Input(format!("the forward pass gave no `{missing}`")));
        }
        cx.metric("n_tokens", (plan.n_rows * plan.length) as f64)?;
        let named = found.iter().map(|(name, tensor)| (name.as_str(), tensor));
        let file = encode_tensors(named, &metadata)?;
        drop(found);
        cx.metric("n_bytes", file.len() as f64)?;
        cx.artifact("activations.safetensors", file)
    }
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "n_tokens",
        unit: Unit::Count,
        axes: &[],
        doc: "Tokens that the model read, BOS tokens included",
    },
    MetricDef { name: "n_bytes", unit: Unit::Bytes, axes: &[], doc: "Size of the file" },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_block_numbers_only() {
        assert!(fits("blocks.*.attn.hook_z", "blocks.11.attn.hook_z"));
        assert!(fits("hook_embed", "hook_embed") && !fits("*", "hook_embed"));
        assert!(!fits("blocks.*.attn.hook_z", "blocks.1.attn.hook_v"));
        assert!(!fits("blocks.1*.attn.hook_z", "blocks.11.attn.hook_z"));
        assert!(!fits("blocks.*", "blocks.1.attn.hook_z"));
    }
}
