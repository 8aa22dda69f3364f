//! Small algorithmic tasks in context: labels, sums, sorting, years, successors, brackets.
//!
//! # What it measures
//! Each probe asks questions whose answers are single tokens, behind 0, 1, 2, … solved examples (`shots`). `margin` is the
//! log-odds of the right answers against the wrong ones that belong to the question (other labels, sums off by one or
//! a carry, the other words, earlier years, other members of the list, other closing brackets), `accuracy` the fraction
//! of questions whose likeliest candidate is right, `chance` what guessing among candidates gives, `log_prob` the log-probability
//! of the right answers, `rank` how many tokens are likelier than the best right one. Questions whose answers are several
//! tokens for the model's tokenizer, or that do not fit into its context, are left out (`n_questions`); a probe that has
//! none is NaN. Models without a tokenizer get the label probe in words of their own vocabulary (names, labelled by
//! places). Questions of one's own are `tokens`, `right` and `wrong`.
//!
//! # Interpretation
//! `margin` grows gradually where `accuracy` jumps (Schaeffer et al. 2023): call nothing emergent that is smooth in
//! `margin`. `labels` without examples cannot be known: its margin is 0 and shows what the labels' frequencies do. Compare
//! shots of one step to tell in-context learning from knowledge.
//!
//! # Source
//! Brown et al. 2020, arXiv 2005.14165 (few-shot tasks); Hanna et al. 2023, arXiv 2305.00586 (greater-than); Schaeffer
//! et al. 2023, arXiv 2304.15004 (metrics).

use rand::Rng;
use sweep_lens::{Config, Device, Kind, Positional, Tensor};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    circuit::{
        batch::{Meter, at, halving, numbers_of_a_pass},
        heads::flat,
    },
    data::probes::{self, PROBES},
    error::{Error, Result},
    experiment::{Analysis, Experiment, Inputs, Subject},
    params::{ParamSet, params},
    prompts, random,
    sink::Context,
    subject::TextCodec,
    value::Value,
    vocabulary::Vocabulary,
};

/// See the module documentation.
pub struct AlgorithmicProbes;

params! {
    /// Which questions.
    pub struct Params {
        /// Probes to ask.
        probes: Vec<String> = PROBES.map(str::to_owned).to_vec(), choices = PROBES;
        /// Numbers of solved examples in front of the question.
        shots: Vec<u64> = vec![0, 1, 2, 4, 8], max = 16.0;
        /// Questions of each probe at each number of shots.
        n_questions: u64 = 50, min = 1.0, max = 100_000.0;
        /// Digits of the numbers that are added.
        n_digits: u64 = 2, min = 1.0, max = 6.0;
        /// Seed of the questions.
        seed: u64 = 0;
        /// Whether the BOS token goes in front of texts; null: the model's default.
        prepend_bos: Option<bool> = None;
        /// Questions of one's own as token ids; needs `right` and `wrong`.
        tokens: Vec<Vec<i64>> = Vec::new(), min = 0.0;
        /// Right answers to each row of `tokens`.
        right: Vec<Vec<i64>> = Vec::new(), min = 0.0;
        /// Wrong answers to each row of `tokens`.
        wrong: Vec<Vec<i64>> = Vec::new(), min = 0.0;
    }
}

impl Experiment for AlgorithmicProbes {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "algorithmic-probes",
        version: 1,
        summary: "Asks for labels, sums, orders, years, successors and brackets, with and without examples",
        source: "Brown et al. 2020, arXiv 2005.14165; Hanna et al. 2023, arXiv 2305.00586",
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
        let cells = Cells::new(subject, &params)?;
        let subject = *subject;
        Ok(Analysis::Procedure(Box::new(move |cx| measure(&subject, &cells, cx))))
    }
}

/// A question in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    tokens: Vec<i64>,
    right: Vec<i64>,
    wrong: Vec<i64>,
}

