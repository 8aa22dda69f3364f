//! From what the coordinator calls a checkpoint to a model on a device. Main type: [`Loaded`].
//!
//! Checkpoints of this system are one file in the artifact store; imported ones are somebody else's
//! files, brought here and verified by `sweep_source`, read by `sweep_lens`. Either way a file is read
//! once, and a checkpoint that cannot fit into memory is refused before anything is allocated.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use sweep_lab::{FileIdentity, StoredTensors, Subject, TextCodec};
use sweep_lens::{
    Config, Device, Kind, Transformer, Weights,
    checkpoint::Checkpoint,
    families,
    formats::{TensorFiles, TensorSource},
    processing::Processing,
    tokenizer::Tokenizer,
};
use sweep_proto::{
    id::{FailureClass, failure},
    pb,
};
use sweep_source::{Fetched, Location};
use tokio::task::spawn_blocking;

use crate::{
    artifacts::StoreError,
    deliver::{Outlet, Provenance},
    failure::{of_lab, of_source, of_store},
    import::{is_weights, weights_hash},
    memory,
    readings::Readings,
};

/// Largest `config.json` that is read; real ones have a few KiB.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// A checkpoint on a device, with what experiments may want to know about it.
pub struct Loaded {
    /// Configuration, weights, step.
    pub checkpoint: Checkpoint,
    files: Vec<FileIdentity>,
    /// Tensors as they were stored; the weights themselves for a checkpoint of this system.
    stored: Option<TensorFiles>,
    tokenizer: Option<Tokenizer>,
    processing: String,
    prepend_bos: bool,
    dtype: Kind,
    /// Why it is of no use to experiments that need finite weights.
    defect: Option<pb::Failure>,
    /// Keeps cached files from being evicted.
    _held: Vec<Fetched>,
}

impl Loaded {
    /// Fetches and reads `wanted`, whose weights are finite.
    ///
    /// # Errors
    /// As [`Loaded::as_is`], and weights that hold NaN or infinities (the tensor is named).
    pub fn new(
        outlet: &Outlet,
        wanted: &pb::Checkpoint,
        device: Device,
    ) -> Result<Self, pb::Failure> {
        let mut loaded = Self::as_is(outlet, wanted, device)?;
        loaded.defect.take().map_or(Ok(loaded), Err)
    }

    /// Fetches and reads `wanted`; [`Loaded::defect`] says whether it is whole.
    ///
    /// # Errors
    /// The failure to report: missing, corrupt (file and tensor named), too large for the memory, or
    /// a source that keeps failing.
    pub fn as_is(
        outlet: &Outlet,
        wanted: &pb::Checkpoint,
        device: Device,
    ) -> Result<Self, pb::Failure> {
        match &wanted.imported {
            Some(imported) => Self::imported(outlet, wanted.step, imported, device),
            None => Self::own(outlet, wanted, device),
        }
    }

    /// Brings the files of `wanted` near, so that reading it later does not wait for a network. What goes wrong
    /// here goes wrong again, and is told, when it is needed.
    pub async fn prefetch(outlet: &Outlet, wanted: &pb::Checkpoint) {
        let problem = match (&wanted.imported, &wanted.file) {
            (Some(imported), _) => fetch(outlet, &imported.location).await.err(),
            (None, Some(blob)) => own_bytes(outlet, blob).await.err(),
            (None, None) => None,
        };
        if let Some(problem) = problem {
            tracing::debug!(
                step = wanted.step,
                problem = problem.message,
                "not fetched in advance"
            );
        }
    }

