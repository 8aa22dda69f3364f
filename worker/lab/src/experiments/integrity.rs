//! Is this checkpoint what it says it is: identity, element types, and distance to its neighbours.
//!
//! # What it measures
//! Of the weights as loaded: `fingerprint`, the first 48 bits of the SHA-256 over all tensors (a whole number
//! that an f64 holds exactly), and `fingerprint_tensor`, the same per tensor; `norm` and `size` per tensor;
//! `n_nonfinite`, how many numbers are NaN or infinite; `distance_previous` and `distance_init`, ‖w_t − w_s‖ /
//! ‖w_t‖ per tensor against the checkpoint before and the one before training, `cosine_previous` and `cosine_init`,
//! and the same two distances over all tensors (`…_total`); `sketch`, 509 sums with random signs, from
//! which the distance of any two checkpoints follows to about 3 % without their weights. Of the tensors as stored:
//! `n_tensors`, `n_bytes` (of the files where they are known), `elements`, floating-point numbers by element type,
//! `dtype_bits`, the width of the most frequent one, and `dtype_changed`, 1 if that is another than at the checkpoint
//! before. `integrity.json` lists files and tensors with their hashes. Sums are in f64.
//!
//! # Interpretation
//! A relative distance of 0 is a duplicate. `integrity-report` reads these series of all checkpoints and says what
//! is wrong with the trajectory.
//!
//! # Source
//! Published trajectories contain duplicated, misplaced and missing checkpoints (EleutherAI/pythia #83, #205, #206,
//! #202; allenai/OLMo #915). Count sketch: Charikar, Chen and Farach-Colton 2002.

use std::collections::BTreeMap;

use serde::Serialize;
use sweep_lens::{Kind, Weights, tensor_file};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    error::Result,
    experiment::{Analysis, Experiment, Inputs, Subject},
    integrity::compare::{Pair, Sketcher, Sums, relative, sums},
    params::{NoParams, ParamSet},
    sink::Context,
    subject::{FileIdentity, StoredTensors},
    value::Value,
};

/// See the module documentation.
pub struct Integrity;

impl Experiment for Integrity {
    type Params = NoParams;
    const CARD: &'static Card = &Card {
        name: "integrity",
        version: 1,
        summary: "Fingerprints a checkpoint and measures its distance to its neighbours",
        source: "Known defects of published checkpoints; SHA-256; count sketch",
        stage: Stage::Analyse,
        // What is not finite is what it reports.
        requires: Requires { finite: false, ..Requires::ANY },
        params: NoParams::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &NoParams) -> Inputs {
        Inputs::Checkpoint { init: true, previous: true }
    }

    fn analyse<'a>(&self, subject: &Subject<'a>, _params: NoParams) -> Result<Analysis<'a>> {
        let subject = *subject;
        Ok(Analysis::Procedure(Box::new(move |cx| {
            let hashes = examine(&subject, cx)?;
            examine_stored(&subject, hashes, cx)
        })))
    }
}

/// Number of leading hexadecimal digits of a hash that an f64 holds exactly.
const FINGERPRINT_DIGITS: usize = 12;

/// The first 48 bits of a hexadecimal hash.
fn fingerprint(hash: &str) -> f64 {
    let digits = hash.get(..FINGERPRINT_DIGITS).unwrap_or(hash);
    u64::from_str_radix(digits, 16).map_or(f64::NAN, |bits| bits as f64)
}

