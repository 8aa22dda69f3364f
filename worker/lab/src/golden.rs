//! Comparison with independent Python: the numbers of `tests/fixtures/*.json`, which
//! `tests/fixtures/make.py` computed with numpy, scipy and torch.

use serde_json::Value as Json;
use sweep_lens::{Device, Kind, Tensor, Weights};

use crate::{
    curve::fit::{Fits, Model, Points},
    data::modular::{Form, Operation, Pairs},
    error::Result,
    fourier::Basis,
    gram::{self, Rows},
    optimizer::{AdamW, AdamWConfig},
    progress_measures::{Measurer, Outputs},
    value::to_vec,
};

fn numbers(json: &Json) -> Vec<f64> {
    json.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn tensor(json: &Json, shape: &[i64]) -> Tensor {
    Tensor::from_slice(&numbers(json)).view(shape)
}

#[track_caller]
fn assert_close(name: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (found, expected) in found.iter().zip(expected) {
        let error = (found - expected).abs() / expected.abs().max(1.0);
        assert!(error <= tolerance, "{name}: {found}, expected {expected}");
    }
}

#[test]
fn adamw_equals_pytorch() {
    let golden: Json = serde_json::from_str(include_str!("../tests/fixtures/adamw.json")).unwrap();
    let matrix = tensor(&golden["matrix"], &[6, 6]);
    for case in golden["cases"].as_array().unwrap() {
        let number = |name: &str| case[name].as_f64().unwrap();
        let config = AdamWConfig {
            lr: number("lr"),
            beta1: number("beta1"),
            beta2: number("beta2"),
            eps: number("eps"),
            weight_decay: number("weight_decay"),
        };
        let mut parameters = tensor(&golden["start"], &[6]);
        let mut optimizer = AdamW::new(config, &parameters);
        for n_updates in 1..=200u64 {
            let gradient =
                matrix.transpose(0, 1).matmul(&matrix.matmul(&parameters).cos()) + &parameters;
            optimizer.step(&mut parameters, &gradient, config.lr, n_updates);
            if let Some(expected) = case["trace"].get(n_updates.to_string()) {
                let name = format!("{} after {n_updates}", case["name"]);
                assert_close(&name, &to_vec(&parameters), &numbers(expected), 1e-10);
            }
        }
    }
}

#[test]
fn progress_measures_equal_the_definitions() {
    let golden: Json =
        serde_json::from_str(include_str!("../tests/fixtures/measures.json")).unwrap();
    let p = golden["p"].as_i64().unwrap();
    let train: Vec<i64> = numbers(&golden["train"]).iter().map(|&row| row as i64).collect();
    let test: Vec<i64> = (0..p * p).filter(|row| !train.contains(row)).collect();
    let mut pairs = Pairs::new(Operation::Add, Form::Sequence, p, 0.5, 0, Device::Cpu);
    (pairs.train, pairs.test) = (Tensor::from_slice(&train), Tensor::from_slice(&test));
    let basis = Basis::new(p, Device::Cpu).unwrap();
    let measurer = Measurer { pairs, basis, device: Device::Cpu };
    let outputs = Outputs {
        logits: tensor(&golden["logits"], &[p * p, p]),
        neurons: tensor(&golden["acts"], &[p * p, -1]),
    };
    let weights: Weights = [
        ("embed.W_E".to_owned(), tensor(&golden["embed"], &[p + 1, -1])),
        ("blocks.0.mlp.W_out".to_owned(), tensor(&golden["w_out"], &[5, -1])),
        ("unembed.W_U".to_owned(), tensor(&golden["w_u"], &[-1, p])),
    ]
    .into_iter()
    .collect();
    let keys: Vec<i64> = numbers(&golden["keys"]).iter().map(|&k| k as i64).collect();
    let neurons = measurer.neurons(&outputs.neurons, 0.5);
    let found = measurer.measure(&outputs, &weights, neurons, keys).unwrap();
    let excluded =
        measurer.excluded_frequencies(&outputs.logits, &found.coefficients, |_, _| Ok(())).unwrap();
    let expected = &golden["expected"];
    for (name, value) in [
        ("train_loss", found.train_loss),
        ("test_loss", found.test_loss),
        ("restricted_loss", found.restricted_loss),
        ("restricted_test_loss", found.restricted_test_loss),
        ("excluded_loss", found.excluded_loss),
        ("gini_embed", found.gini_embed),
        ("gini_map", found.gini_neuron_logit),
    ] {
        assert_close(name, &[value], &[expected[name].as_f64().unwrap()], 1e-12);
    }
    for (name, values) in [
        ("excluded_loss_frequency", excluded),
        ("cos_coefficients", found.cos_coefficients),
        ("embed_norms", found.embed_norms),
        ("map_norms", found.neuron_logit_norms),
        ("fractions", to_vec(&measurer.basis.variance_explained(&outputs.neurons))),
    ] {
        assert_close(name, &values, &numbers(&expected[name]), 1e-11);
    }
    assert_eq!(to_vec(&outputs.logits.isnan().sum(Kind::Int64)), [0.0]);
}

struct Matrix(Tensor);

impl Rows for Matrix {
    fn count(&self) -> usize {
        self.0.size()[0] as usize
    }
    fn row(&mut self, index: usize) -> Result<Tensor> {
        Ok(self.0.get(index as i64))
    }
}

#[test]
fn components_equal_numpy() {
    let golden: Json = serde_json::from_str(include_str!("../tests/fixtures/pca.json")).unwrap();
    for case in golden.as_array().unwrap() {
        let (count, length) = (case["count"].as_i64().unwrap(), case["length"].as_i64().unwrap());
        // All rows at once, and two at a time.
        for memory_bytes in [1 << 30, 2 * length as u64 * 8] {
            let mut rows = Matrix(tensor(&case["rows"], &[count, length]));
            let found = gram::components(&mut rows, 3, memory_bytes).unwrap();
            let coordinates: Vec<f64> = found.coordinates.into_iter().flatten().collect();
            assert_close("evr", &found.explained_variance_ratio, &numbers(&case["evr"]), 1e-9);
            assert_close("coordinates", &coordinates, &numbers(&case["coordinates"]), 1e-6);
            assert_close("basis", &to_vec(&found.basis), &numbers(&case["basis"]), 1e-6);
        }
    }
}

#[test]
fn curve_fits_equal_scipy() {
    let golden: Json = serde_json::from_str(include_str!("../tests/fixtures/curves.json")).unwrap();
    let x = numbers(&golden["x"]);
    for case in golden["cases"].as_array().unwrap() {
        let y = numbers(&case["y"]);
        let fits = Fits::new(Points { x: &x, y: &y });
        let names = ["constant", "linear", "power_law", "logistic", "two_logistics"];
        for (name, model) in names.into_iter().zip(Model::ALL) {
            let (fit, expected) = (fits.get(model), &case["fits"][name]);
            let (rss, bic) = (expected["rss"].as_f64().unwrap(), expected["bic"].as_f64().unwrap());
            // Both search a rugged surface: finding a better minimum than scipy is no error.
            let label = format!("{} of {}", name, case["name"]);
            // Logistics that do not fit have flat valleys, in which iterations end early.
            let (slack, gap) = match model {
                Model::Constant | Model::Linear | Model::PowerLaw => (1e-6, 1e-4),
                Model::Logistic => (1e-4, 1e-2),
                Model::TwoLogistics => (1e-3, 2.0),
            };
            assert!(fit.rss <= rss * (1.0 + slack), "{label}: rss {}, expected {rss}", fit.rss);
            assert!(fit.bic >= bic - gap, "{label}: bic {}, expected {bic}", fit.bic);
        }
        if case["name"] == "step" {
            let expected = numbers(&case["fits"]["logistic"]["parameters"]);
            assert_close("logistic", &fits.get(Model::Logistic).parameters, &expected, 1e-4);
        }
    }
}