    fn own(outlet: &Outlet, wanted: &pb::Checkpoint, device: Device) -> Result<Self, pb::Failure> {
        let missing = || StoreError::Missing { key: format!("checkpoint of step {}", wanted.step) };
        let blob = wanted.file.as_ref().ok_or_else(|| of_store(&missing()))?;
        // The file is read whole, and the weights are made from it.
        check_memory(outlet, &blob.key, (blob.size, blob.size), device)?;
        let bytes = outlet.runtime.block_on(own_bytes(outlet, blob))?;
        let checkpoint = sweep_lens::checkpoint::decode(&blob.key, &bytes);
        let mut checkpoint = checkpoint.map_err(|error| of_lab(&error.into()))?;
        checkpoint.weights = checkpoint.weights.to_device(device);
        let first = checkpoint.weights.iter().next().map(|(_, tensor)| tensor.kind());
        Ok(Self {
            files: vec![FileIdentity {
                name: blob.name.clone(),
                bytes: blob.size,
                sha256: blob.sha256.clone(),
            }],
            stored: None,
            tokenizer: None,
            processing: Processing::raw().label(),
            prepend_bos: checkpoint.config.default_prepend_bos,
            dtype: first.unwrap_or(Kind::Float),
            defect: defect(&checkpoint.weights),
            checkpoint,
            _held: Vec::new(),
        })
    }

    fn imported(
        outlet: &Outlet,
        step: u64,
        imported: &pb::Imported,
        device: Device,
    ) -> Result<Self, pb::Failure> {
        let lens = |error: sweep_lens::Error| of_lab(&error.into());
        let options = imported.options.clone().unwrap_or_default();
        let fetched = outlet.runtime.block_on(fetch(outlet, &imported.location))?;
        let tensors = TensorFiles::open(&fetched.files).map_err(lens)?;
        let kind = kind_of(&options.dtype)?;
        let n_bytes = bytes_as(&tensors, kind);
        // Processed weights stand beside those that they are made from.
        let beside = if matches!(options.processing.as_str(), "" | "raw") { 0 } else { n_bytes };
        check_memory(outlet, &imported.location, (n_bytes, beside), device)?;
        let Contents { config, weights, extra, defect } =
            read(&fetched, &tensors, &options.family, kind, device)?;
        let processing = Processing::parse(&options.processing, &config).map_err(lens)?;
        let (mut config, weights) =
            sweep_lens::processing::process(&config, &weights, &processing).map_err(lens)?;
        if let Some(prepend_bos) = options.prepend_bos {
            config.default_prepend_bos = prepend_bos;
        }
        let mut held = Vec::new();
        let tokenizer = tokenizer(outlet, &fetched, &options.tokenizer, &mut held)?;
        let own = fetched.hashes.iter().filter(|(name, _)| is_weights(name));
        let hash = weights_hash(own.map(|(name, hash)| (name.as_str(), hash.as_str())));
        let files = identities(&fetched);
        held.push(fetched);
        Ok(Self {
            prepend_bos: config.default_prepend_bos,
            checkpoint: Checkpoint { config, weights, step, extra, weights_hash: hash },
            files,
            stored: Some(tensors),
            tokenizer,
            processing: processing.label(),
            dtype: kind,
            defect,
            _held: held,
        })
    }

    /// Why it is of no use to experiments that need finite weights.
    pub fn defect(&self) -> Option<&pb::Failure> {
        self.defect.as_ref()
    }

    /// The transformer over these weights.
    ///
    /// # Errors
    /// When configuration and weights do not fit each other.
    pub fn model(&self) -> Result<Transformer, pb::Failure> {
        let weights = self.checkpoint.weights.shallow_clone();
        let model = Transformer::new(self.checkpoint.config.clone(), weights);
        model.map_err(|error| of_lab(&error.into()))
    }

    /// What experiments are given.
    pub fn subject<'a>(&'a self, model: &'a Transformer, device: Device) -> Subject<'a> {
        Subject {
            device,
            text: self.text(),
            files: &self.files,
            stored: Some(self.stored()),
            processing: &self.processing,
            prepend_bos: self.prepend_bos,
            ..Subject::of(&self.checkpoint, model)
        }
    }

    /// What is left of it when nothing else is wanted.
    pub fn into_parts(self) -> (Checkpoint, Option<Tokenizer>) {
        (self.checkpoint, self.tokenizer)
    }

    /// Its tokenizer, if it has one.
    pub fn text(&self) -> Option<&dyn TextCodec> {
        self.tokenizer.as_ref().map(|tokenizer| tokenizer as &dyn TextCodec)
    }

    /// How it was read, alone.
    pub fn readings(&self) -> Readings {
        let readings = Readings::default();
        self.add_reading(&readings);
        readings
    }