impl Asked {
    /// Answers are sets: one that is given twice counts once.
    fn new(tokens: Vec<i64>, mut right: Vec<i64>, mut wrong: Vec<i64>) -> Self {
        for answers in [&mut right, &mut wrong] {
            answers.sort_unstable();
            answers.dedup();
        }
        Self { tokens, right, wrong }
    }

    /// Whether it has both kinds of answers and fits the model.
    fn fits(&self, config: &Config) -> bool {
        let is_known = |ids: &[i64], n: i64| ids.iter().all(|id| (0..n).contains(id));
        let is_bounded = config.positional != Positional::None;
        !self.tokens.is_empty()
            && !self.right.is_empty()
            && !self.wrong.is_empty()
            && is_known(&self.tokens, config.d_vocab)
            && is_known(&self.right, config.d_vocab_out)
            && is_known(&self.wrong, config.d_vocab_out)
            && self.right.iter().all(|id| !self.wrong.contains(id))
            && (!is_bounded || self.tokens.len() as i64 <= config.n_ctx)
    }
}

/// Questions of every probe at every number of shots, row-major.
struct Cells {
    probes: Vec<String>,
    shots: Vec<u64>,
    questions: Vec<Vec<Asked>>,
}

impl Cells {
    fn new(subject: &Subject<'_>, params: &Params) -> Result<Self> {
        if !params.tokens.is_empty() || !params.right.is_empty() || !params.wrong.is_empty() {
            return Self::given(subject, params);
        }
        for (name, is_empty) in
            [("probes", params.probes.is_empty()), ("shots", params.shots.is_empty())]
        {
            if is_empty {
                return Err(Error::params(name, "expected at least one, found none"));
            }
        }
        let codec = prompts::codec(subject)?;
        let words = match codec {
            Some(_) => None,
            None => Some(Vocabulary::of_checkpoint(&subject.checkpoint.extra)?.ok_or_else(|| {
                Error::Unsupported(
                    "probes need a tokenizer or a vocabulary with names, this model has neither: give `tokens`, \
                     `right` and `wrong`"
                        .to_owned(),
                )
            })?),
        };
        let config = subject.model.config();
        let mut questions = Vec::new();
        for probe in &params.probes {
            for &n_shots in &params.shots {
                let mut rng = random::stream(params.seed, &format!("probes/{probe}/{n_shots}"));
                let mut found = Vec::new();
                // Some questions have answers of several tokens; a probe that has only such ones is given up.
                for _ in 0..4 * params.n_questions {
                    if found.len() as u64 == params.n_questions {
                        break;
                    }
                    let asked = match (&codec, &words) {
                        (Some(codec), _) => {
                            let digits = params.n_digits as u32;
                            let question =
                                probes::question(probe, n_shots as usize, digits, &mut rng);
                            let bos = params.prepend_bos.unwrap_or(subject.prepend_bos);
                            in_tokens(codec.as_ref(), &question, bos)
                        }
                        (None, Some(words)) if probe == "labels" => {
                            in_words(words, n_shots as usize, &mut rng)
                        }
                        _ => None,
                    };
                    found.extend(asked.filter(|asked| asked.fits(config)));
                }
                questions.push(found);
            }
        }
        if questions.iter().all(Vec::is_empty) {
            return Err(Error::Unsupported(format!(
                "none of the probes {} has answers of one token in a context of {}, found 0 questions",
                params.probes.join(", "),
                config.n_ctx
            )));
        }
        Ok(Self { probes: params.probes.clone(), shots: params.shots.clone(), questions })
    }

    fn given(subject: &Subject<'_>, params: &Params) -> Result<Self> {
        let Params { tokens, right, wrong, .. } = params;
        for (name, list) in [("right", right), ("wrong", wrong)] {
            if list.len() != tokens.len() {
                let problem = format!(
                    "expected answers to each of {} rows, found {}",
                    tokens.len(),
                    list.len()
                );
                return Err(Error::params(name, problem));
            }
        }
        let mut questions = Vec::new();
        for (row, tokens) in tokens.iter().enumerate() {
            let asked = Asked::new(tokens.clone(), right[row].clone(), wrong[row].clone());
            if !asked.fits(subject.model.config()) {
                let Config { n_ctx, d_vocab, .. } = *subject.model.config();
                return Err(Error::params(
                    "tokens",
                    format!(
                        "row {row}: expected 1 to {n_ctx} tokens below {d_vocab} with right and other wrong answers, \
                         found {} tokens, {} right and {} wrong answers",
                        asked.tokens.len(),
                        asked.right.len(),
                        asked.wrong.len()
                    ),
                ));
            }
            questions.push(asked);
        }
        Ok(Self { probes: vec!["given".to_owned()], shots: vec![0], questions: vec![questions] })
    }
}