/// Measures the weights as loaded; returns the hash of each tensor.
fn examine(subject: &Subject<'_>, cx: &mut Context<'_>) -> Result<BTreeMap<String, String>> {
    let weights = subject.model.weights();
    let references: [Option<&Weights>; 2] =
        [subject.previous.map(|(_, weights)| weights), subject.init];
    let mut sketcher = Sketcher::new(subject.device);
    let mut found: Vec<Sums> = Vec::with_capacity(weights.len());
    let mut hashes = BTreeMap::new();
    for (done, (name, tensor)) in weights.iter().enumerate() {
        let others = references.map(|weights| weights.and_then(|weights| weights.get(name)));
        found.push(sums(name, tensor, others, Some(&mut sketcher)));
        hashes.insert(name.to_owned(), tensor_file::tensor_hash(name, tensor)?);
        cx.progress(done as u64 + 1, weights.len() as u64)?;
    }
    let per_tensor = |read: &dyn Fn(&Sums) -> f64| {
        Value::labelled(weights.names(), found.iter().map(read).collect())
    };
    cx.metric("norm", per_tensor(&|sums| sums.norm))?;
    let sizes = weights.iter().map(|(_, tensor)| tensor.numel() as f64).collect();
    cx.metric("size", Value::labelled(weights.names(), sizes))?;
    cx.metric("n_nonfinite", found.iter().map(|sums| sums.n_nonfinite as f64).sum::<f64>())?;
    for (index, [distance, cosine, total]) in [
        ["distance_previous", "cosine_previous", "distance_previous_total"],
        ["distance_init", "cosine_init", "distance_init_total"],
    ]
    .into_iter()
    .enumerate()
    {
        if references[index].is_none() {
            continue;
        }
        let of = |read: fn(&Pair, f64) -> f64| {
            move |sums: &Sums| sums.against[index].map_or(f64::NAN, |pair| read(&pair, sums.norm))
        };
        cx.metric(distance, per_tensor(&of(|pair, norm| relative(pair.distance, norm))))?;
        cx.metric(cosine, per_tensor(&of(Pair::cosine)))?;
        // Tensors that only one of the two has moved from nowhere: there is no distance to speak of.
        let shared = || found.iter().filter_map(|sums| Some((sums.norm, sums.against[index]?)));
        let moved = shared().map(|(_, pair)| pair.distance.powi(2)).sum::<f64>().sqrt();
        let norm = shared().map(|(norm, _)| norm.powi(2)).sum::<f64>().sqrt();
        cx.metric(total, relative(moved, norm))?;
    }
    let all = hashes.iter().map(|(name, hash)| (name.as_str(), hash.as_str()));
    cx.metric("fingerprint", fingerprint(&tensor_file::combined_hash(all)))?;
    let each = hashes.values().map(|hash| fingerprint(hash)).collect();
    cx.metric("fingerprint_tensor", Value::labelled(hashes.keys(), each))?;
    cx.metric("sketch", Value::vector(sketcher.finish()))?;
    Ok(hashes)
}

/// What `integrity.json` says.
#[derive(Serialize)]
struct Report<'a> {
    step: u64,
    weights_sha256: String,
    processing: &'a str,
    files: &'a [FileIdentity],
    /// Tensors as stored.
    tensors: Vec<StoredTensor>,
    /// Hash of each tensor as loaded, under its canonical name.
    weights: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct StoredTensor {
    name: String,
    dtype: &'static str,
    shape: Vec<i64>,
    sha256: String,
}

/// Measures the tensors as stored and writes the list of all identities.
fn examine_stored(
    subject: &Subject<'_>,
    hashes: BTreeMap<String, String>,
    cx: &mut Context<'_>,
) -> Result<()> {
    let stored: &dyn StoredTensors = subject.stored.unwrap_or(subject.model.weights());
    let mut names = stored.names();
    names.sort();
    let mut tensors = Vec::with_capacity(names.len());
    let mut n_bytes = 0;
    for name in names {
        let (kind, shape) = (stored.kind(&name)?, stored.shape(&name)?);
        // Without files, the tensors as loaded are what was stored: they have been hashed already.
        let known = if subject.stored.is_none() { hashes.get(&name) } else { None };
        let sha256 = known.map_or_else(|| stored.sha256(&name), |hash| Ok(hash.clone()))?;
        n_bytes += n_elements(&shape) * kind.elt_size_in_bytes() as u64;
        tensors.push(StoredTensor { name, dtype: dtype_name(kind), shape, sha256 });
    }
    if !subject.files.is_empty() {
        n_bytes = subject.files.iter().map(|file| file.bytes).sum();
    }
    cx.metric("n_tensors", tensors.len() as f64)?;
    cx.metric("n_bytes", n_bytes as f64)?;
    let elements = elements_by_dtype(stored)?;
    cx.metric("dtype_bits", elements.iter().max_by_key(|e| e.1).map_or(f64::NAN, |e| bits(e.0)))?;
    let (dtypes, counts): (Vec<&str>, Vec<f64>) =
        elements.iter().map(|&(kind, count)| (dtype_name(kind), count as f64)).unzip();
    cx.metric("elements", Value::labelled(dtypes, counts))?;
    let before: Option<&dyn StoredTensors> = match (subject.previous_stored, subject.stored) {
        (Some(before), _) => Some(before),
        // What is loaded from files was converted; what is not from files is as it was stored.
        (None, None) => subject.previous.map(|(_, weights)| weights as &dyn StoredTensors),
        (None, Some(_)) => None,
    };
    if let Some(before) = before {
        let main = |elements: &[(Kind, u64)]| elements.iter().max_by_key(|e| e.1).map(|e| e.0);
        let changed = main(&elements) != main(&elements_by_dtype(before)?);
        cx.metric("dtype_changed", f64::from(u8::from(changed)))?;
    }
    let all = hashes.iter().map(|(name, hash)| (name.as_str(), hash.as_str()));
    let report = Report {
        step: subject.checkpoint.step,
        weights_sha256: tensor_file::combined_hash(all),
        processing: subject.processing,
        files: subject.files,
        tensors,
        weights: &hashes,
    };
    cx.json("integrity.json", &report)
}

