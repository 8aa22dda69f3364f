//! Multiple-choice questions, one margin each.
//!
//! # What it measures
//! A question is a line of JSON with `context`, `choices` and `answer` (the index of the right one), with texts or lists of token ids; the score of a choice is the
//! sum of its tokens' log-probabilities behind the context (D42). `accuracy`: questions whose right choice scores highest;
//! `accuracy_norm`: the same with scores divided by the choices' lengths in bytes (of token ids: in tokens). `margin` `[question]`: log-probability of the
//! right choice minus that of the best wrong one, in nats; `margin_norm` the same per byte; `mean_margin`;
//! `chance`, accuracy of guessing. `answers.jsonl` has every score. Questions come from the sweep file or from a `.jsonl` file on the worker.
//!
//! # Interpretation
//! Accuracy is a sum of steps by construction; whether questions flip abruptly is asked of the margins (`phase-transition` on
//! `multiple-choice.margin`). A choice is led into by a space that the question has to contain, if its text wants one.
//!
//! # Source
//! lm-evaluation-harness (`acc`, `acc_norm`); Brown et al. 2020, section 2.4; D42.

use serde_json::{Value as Json, json};

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
pub struct MultipleChoice;

params! {
    /// The questions.
    pub struct Params {
        /// Questions, each `{"context": …, "choices": […], "answer": 0}`.
        questions: Vec<String> = Vec::new(), group = "questions";
        /// File of such lines on the worker.
        file: String = String::new(), group = "questions";
        /// Whether the BOS token goes in front; null: the model's default.
        prepend_bos: Option<bool> = None;
    }
}

impl Experiment for MultipleChoice {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "multiple-choice",
        version: 1,
        summary: "Scores multiple-choice questions with a margin for each",
        source: "lm-evaluation-harness (acc, acc_norm); Brown et al. 2020, section 2.4",
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
        let questions = lines(&params.questions, &params.file, question)?;
        let scorer = Scorer::new(subject, params.prepend_bos)?;
        Ok(Analysis::Procedure(Box::new(move |cx| measure(&questions, &scorer, cx))))
    }
}

struct Question {
    context: Words,
    choices: Vec<Words>,
    answer: usize,
}

fn question(json: &Json) -> Result<Question, String> {
    let context = words(json, "context")?;
    let choices = json.get("choices").and_then(Json::as_array);
    let choices: Option<Vec<Words>> =
        choices.and_then(|all| all.iter().map(|one| Words::of(Some(one))).collect());
    let choices = choices.filter(|all| all.len() > 1 && all.iter().all(|one| one.len() > 0));
    let choices =
        choices.ok_or("expected two or more texts, or lists of token ids, as `choices`")?;
    let answer = json.get("answer").and_then(Json::as_u64).map(|index| index as usize);
    let answer = answer.filter(|index| *index < choices.len());
    let answer = answer.ok_or_else(|| format!("expected `answer` 0 to {}", choices.len() - 1))?;
    Ok(Question { context, choices, answer })
}

fn measure(questions: &[Question], scorer: &Scorer<'_>, cx: &mut Context<'_>) -> Result<()> {
    let n = questions.len() as f64;
    let (mut margins, mut margins_norm) = (Vec::new(), Vec::new());
    let mut answers = String::new();
    let pairs = questions.iter().flat_map(|question| {
        question.choices.iter().map(move |choice| (&question.context, choice))
    });
    let scores = scorer.score_all(pairs, |done, all| cx.progress(done, all))?;
    let mut scores = scores.into_iter().map(|score| score.log_prob);
    for (index, question) in questions.iter().enumerate() {
        let scores: Vec<f64> = scores.by_ref().take(question.choices.len()).collect();
        let per_byte: Vec<f64> =
            scores.iter().zip(&question.choices).map(|(s, c)| s / c.len() as f64).collect();
        margins.push(margin(&scores, question.answer));
        margins_norm.push(margin(&per_byte, question.answer));
        let line = json!({
            "question": index, "log_probs": scores, "answer": question.answer,
            "margin": margins[index], "margin_norm": margins_norm[index],
        });
        answers += &line.to_string();
        answers.push('\n');
    }
    let right = |margins: &[f64]| margins.iter().filter(|margin| **margin > 0.0).count() as f64 / n;
    cx.metric("accuracy", right(&margins))?;
    cx.metric("accuracy_norm", right(&margins_norm))?;
    cx.metric("mean_margin", margins.iter().sum::<f64>() / n)?;
    let chance = questions.iter().map(|question| 1.0 / question.choices.len() as f64).sum::<f64>();
    cx.metric("chance", chance / n)?;
    cx.metric("n_questions", n)?;
    cx.metric("margin", Value::vector(margins))?;
    cx.metric("margin_norm", Value::vector(margins_norm))?;
    cx.artifact("answers.jsonl", answers.into_bytes())
}

/// Score of the right choice minus the best of the others.
fn margin(scores: &[f64], answer: usize) -> f64 {
    let others = scores.iter().enumerate().filter(|(index, _)| *index != answer);
    scores[answer] - others.map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max)
}

const QUESTIONS: &[Axis] = &[Axis::Question];

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "accuracy",
        unit: Unit::Probability,
        axes: &[],
        doc: "Questions whose right choice is the most likely one",
    },
    MetricDef {
        name: "accuracy_norm",
        unit: Unit::Probability,
        axes: &[],
        doc: "The same with log-probabilities per byte",
    },
    MetricDef {
        name: "mean_margin",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean margin over questions",
    },
    MetricDef { name: "chance", unit: Unit::Probability, axes: &[], doc: "Accuracy of guessing" },
    MetricDef { name: "n_questions", unit: Unit::Count, axes: &[], doc: "Questions" },
    MetricDef {
        name: "margin",
        unit: Unit::Nats,
        axes: QUESTIONS,
        doc: "Log-probability of the right choice minus that of the best wrong one",
    },
    MetricDef {
        name: "margin_norm",
        unit: Unit::Nats,
        axes: QUESTIONS,
        doc: "The same with log-probabilities per byte",
    },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "accuracy",
        title: "Accuracy on the questions",
        kind: FigureKind::Lines,
        metrics: &["accuracy", "accuracy_norm", "chance"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "margins",
        title: "Margin of each question",
        kind: FigureKind::HeatMap,
        metrics: &["margin"],
        log_x: true,
        log_y: false,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_by_hand() {
        assert_eq!(margin(&[-1.0, -3.0, -2.5], 0), 1.5);
        assert_eq!(margin(&[-1.0, -3.0, -2.5], 2), -1.5);
    }
}