/// A question for a tokenizer, with those answers that are one token behind it; `None` if it has none.
fn in_tokens(codec: &dyn TextCodec, question: &probes::Question, bos: bool) -> Option<Asked> {
    let tokens = codec.encode(&question.text, bos).ok()?;
    let answers = |texts: &[String]| -> Vec<i64> {
        let answer = |text: &String| {
            let both = codec.encode(&format!("{}{text}", question.text), bos).ok()?;
            match both.strip_prefix(tokens.as_slice())? {
                &[id] => Some(id),
                _ => None,
            }
        };
        texts.iter().filter_map(answer).collect()
    };
    let (right, wrong) = (answers(&question.right), answers(&question.wrong));
    Some(Asked::new(tokens, right, wrong))
}

/// The label probe in words of a toy vocabulary: names, each followed by a place.
fn in_words(words: &Vocabulary, n_shots: usize, rng: &mut impl Rng) -> Option<Asked> {
    let role = |role: &str| words.roles.get(role).cloned().unwrap_or_default();
    let (names, labels) = (role("name"), role("place"));
    if names.is_empty() || labels.len() < 2 {
        return None;
    }
    let order = random::permutation(rng, names.len());
    let n_shots = n_shots.min(names.len());
    let mut label = || labels[random::below(rng, labels.len() as u64) as usize];
    let examples: Vec<[i64; 2]> =
        order[..n_shots].iter().map(|&at| [names[at as usize], label()]).collect();
    let [asked, right] = if examples.is_empty() {
        [names[order[0] as usize], label()]
    } else {
        examples[random::below(rng, examples.len() as u64) as usize]
    };
    let bos = role("bos").into_iter().take(1);
    let tokens = bos.chain(examples.concat()).chain([asked]).collect();
    let wrong = labels.into_iter().filter(|&other| other != right).collect();
    Some(Asked::new(tokens, vec![right], wrong))
}

/// What is measured of each question.
const COLUMNS: [&str; 5] = ["margin", "accuracy", "chance", "log_prob", "rank"];

fn measure(subject: &Subject<'_>, cells: &Cells, cx: &mut Context<'_>) -> Result<()> {
    let n_cells = cells.questions.len();
    let mut columns = vec![Vec::with_capacity(n_cells); COLUMNS.len()];
    for (index, questions) in cells.questions.iter().enumerate() {
        cx.progress(index as u64, n_cells as u64)?;
        let means = ask(subject, questions)?;
        for (column, mean) in columns.iter_mut().zip(means) {
            column.push(mean);
        }
    }
    cx.progress(n_cells as u64, n_cells as u64)?;
    let shape = vec![cells.probes.len(), cells.shots.len()];
    let shots = cells.shots.iter().map(u64::to_string).collect();
    let labels = vec![Some(cells.probes.clone()), Some(shots)];
    for (name, column) in COLUMNS.into_iter().zip(columns) {
        cx.metric(name, Value::array(shape.clone(), column, labels.clone()))?;
    }
    let counts = cells.questions.iter().map(|questions| questions.len() as f64).collect();
    cx.metric("n_questions", Value::array(shape, counts, labels))
}

