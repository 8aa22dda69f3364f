//! Experiments on neurons, questions, representations and curvature: parity with PyTorch, numpy and scipy, and files that
//! are refused.

use std::fs;

use serde_json::{Value as Json, json};
use sweep_lab::{
    Class, Couple, MemorySink, Subject, compare,
    lens::{Cache, Device, Hook, Kind, Run, Tensor},
};

use crate::{
    experiments::bits,
    prompts::{Fixture, Letters, find, numbers},
};

fn golden() -> Json {
    serde_json::from_str(include_str!("../fixtures/neurons.json")).unwrap()
}

#[track_caller]
fn near(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        let bound = tolerance * expected.abs().max(1.0);
        assert!((found - expected).abs() <= bound, "{what}: {found}, expected {expected}");
    }
}

/// The first neurons of every layer, of a metric with axes site, layer, neuron.
fn first_neurons(sink: &MemorySink, name: &str, n: usize) -> Vec<f64> {
    let value = &sink.metrics[name][&7];
    let width = value.shape[2];
    value.data.chunks(width).flat_map(|layer| layer[..n].to_vec()).collect()
}

#[test]
fn neurons_equal_scipy() {
    let golden = golden();
    let n = golden["neurons"].as_u64().unwrap() as usize;
    let fixture = Fixture::read("gpt2-tiny");
    let params = json!({ "tokens": golden["rows"] });
    let sink = fixture.run("neuron-stats", &params, None).unwrap();
    for (name, tolerance) in [
        ("mean", 1e-5),
        ("std", 1e-5),
        ("skewness", 1e-4),
        ("kurtosis", 1e-4),
        ("frequency", 1e-12),
        ("largest", 1e-5),
    ] {
        near(&first_neurons(&sink, name, n), &numbers(&golden["stats"][name]), tolerance, name);
    }
    let params = json!({ "tokens": golden["rows"], "k": golden["k"], "context": 2 });
    let sink = fixture.run("max-activating", &params, None).unwrap();
    let lines = String::from_utf8(sink.artifacts["neurons.jsonl"].clone()).unwrap();
    let mut seen = 0;
    for line in lines.lines() {
        let page: Json = serde_json::from_str(line).unwrap();
        let [layer, neuron] = ["layer", "neuron"].map(|name| page[name].as_u64().unwrap() as usize);
        if neuron >= n {
            continue;
        }
        let places: Vec<Json> = page["top"]
            .as_array()
            .unwrap()
            .iter()
            .map(|place| json!([place["row"], place["position"]]))
            .collect();
        assert_eq!(json!(places), golden["top"][layer][neuron], "layer {layer} neuron {neuron}");
        let best = &page["top"][0];
        let (row, position) =
            (best["row"].as_u64().unwrap(), best["position"].as_u64().unwrap() as usize);
        assert_eq!(best["id"], golden["rows"][row as usize][position]);
        seen += 1;
    }
    assert_eq!(seen, 3 * n);
    // SoLU neurons are told apart.
    let solu = Fixture::read("neel-solu");
    let sink = solu.run("neuron-stats", &json!({ "tokens": solu.tokens }), None).unwrap();
    let labels = sink.metrics["mean"][&7].labels[0].clone().unwrap();
    assert_eq!(labels, ["post", "mid"]);
}

/// From the inputs of the neurons, by the definition: x softmax(x), which is `mid`, and its layer norm with weights over the
/// neurons, which is `post` (Elhage et al. 2022).
#[test]
fn solu_neurons_have_their_values_before_and_after_the_norm() {
    let solu = Fixture::read("neel-solu");
    let sink = solu.run("neuron-stats", &json!({ "tokens": solu.tokens }), None).unwrap();
    let rows: Vec<Vec<i64>> = serde_json::from_value(solu.tokens.clone()).unwrap();
    let tokens = Tensor::from_slice(&rows.concat()).view([rows.len() as i64, -1]);
    let n_layers = solu.model.config().n_layers;
    let hooks: Vec<Hook> = (0..n_layers)
        .map(|layer| format!("blocks.{layer}.mlp.hook_pre").parse().unwrap())
        .collect();
    let mut cache = Cache::of(&hooks);
    let _ = tch::no_grad(|| solu.model.forward(&tokens, &Run::FULL, &mut cache));
    let mut expected: [Vec<f64>; 2] = Default::default();
    let mut above: [Vec<f64>; 2] = Default::default();
    for (layer, hook) in hooks.iter().enumerate() {
        let pre = cache.get(*hook).unwrap().to_kind(Kind::Double).flatten(0, 1); // [pos, neuron]
        let mid = &pre * pre.softmax(-1, Kind::Double);
        let weight = |name: &str| {
            let name = format!("blocks.{layer}.mlp.ln.{name}");
            solu.model.weights().require(&name).unwrap().to_kind(Kind::Double)
        };
        let centred = &mid - mid.mean_dim(-1, true, Kind::Double);
        let variance = centred.square().mean_dim(-1, true, Kind::Double);
        let post = centred / (variance + 1e-5).sqrt() * weight("w") + weight("b");
        for (site, activation) in [post, mid].iter().enumerate() {
            let mean = activation.mean_dim(0, false, Kind::Double);
            let positive = activation.gt(0.0).to_kind(Kind::Double);
            let frequency = positive.mean_dim(0, false, Kind::Double);
            expected[site].extend(Vec::<f64>::try_from(mean).unwrap());
            above[site].extend(Vec::<f64>::try_from(frequency).unwrap());
        }
    }
    near(&sink.metrics["mean"][&7].data, &expected.concat(), 1e-5, "mean");
    near(&sink.metrics["frequency"][&7].data, &above.concat(), 1e-12, "frequency");
    assert!(expected[0] != expected[1]);
}

