//! Last words of passages: does the model complete them?
//!
//! # What it measures
//! A passage is a line of JSON with `text`; its last word (behind the last space, which belongs to the word) is to be predicted from
//! the rest (D42), or `context` and `target` say so themselves. `accuracy`: passages whose word is, token for token, the most
//! likely continuation; `perplexity`: exponential of the mean loss of a whole word; `loss` `[question]`: minus the
//! log-probability of each word in nats; `greedy` `[question]`: 1 where it is the most likely one.
//!
//! # Interpretation
//! As `lambada_openai` of lm-evaluation-harness scores it: passages are answered only from their wider context, so accuracy
//! measures how far back a model looks. Losses fall smoothly where accuracy jumps.
//!
//! # Source
//! Paperno et al. 2016, arXiv 1606.06031; lm-evaluation-harness `lambada_openai`; D42.

use serde_json::Value as Json;

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    error::Result,
    experiment::{Analysis, Experiment, Inputs, Subject},
    params::{ParamSet, params},
    questions::{Scorer, Words, lines, words},
    sink::Context,
    value::Value,
};

/// See the module documentation.
pub struct Lambada;

params! {
    /// The passages.
    pub struct Params {
        /// Passages, each `{"text": …}` or `{"context": …, "target": …}`.
        questions: Vec<String> = Vec::new(), group = "questions";
        /// File of such lines on the worker.
        file: String = String::new(), group = "questions";
        /// Whether the BOS token goes in front; null: the model's default.
        prepend_bos: Option<bool> = None;
    }
}

impl Experiment for Lambada {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "lambada",
        version: 1,
        summary: "Measures whether the last words of passages are predicted",
        source: "Paperno et al. 2016, arXiv 1606.06031; lm-evaluation-harness lambada_openai",
        stage: Stage::Analyse,
        requires: Requires { min_layers: 1, ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Checkpoint { init: false, previous: false }
    }

    fn analyse<'a>(&self, subject: &Subject<'a>, params: Params) -> Result<Analysis<'a>> {
        let passages = lines(&params.questions, &params.file, passage)?;
        let scorer = Scorer::new(subject, params.prepend_bos)?;
        Ok(Analysis::Procedure(Box::new(move |cx| measure(&passages, &scorer, cx))))
    }
}

/// Context and last word.
fn passage(json: &Json) -> Result<(Words, Words), String> {
    if json.get("text").is_none() {
        return Ok((words(json, "context")?, words(json, "target")?));
    }
    let Words::Text(text) = words(json, "text")? else {
        return Err("expected a text as `text`; token ids have no words".to_owned());
    };
    let text = text.trim_end();
    let part = |text: &str| Words::Text(text.to_owned());
    match text.rfind(' ') {
        Some(place) if place > 0 => Ok((part(&text[..place]), part(&text[place..]))),
        _ => Err("expected a `text` of two or more words".to_owned()),
    }
}

fn measure(passages: &[(Words, Words)], scorer: &Scorer<'_>, cx: &mut Context<'_>) -> Result<()> {
    let n = passages.len() as f64;
    let pairs = passages.iter().map(|(context, target)| (context, target));
    let scores = scorer.score_all(pairs, |done, all| cx.progress(done, all))?;
    let losses: Vec<f64> = scores.iter().map(|score| -score.log_prob).collect();
    let greedy: Vec<f64> =
        scores.iter().map(|score| f64::from(u8::from(score.is_greedy))).collect();
    cx.metric("accuracy", greedy.iter().sum::<f64>() / n)?;
    cx.metric("perplexity", (losses.iter().sum::<f64>() / n).exp())?;
    cx.metric("n_questions", n)?;
    cx.metric("loss", Value::vector(losses))?;
    cx.metric("greedy", Value::vector(greedy))
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "accuracy",
        unit: Unit::Probability,
        axes: &[],
        doc: "Passages whose last word is the most likely continuation",
    },
    MetricDef {
        name: "perplexity",
        unit: Unit::Ratio,
        axes: &[],
        doc: "Exponential of the mean loss of a last word",
    },
    MetricDef { name: "n_questions", unit: Unit::Count, axes: &[], doc: "Passages" },
    MetricDef {
        name: "loss",
        unit: Unit::Nats,
        axes: &[Axis::Question],
        doc: "Minus the log-probability of each last word",
    },
    MetricDef {
        name: "greedy",
        unit: Unit::Truth,
        axes: &[Axis::Question],
        doc: "1 where the last word is the most likely continuation",
    },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "accuracy",
        title: "Last words predicted",
        kind: FigureKind::Lines,
        metrics: &["accuracy"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "perplexity",
        title: "Perplexity of last words",
        kind: FigureKind::Lines,
        metrics: &["perplexity"],
        log_x: true,
        log_y: true,
    },
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_word_keeps_its_space() {
        let word = |text: &str| Words::Text(text.to_owned());
        let of = |text: &str| passage(&json!({ "text": text }));
        assert_eq!(of("to be or not \n"), Ok((word("to be or"), word(" not"))));
        assert!(of("word").unwrap_err().contains("two or more words"));
        let given = passage(&json!({ "context": "a", "target": "b" }));
        assert_eq!(given, Ok((word("a"), word("b"))));
        assert!(passage(&json!({ "context": "a" })).unwrap_err().contains("`target`"));
    }
}