/// Means over questions of [`COLUMNS`]; NaN of none.
fn ask(subject: &Subject<'_>, questions: &[Asked]) -> Result<[f64; 5]> {
    let meter = Meter::new(subject.model)?;
    let config = subject.model.config();
    let longest = questions.iter().map(|asked| asked.tokens.len()).max().unwrap_or(1);
    let per_row = numbers_of_a_pass(config, longest as i64) + 4 * config.d_vocab_out;
    let batches = halving(questions.len(), per_row, subject.device, |first, length| {
        Ok(of_batch(&meter, &questions[first..first + length], subject.device))
    })?;
    let rows: Vec<f64> = batches.concat();
    let mean = |column: usize| {
        rows.iter().skip(column).step_by(COLUMNS.len()).sum::<f64>() / questions.len() as f64
    };
    Ok([0, 1, 2, 3, 4].map(mean))
}

/// [`COLUMNS`] of each question, row-major.
fn of_batch(meter: &Meter<'_>, questions: &[Asked], device: Device) -> Vec<f64> {
    let longest = questions.iter().map(|asked| asked.tokens.len()).max().unwrap_or(1);
    let mut flat_tokens = Vec::with_capacity(questions.len() * longest);
    for Asked { tokens, .. } in questions {
        let filler = tokens.last().copied().unwrap_or(0);
        flat_tokens.extend(tokens.iter().copied().chain(std::iter::repeat(filler)).take(longest));
    }
    let tokens = Tensor::from_slice(&flat_tokens).view([-1, longest as i64]).to_device(device);
    let ends: Vec<i64> = questions.iter().map(|asked| asked.tokens.len() as i64 - 1).collect();
    let ends = Tensor::from_slice(&ends).to_device(device);
    let logits = meter.unembed(&at(&meter.forward(&tokens, &mut ()), &ends));
    let log_probs = logits.to_kind(Kind::Double).log_softmax(-1, Kind::Double); // [row, d_vocab_out]
    let mut found = Vec::with_capacity(questions.len() * COLUMNS.len());
    for (row, Asked { right, wrong, .. }) in questions.iter().enumerate() {
        let row = log_probs.get(row as i64);
        let of = |ids: &[i64]| row.index_select(0, &Tensor::from_slice(ids).to_device(device));
        let (right_probs, wrong_probs) = (of(right), of(wrong));
        let total = |x: &Tensor| x.logsumexp(&[0i64][..], false);
        let best = right_probs.max();
        let columns = [
            total(&right_probs) - total(&wrong_probs),
            best.gt_tensor(&wrong_probs.max()).to_kind(Kind::Double),
            total(&right_probs),
            row.gt_tensor(&best).sum(Kind::Double),
        ];
        let values = flat(&Tensor::stack(&columns, 0));
        let chance = right.len() as f64 / (right.len() + wrong.len()) as f64;
        found.extend([values[0], values[1], chance, values[2], values[3]]);
    }
    found
}

const CELLS: &[Axis] = &[Axis::Probe, Axis::Shots];

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "margin",
        unit: Unit::Nats,
        axes: CELLS,
        doc: "Mean log-odds of the right answers against the wrong ones; NaN if there is no question",
    },
    MetricDef {
        name: "accuracy",
        unit: Unit::Probability,
        axes: CELLS,
        doc: "Fraction of questions whose likeliest candidate is right",
    },
    MetricDef {
        name: "chance",
        unit: Unit::Probability,
        axes: CELLS,
        doc: "Mean fraction of candidates that are right",
    },
    MetricDef {
        name: "log_prob",
        unit: Unit::Nats,
        axes: CELLS,
        doc: "Mean log-probability of all right answers together",
    },
    MetricDef {
        name: "rank",
        unit: Unit::Count,
        axes: CELLS,
        doc: "Mean number of tokens that are likelier than the likeliest right answer",
    },
    MetricDef {
        name: "n_questions",
        unit: Unit::Count,
        axes: CELLS,
        doc: "Number of questions that have single-token answers and fit into the context",
    },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "margin",
        title: "Log-odds of right answers",
        kind: FigureKind::Lines,
        metrics: &["margin"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "accuracy",
        title: "Accuracy of probes",
        kind: FigureKind::Lines,
        metrics: &["accuracy"],
        log_x: true,
        log_y: false,
    },
];