#[test]
fn overlaps_equal_scipy() {
    let golden = golden();
    let n = golden["neurons"].as_u64().unwrap() as usize;
    let [a, b] = ["gpt2-tiny", "gpt2-tiny-crfm"].map(Fixture::read);
    let couple = Couple {
        first: Subject::of(&a.checkpoint, &a.model),
        second: Subject::of(&b.checkpoint, &b.model),
    };
    let params = json!({ "tokens": golden["rows"], "k": golden["k"] });
    let mut sink = MemorySink::default();
    compare(find("max-act-overlap"), &params, &couple, &mut sink).unwrap();
    for name in ["jaccard", "correlation", "rank_correlation", "frequency_change"] {
        near(&first_neurons(&sink, name, n), &numbers(&golden["overlap"][name]), 1e-4, name);
    }
    let error = compare(
        find("patch-recovery"),
        &json!({ "tokens": golden["rows"] }),
        &couple,
        &mut MemorySink::default(),
    )
    .unwrap_err();
    assert!(error.to_string().contains("their configurations differ"), "{error}");
}

#[test]
fn representations_equal_numpy() {
    let golden = golden();
    let params = json!({ "tokens": golden["rows"] });
    let sink = Fixture::read("gpt2-tiny").run("representation", &params, None).unwrap();
    for name in ["participation_ratio", "effective_rank", "residual_norm", "outlier_ratio", "sink"]
    {
        let expected = numbers(&golden["shape"][name]);
        near(&sink.metrics[name][&7].data, &expected, 1e-5, name);
    }
    let n_queries = 19;
    let uniform: f64 =
        (2..=20).map(|keys| 1.0 / f64::from(keys)).sum::<f64>() / f64::from(n_queries);
    near(&[sink.scalar("sink_uniform", 7).unwrap()], &[uniform], 1e-12, "uniform");
}

#[test]
fn questions_equal_a_plain_loop() {
    let golden = golden();
    let fixture = Fixture::read("gpt2-tiny");
    let questions = golden["questions"].as_array().unwrap();
    assert_eq!(questions.len(), 20);
    let lines: Vec<String> = questions.iter().map(|q| q["question"].to_string()).collect();
    let expected = |name: &str| -> Vec<f64> {
        questions.iter().map(|question| question[name].as_f64().unwrap()).collect()
    };
    let sink = fixture.run("multiple-choice", &json!({ "questions": lines }), None).unwrap();
    for name in ["margin", "margin_norm"] {
        near(&sink.metrics[name][&7].data, &expected(name), 1e-4, name);
    }
    let right = expected("margin").iter().filter(|margin| **margin > 0.0).count();
    assert_eq!(sink.scalar("accuracy", 7), Some(right as f64 / 20.0));
    assert_eq!(sink.scalar("chance", 7), Some(0.25));
    // The same from a file.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("questions.jsonl");
    fs::write(&path, lines.join("\n")).unwrap();
    let from_file = fixture.run("multiple-choice", &json!({ "file": path }), None).unwrap();
    assert_eq!(from_file.metrics["margin"], sink.metrics["margin"]);
    let sink = fixture.run("lambada", &json!({ "questions": lines }), None).unwrap();
    near(&sink.metrics["loss"][&7].data, &expected("loss"), 1e-4, "loss");
    assert_eq!(sink.metrics["greedy"][&7].data, expected("greedy"));
    let mean = expected("loss").iter().sum::<f64>() / 20.0;
    near(&[sink.scalar("perplexity", 7).unwrap()], &[mean.exp()], 1e-3, "perplexity");
}