    /// Adds how it was read.
    pub fn add_reading(&self, readings: &Readings) {
        readings.add(&self.processing, self.prepend_bos);
    }

    /// The tensors as they were stored.
    pub fn stored(&self) -> &dyn StoredTensors {
        match &self.stored {
            Some(stored) => stored,
            None => &self.checkpoint.weights,
        }
    }

    /// Adds what every result of this checkpoint says about it.
    pub fn add_to(&self, provenance: &mut Provenance) {
        let mut add = |name: &str, value: String| provenance.insert(name.to_owned(), value);
        add("weights_hash", self.checkpoint.weights_hash.clone());
        add("processing", self.processing.clone());
        add("prepend_bos", self.prepend_bos.to_string());
        add("dtype", name_of(self.dtype).to_owned());
        if let Some(tokenizer) = &self.tokenizer {
            add("tokenizer_hash", tokenizer.hash().to_owned());
        }
    }
}

/// Brings the files of one checkpoint here.
async fn fetch(outlet: &Outlet, location: &str) -> Result<Fetched, pb::Failure> {
    let access = &outlet.access;
    let fetch = async {
        let place: Location = location.parse()?;
        let files = access.files(&place).await?;
        access.fetch(&place, &files).await
    };
    fetch.await.map_err(|error| of_source(&error))
}

/// A checkpoint file of this system: from the cache, or else from the artifact store.
async fn own_bytes(outlet: &Outlet, blob: &pb::Blob) -> Result<Vec<u8>, pb::Failure> {
    let cache = Arc::clone(&outlet.session.cache);
    let hash = blob.sha256.clone();
    if let Ok(Some(bytes)) = spawn_blocking(move || cache.read(&hash)).await {
        return Ok(bytes);
    }
    let fetched = outlet.store.get(blob).await;
    let bytes = fetched.map_err(|error| of_store(&error))?.to_vec();
    let cache = Arc::clone(&outlet.session.cache);
    let hash = blob.sha256.clone();
    let put = spawn_blocking(move || {
        cache.put(&hash, &bytes);
        bytes
    });
    put.await.map_err(|error| failure(FailureClass::Transient, format!("caching: {error}")))
}

/// What the files of a checkpoint say.
struct Contents {
    config: Config,
    weights: Weights,
    /// What the recipe recorded, for a checkpoint that this system trained.
    extra: serde_json::Value,
    /// What is wrong with weights that are not finite.
    defect: Option<pb::Failure>,
}

fn read(
    fetched: &Fetched,
    tensors: &TensorFiles,
    family: &str,
    kind: Kind,
    device: Device,
) -> Result<Contents, pb::Failure> {
    let lens = |error: sweep_lens::Error| of_lab(&error.into());
    let family = Some(family).filter(|family| !family.is_empty());
    if let Some(path) = own_file(fetched, family).map_err(lens)? {
        let Checkpoint { config, weights, extra, .. } =
            sweep_lens::checkpoint::open(path).map_err(lens)?;
        let weights = weights.to_kind(kind).to_device(device);
        let defect = defect(&weights);
        return Ok(Contents { config, weights, extra, defect });
    }
    let config = match fetched.files.get("config.json") {
        Some(path) => {
            read_json(path).map_err(|message: String| failure(FailureClass::Permanent, message))?
        }
        None => serde_json::Value::Null,
    };
    let (config, weights, defect) =
        families::load_as_is(&config, family, tensors, kind, device).map_err(lens)?;
    let defect = defect.map(|error| of_lab(&error.into()));
    Ok(Contents { config, weights, extra: serde_json::Value::Null, defect })
}

/// What is wrong with weights that are not finite.
fn defect(weights: &Weights) -> Option<pb::Failure> {
    weights.check_finite().err().map(|error| of_lab(&error.into()))
}

/// The file, if this system wrote it: it holds its configuration itself, and hashes that are verified.
fn own_file<'a>(
    fetched: &'a Fetched,
    family: Option<&str>,
) -> sweep_lens::Result<Option<&'a PathBuf>> {
    if fetched.files.contains_key("config.json") || family.is_some_and(|name| name != "native") {
        return Ok(None);
    }
    let mut weights = fetched.files.iter().filter(|(name, _)| is_weights(name));
    match (weights.next(), weights.next()) {
        (Some((name, path)), None) if name.ends_with(".safetensors") => {
            Ok(sweep_lens::checkpoint::is_own(path)?.then_some(path))
        }
        _ => Ok(None),
    }
}