fn n_elements(shape: &[i64]) -> u64 {
    shape.iter().map(|size| size.unsigned_abs()).product()
}

/// Floating-point numbers by element type, in the order of their names. Masks and indices do not count.
fn elements_by_dtype(stored: &dyn StoredTensors) -> Result<Vec<(Kind, u64)>> {
    let mut counts: BTreeMap<&str, (Kind, u64)> = BTreeMap::new();
    for name in stored.names() {
        let kind = stored.kind(&name)?;
        if is_float(kind) {
            let count = counts.entry(dtype_name(kind)).or_insert((kind, 0));
            count.1 += n_elements(&stored.shape(&name)?);
        }
    }
    Ok(counts.into_values().collect())
}

fn is_float(kind: Kind) -> bool {
    matches!(kind, Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double)
}

fn bits(kind: Kind) -> f64 {
    8.0 * kind.elt_size_in_bytes() as f64
}

/// The name that safetensors use.
fn dtype_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Double => "F64",
        Kind::Float => "F32",
        Kind::Half => "F16",
        Kind::BFloat16 => "BF16",
        Kind::Int64 => "I64",
        Kind::Int => "I32",
        Kind::Int16 => "I16",
        Kind::Int8 => "I8",
        Kind::Uint8 => "U8",
        Kind::Bool => "BOOL",
        _ => "other",
    }
}

const fn per_tensor(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Tensor], doc }
}

const METRICS: &[MetricDef] = &[
    scalar("fingerprint", Unit::Dimensionless, "First 48 bits of the SHA-256 over all weights"),
    per_tensor("fingerprint_tensor", Unit::Dimensionless, "First 48 bits of each tensor's SHA-256"),
    per_tensor("norm", Unit::Norm, "Euclidean norm"),
    per_tensor("size", Unit::Count, "Number of elements"),
    scalar("n_nonfinite", Unit::Count, "NaN and infinite weights"),
    per_tensor(
        "distance_previous",
        Unit::Ratio,
        "Distance to the previous checkpoint over the norm; absent at the first",
    ),
    per_tensor(
        "cosine_previous",
        Unit::Ratio,
        "Cosine to the previous checkpoint; absent at the first, NaN for a zero tensor",
    ),
    scalar("distance_previous_total", Unit::Ratio, "The same distance over all tensors together"),
    per_tensor(
        "distance_init",
        Unit::Ratio,
        "Distance to the weights before training over the norm; absent if those are unknown",
    ),
    per_tensor(
        "cosine_init",
        Unit::Ratio,
        "Cosine to the weights before training; absent if those are unknown",
    ),
    scalar("distance_init_total", Unit::Ratio, "The same distance over all tensors together"),
    MetricDef {
        name: "sketch",
        unit: Unit::Dimensionless,
        axes: &[Axis::Component],
        doc: "Sums of the weights with random signs; their distances estimate those of the weights",
    },
    scalar("n_tensors", Unit::Count, "Stored tensors"),
    scalar("n_bytes", Unit::Bytes, "Size of the files, or of the tensors where there are none"),
    MetricDef {
        name: "elements",
        unit: Unit::Count,
        axes: &[Axis::Dtype],
        doc: "Stored floating-point numbers by element type",
    },
    scalar("dtype_bits", Unit::Bits, "Width of the most frequent stored element type"),
    scalar(
        "dtype_changed",
        Unit::Truth,
        "1 if that element type is another than at the previous checkpoint; absent if unknown",
    ),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "distances",
        title: "Relative distance to the previous checkpoint and to initialisation",
        kind: FigureKind::Lines,
        metrics: &["distance_previous_total", "distance_init_total"],
        log_x: true,
        log_y: true,
    },
    Figure {
        name: "tensor-distances",
        title: "Relative distance of every tensor to the previous checkpoint",
        kind: FigureKind::HeatMap,
        metrics: &["distance_previous"],
        log_x: true,
        log_y: true,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_exact() {
        let hash = "ffffffffffff0123456789abcdef";
        assert_eq!(fingerprint(hash), 281_474_976_710_655.0);
        assert_eq!(fingerprint("000000000001ff"), 1.0);
        assert!(fingerprint("not a hash").is_nan());
    }
}