#[test]
fn curvature_equals_an_explicit_hessian() {
    let golden = golden();
    let params = json!({
        "tokens": golden["rows"], "tensors": ["ln_final"], "k": 5, "iterations": 96, "probes": 400,
    });
    let sink = Fixture::read("gpt2-tiny").run("hessian", &params, None).unwrap();
    let expected = &golden["hessian"];
    near(
        &sink.metrics["eigenvalues"][&7].data,
        &numbers(&expected["eigenvalues"]),
        1e-7,
        "eigenvalues",
    );
    let at = |name: &str| sink.scalar(name, 7).unwrap();
    near(&[at("smallest")], &[expected["smallest"].as_f64().unwrap()], 1e-7, "smallest");
    let error = (at("trace") - expected["trace"].as_f64().unwrap()).abs();
    assert!(error < 4.0 * at("trace_error"), "{} {}", at("trace"), at("trace_error"));
    assert_eq!(at("n_parameters"), 96.0);
    let sink = Fixture::read("gpt2-tiny").run(
        "llc",
        &json!({
            "tokens": golden["rows"], "tensors": ["ln_final"], "burn_in": 2, "draws": 4,
        }),
        None,
    );
    assert!(sink.unwrap().scalar("llc", 7).unwrap().is_finite());
}

#[test]
fn broken_files_are_refused_with_the_line() {
    let fixture = Fixture::read("gpt2-tiny");
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = br#"{"tokens": [1, 2, 3]}"#.as_slice();
    let line = |text: &[u8]| [good, b"\n\n", text].concat();
    for (name, bytes, words) in [
        ("empty.txt", Vec::new(), "is empty"),
        ("binary.txt", vec![b'a', b'\n', 0xff, 0xfe], "line 2"),
        ("zeros.txt", vec![b'a', 0, b'b'], "binary"),
        ("broken.jsonl", line(b"{\"text\": "), "line 3"),
        ("other.jsonl", line(b"{\"words\": 3}"), "line 3 of"),
        ("large.jsonl", line(b"{\"tokens\": [1, 999]}"), "token 999, the vocabulary is 0 to 100"),
        ("short.jsonl", b"{\"tokens\": []}".to_vec(), "two or more tokens"),
    ] {
        let file = write(name, &bytes);
        for experiment in ["neuron-stats", "max-activating", "representation", "hessian"] {
            fixture.refuse(experiment, &json!({ "file": file }), Class::Params, words);
        }
    }
    let missing = folder.path().join("none.txt");
    fixture.refuse("neuron-stats", &json!({ "file": missing }), Class::Params, "can be read");
    let both = json!({ "tokens": [[1, 2]], "text": ["ab"] });
    fixture.refuse("neuron-stats", &both, Class::Params, "found several");
    fixture.refuse("neuron-stats", &json!({}), Class::Unsupported, "no recipe trained");
    let broken =
        json!({ "questions": ["{\"context\": \"a\", \"choices\": [\"b\"], \"answer\": 0}"] });
    fixture.refuse("multiple-choice", &broken, Class::Params, "line 1");
    let wrong = json!({ "tokens": [[1, 2]], "tensors": ["blocks.9"] });
    fixture.refuse("hessian", &wrong, Class::Params, "blocks.9");
    // A file in pieces is the same rows as one list, however it is cut.
    let rows: Vec<String> = (0..40)
        .map(|i| json!({ "tokens": (i..i + 9).collect::<Vec<i64>>() }).to_string())
        .collect();
    let file = write("rows.jsonl", rows.join("\n").as_bytes());
    let tokens: Vec<Vec<i64>> = (0..40).map(|i| (i..i + 9).collect()).collect();
    let of = |params: Json| fixture.run("neuron-stats", &params, None).unwrap();
    let (by_file, by_list) = (of(json!({ "file": file })), of(json!({ "tokens": tokens })));
    assert_eq!(bits(&by_file), bits(&by_list));
    let text = write("text.txt", "abcdefgh".repeat(50).as_bytes());
    let params = json!({ "file": text, "row_len": 9, "prepend_bos": true });
    let sink = fixture.run("neuron-stats", &params, Some(&Letters)).unwrap();
    assert_eq!(sink.scalar("n_positions", 7), Some(400.0), "the BOS token does not count");
    assert_eq!(fixture.model.weights().iter().next().unwrap().1.device(), Device::Cpu);
}