/// The tokenizer that the options name, or else the one that lies beside the weights.
fn tokenizer(
    outlet: &Outlet,
    own: &Fetched,
    elsewhere: &str,
    held: &mut Vec<Fetched>,
) -> Result<Option<Tokenizer>, pb::Failure> {
    let fetched = if elsewhere.is_empty() {
        None
    } else {
        let access = &outlet.access;
        let found = outlet.runtime.block_on(async {
            let place = Location::from_path(elsewhere)?;
            let files = access.tokenizer(&place).await?;
            access.fetch(&place, &files).await
        });
        Some(found.map_err(|error| of_source(&error))?)
    };
    let files: &BTreeMap<String, PathBuf> = &fetched.as_ref().unwrap_or(own).files;
    if !files.contains_key("tokenizer.json") && !files.contains_key("vocab.json") {
        return Ok(None);
    }
    let tokenizer = Tokenizer::open(files).map_err(|error| of_lab(&error.into()))?;
    held.extend(fetched);
    Ok(Some(tokenizer))
}

fn identities(fetched: &Fetched) -> Vec<FileIdentity> {
    let identity = |(name, hash): (&String, &String)| FileIdentity {
        name: name.clone(),
        bytes: fetched
            .files
            .get(name)
            .and_then(|path| path.metadata().ok())
            .map_or(0, |data| data.len()),
        sha256: hash.clone(),
    };
    fetched.hashes.iter().map(identity).collect()
}

/// Bytes of all tensors in this element type.
fn bytes_as(tensors: &TensorFiles, kind: Kind) -> u64 {
    let names = TensorSource::names(tensors);
    let sizes = names.iter().filter_map(|name| tensors.info(name)).map(|info| {
        info.shape.iter().fold(1u64, |size, &axis| size.saturating_mul(axis.unsigned_abs()))
    });
    sizes.fold(0u64, u64::saturating_add).saturating_mul(kind.elt_size_in_bytes() as u64)
}

/// Refuses what cannot fit before the first allocation: weights of `weights` bytes, and `beside` bytes that
/// loading takes besides them for a while. A limit that was set is about the weights alone.
fn check_memory(
    outlet: &Outlet,
    what: &str,
    (weights, beside): (u64, u64),
    device: Device,
) -> Result<(), pb::Failure> {
    if device != Device::Cpu {
        return Ok(());
    }
    let (needed, available) = match outlet.memory_bytes {
        Some(limit) => (weights, limit),
        None => (weights.saturating_add(beside), memory::available().unwrap_or(u64::MAX)),
    };
    if needed <= available {
        return Ok(());
    }
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    Err(failure(
        FailureClass::OutOfMemory,
        format!(
            "loading {what} takes {:.2} GiB, {:.2} GiB of memory are free",
            gib(needed),
            gib(available)
        ),
    ))
}

fn kind_of(dtype: &str) -> Result<Kind, pb::Failure> {
    match dtype {
        "" | "float32" => Ok(Kind::Float),
        "float64" => Ok(Kind::Double),
        "float16" => Ok(Kind::Half),
        "bfloat16" => Ok(Kind::BFloat16),
        other => Err(failure(FailureClass::Permanent, format!("unknown dtype `{other}`"))),
    }
}

fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Double => "float64",
        Kind::Half => "float16",
        Kind::BFloat16 => "bfloat16",
        _ => "float32",
    }
}

fn read_json(path: &std::path::Path) -> Result<serde_json::Value, String> {
    let fail = |problem: String| format!("config.json: {problem}");
    let size = path.metadata().map_err(|error| fail(error.to_string()))?.len();
    if size > CONFIG_BYTES_MAX {
        return Err(fail(format!("{size} bytes, at most {CONFIG_BYTES_MAX} are read")));
    }
    let bytes = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| fail(error.to_string()))
}
