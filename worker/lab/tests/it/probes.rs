//! Algorithmic probes: what is asked of which model, and that the numbers are those of the logits.

use serde_json::json;
use sweep_lab::{
    Class, Result, Subject, TextCodec,
    lens::{Kind, Run, Tensor, Transformer},
};

use crate::{
    circuits::{Broken, MODELS, run_on, toy},
    prompts::Fixture,
};

/// Every word, number and bracket is a token of its own, in order of appearance.
#[derive(Default)]
struct Growing(std::cell::RefCell<Vec<String>>);

impl TextCodec for Growing {
    fn encode(&self, text: &str, _prepend_bos: bool) -> Result<Vec<i64>> {
        let mut known = self.0.borrow_mut();
        let lines = text.replace('\n', " \n ");
        let words = lines.split(' ').filter(|word| !word.is_empty());
        let id = |word: &str| {
            let found = known.iter().position(|other| other == word);
            found.unwrap_or_else(|| {
                known.push(word.to_owned());
                known.len() - 1
            })
        };
        Ok(words.map(id).map(|id| id as i64).collect())
    }

    fn decode_token(&self, id: i64) -> String {
        self.0.borrow()[id as usize].clone()
    }

    fn bos(&self) -> Option<i64> {
        None
    }

    fn hash(&self) -> &'static str {
        "growing"
    }
}

#[test]
fn probes_run_on_every_model_and_say_what_they_could_ask() {
    for name in MODELS {
        let fixture = Fixture::read(name);
        let params = json!({"n_questions": 6, "shots": [0, 2], "n_digits": 1});
        let sink = fixture.run("algorithmic-probes", &params, Some(&Growing::default())).unwrap();
        for (metric, points) in &sink.metrics {
            assert_eq!(points[&7].shape, [6, 2], "{name} {metric}");
        }
        let counts = &sink.metrics["n_questions"][&7].data;
        let margins = &sink.metrics["margin"][&7].data;
        let pairs = counts.iter().zip(margins);
        assert!(pairs.clone().all(|(&count, margin)| (count == 0.0) == margin.is_nan()), "{name}");
        assert!(counts[0] == 6.0, "{name}: {counts:?}");
        // Years are not split into tokens by words.
        assert_eq!(counts[6..8], [0.0, 0.0], "{name}");
    }
    let fixture = Fixture::read("gpt2-tiny");
    let error = fixture.run("algorithmic-probes", &json!({}), None).unwrap_err();
    assert!(
        error.class() == Class::Unsupported && error.to_string().contains("tokenizer"),
        "{error}"
    );
    let error = fixture.run("algorithmic-probes", &json!({}), Some(&Broken)).unwrap_err();
    assert!(
        error.class() == Class::Unsupported && error.to_string().contains("found 0"),
        "{error}"
    );
    let toy = toy(5);
    let model = Transformer::new(toy[1].config.clone(), toy[1].weights.shallow_clone()).unwrap();
    let sink = run_on(&Subject::of(&toy[1], &model), "algorithmic-probes", &json!({})).unwrap();
    let counts = &sink.metrics["n_questions"][&5].data;
    assert_eq!(counts[..5], [50.0; 5]);
    assert!(counts[5..].iter().all(|&count| count == 0.0));
}

#[test]
fn probes_measure_what_the_logits_say() {
    let fixture = Fixture::read("neox-tiny");
    let rows = [vec![3, 9, 4, 1], vec![8, 2]];
    let (right, wrong) = ([vec![5], vec![6, 7]], [vec![1, 2], vec![9]]);
    let params = json!({"tokens": rows, "right": right, "wrong": wrong});
    let sink = fixture.run("algorithmic-probes", &params, None).unwrap();
    let (mut margin, mut log_prob, mut accuracy, mut rank) = (0.0, 0.0, 0.0, 0.0);
    for row in 0..2 {
        let tokens = Tensor::from_slice(&rows[row]).unsqueeze(0);
        let logits = fixture.model.forward(&tokens, &Run::FULL, &mut ()).select(1, -1).get(0);
        let probs =
            Vec::<f64>::try_from(logits.to_kind(Kind::Double).softmax(-1, Kind::Double)).unwrap();
        let sum = |ids: &[i64]| ids.iter().map(|&id| probs[id as usize]).sum::<f64>();
        let best = |ids: &[i64]| ids.iter().map(|&id| probs[id as usize]).fold(0.0, f64::max);
        margin += (sum(&right[row]) / sum(&wrong[row])).ln() / 2.0;
        log_prob += sum(&right[row]).ln() / 2.0;
        accuracy += f64::from(u8::from(best(&right[row]) > best(&wrong[row]))) / 2.0;
        rank += probs.iter().filter(|&&p| p > best(&right[row])).count() as f64 / 2.0;
    }
    for (metric, expected) in
        [("margin", margin), ("log_prob", log_prob), ("accuracy", accuracy), ("rank", rank)]
    {
        let found = sink.metrics[metric][&7].data[0];
        assert!((found - expected).abs() < 1e-5, "{metric}: {found}, not {expected}");
    }
    assert_eq!(sink.metrics["chance"][&7].data, [0.5]);
    // An answer is one, however often it is listed.
    let twice = json!({"tokens": rows, "right": [[5, 5], [7, 6, 7]], "wrong": [[2, 1], [9, 9]]});
    let again = fixture.run("algorithmic-probes", &twice, None).unwrap();
    assert_eq!(again.metrics, sink.metrics);
    for (params, words) in [
        (json!({"tokens": [[1]], "right": [[2]]}), "1 rows, found 0"),
        (json!({"tokens": [[1]], "right": [[2]], "wrong": [[2]]}), "row 0"),
        (json!({"tokens": [[1]], "right": [[2]], "wrong": [[500]]}), "row 0"),
        (json!({"probes": []}), "at least one"),
        (json!({"probes": ["chess"]}), "expected one of"),
    ] {
        let error = fixture.run("algorithmic-probes", &params, None).unwrap_err();
        assert!(error.class() == Class::Params && error.to_string().contains(words), "{error}");
    }
}
