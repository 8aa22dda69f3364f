//! Models of `tests/fixtures/models` in the format of their origin.

use std::{collections::BTreeMap, fs, path::PathBuf};

use safetensors::{SafeTensors, tensor::Dtype};
use serde_json::Value;
use sweep_lens::{
    Config, Device, Kind, Tensor, Transformer, Weights, families, formats::TensorSet, tensor_file,
};

/// A model as its files hold it.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) config: Value,
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

impl Files {
    /// Reads `models/{name}`.
    pub(crate) fn of(name: &str) -> Self {
        let folder = path("models").join(name);
        let config = fs::read_to_string(folder.join("config.json")).unwrap();
        let mut tensors = BTreeMap::new();
        for entry in fs::read_dir(folder).unwrap() {
            let file = entry.unwrap().path();
            if file.extension().is_some_and(|extension| extension == "safetensors") {
                tensors.extend(read_safetensors(&fs::read(file).unwrap()));
            }
        }
        Files { config: serde_json::from_str(&config).unwrap(), tensors }
    }

    pub(crate) fn source(&self) -> TensorSet {
        self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }

    pub(crate) fn load(&self) -> sweep_lens::Result<(Config, Weights)> {
        self.load_as(None, Kind::Float)
    }

    pub(crate) fn load_as(
        &self,
        family: Option<&str>,
        kind: Kind,
    ) -> sweep_lens::Result<(Config, Weights)> {
        families::load(&self.config, family, &self.source(), kind, Device::Cpu)
    }

    pub(crate) fn model(&self) -> Transformer {
        let (config, weights) = self.load().unwrap();
        Transformer::new(config, weights).unwrap()
    }

    /// Replaces every tensor by what `change` makes of it; `None` leaves it as it is.
    pub(crate) fn map(mut self, change: impl Fn(&str, &Tensor) -> Option<Tensor>) -> Self {
        for (name, tensor) in &mut self.tensors {
            if let Some(changed) = change(name, tensor) {
                *tensor = changed;
            }
        }
        self
    }

    /// Renames every tensor.
    pub(crate) fn rename(mut self, new: impl Fn(&str) -> String) -> Self {
        self.tensors = self.tensors.into_iter().map(|(name, t)| (new(&name), t)).collect();
        self
    }

    /// Sets keys of the configuration; `null` removes one.
    pub(crate) fn set(mut self, changes: Value) -> Self {
        let config = self.config.as_object_mut().unwrap();
        for (key, value) in changes.as_object().unwrap() {
            if value.is_null() {
                config.remove(key);
            } else {
                config.insert(key.clone(), value.clone());
            }
        }
        self
    }
}

/// Path of a fixture.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Reads a file of expected tensors.
pub(crate) fn expected(name: &str) -> BTreeMap<String, Tensor> {
    let file = format!("{name}.expected.safetensors");
    tensor_file::decode_tensors(&file, &fs::read(path(&file)).unwrap()).unwrap().tensors
}

fn read_safetensors(bytes: &[u8]) -> BTreeMap<String, Tensor> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let tensor = |view: &safetensors::tensor::TensorView<'_>| {
        assert_eq!(view.dtype(), Dtype::F32);
        let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
        Tensor::from_data_size(view.data(), &shape, Kind::Float)
    };
    file.iter().map(|(name, view)| (name.to_owned(), tensor(&view))).collect()
}
