//! Cards: what an experiment or recipe is, as data. The catalogue, the parameter check, the metric
//! check, default plots and the documentation are all read off a [`Card`].
//!
//! Invariant: names are append-only; the meaning of a metric changes only with [`Card::version`].

use sweep_lens::{Architecture, Config};

use crate::{
    error::{Error, Result},
    params::ParamDef,
};

/// Identity and documentation of an experiment or a recipe.
#[derive(Debug)]
pub struct Card {
    /// Kebab-case; equals the file stem with `_` for `-`. Never renamed, only retired.
    pub name: &'static str,
    /// Raised when the meaning of any metric changes; old and new results never mix.
    pub version: u32,
    /// One line, third person.
    pub summary: &'static str,
    /// Paper and section, or upstream function.
    pub source: &'static str,
    /// What it is run on.
    pub stage: Stage,
    /// What a model must have.
    pub requires: Requires,
    /// Knobs.
    pub params: &'static [ParamDef],
    /// Everything it may emit.
    pub metrics: &'static [MetricDef],
    /// What `sweep plot` draws unless told otherwise.
    pub figures: &'static [Figure],
}

impl Card {
    /// The declaration of metric `name`.
    pub fn metric(&self, name: &str) -> Option<&'static MetricDef> {
        self.metrics.iter().find(|metric| metric.name == name)
    }
}

/// Kind of task that a card describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Trains a model and publishes checkpoints.
    Train,
    /// Looks at one checkpoint.
    Analyse,
    /// Looks at two checkpoints.
    Compare,
    /// Looks at all checkpoints of a model, or at metric series of it.
    Trajectory,
    /// Does so for several models in one task.
    Joint(Scope),
}

/// Which models one task of a joint experiment looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All seeds and grid points of one entry of `models:`.
    Entry,
    /// All models of the sweep.
    Sweep,
}

impl Scope {
    /// Stable lowercase name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Entry => "entry",
            Self::Sweep => "sweep",
        }
    }
}

impl Stage {
    /// Stable lowercase name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Analyse => "analyse",
            Self::Compare => "compare",
            Self::Trajectory | Self::Joint(_) => "trajectory",
        }
    }
}

/// What a model must have for an experiment to make sense.
#[derive(Debug, Clone, Copy)]
pub struct Requires {
    /// Fewest transformer layers.
    pub min_layers: i64,
    /// Needs an MLP in every block.
    pub mlp: bool,
    /// Only models trained by one of these recipes; any model if empty.
    pub recipes: &'static [&'static str],
    /// Whether weights that hold NaN or infinities are of no use.
    pub finite: bool,
}

impl Requires {
    /// Any model.
    pub const ANY: Self = Self { min_layers: 0, mlp: false, recipes: &[], finite: true };

    /// Checks a model; `recipe` is the name of the recipe that trained it, if one did.
    pub fn check(&self, card: &str, config: &Config, recipe: Option<&str>) -> Result<()> {
        if self.min_layers > 0 && config.architecture != Architecture::Transformer {
            return Err(Error::Unsupported(format!(
                "`{card}` needs a transformer, the model is a perceptron"
            )));
        }
        if config.n_layers < self.min_layers {
            return Err(Error::Unsupported(format!(
                "`{card}` needs at least {} layers, the model has {}",
                self.min_layers, config.n_layers
            )));
        }
        if self.mlp && config.attn_only {
            return Err(Error::Unsupported(format!(
                "`{card}` needs MLPs, the model is attention-only"
            )));
        }
        if self.recipes.is_empty() || recipe.is_some_and(|name| self.recipes.contains(&name)) {
            return Ok(());
        }
        Err(Error::Unsupported(format!(
            "`{card}` needs a model trained by recipe `{}`, found {}",
            self.recipes.join("` or `"),
            recipe.map_or("a model without a recipe".to_owned(), |name| format!("`{name}`"))
        )))
    }
}

/// One metric: its unit and what each of its axes counts. The step is always an axis and not listed.
#[derive(Debug, Clone, Copy)]
pub struct MetricDef {
    /// Name without the experiment.
    pub name: &'static str,
    /// Unit of every value.
    pub unit: Unit,
    /// Axes in order; empty for a scalar.
    pub axes: &'static [Axis],
    /// One sentence.
    pub doc: &'static str,
}

/// A metric with these axes.
pub(crate) const fn metric(
    name: &'static str,
    unit: Unit,
    axes: &'static [Axis],
    doc: &'static str,
) -> MetricDef {
    MetricDef { name, unit, axes, doc }
}

/// A metric of every head.
pub(crate) const fn of_head(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Layer, Axis::Head], doc }
}

/// A metric of every cell of another metric.
pub(crate) const fn of_cell(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Cell], doc }
}

/// A metric that is one number per step.
pub(crate) const fn scalar(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[], doc }
}

/// What an axis of a metric counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Transformer block.
    Layer,
    /// Setting of a training that others are compared with, labelled with what differs from the default.
    Arm,
    /// Attention head.
    Head,
    /// Fourier frequency `1..=p/2`.
    Frequency,
    /// Parameter tensor, labelled with its canonical name.
    Tensor,
    /// Transformer block of the second of two heads, the one that reads.
    ToLayer,
    /// The second of two attention heads, the one that reads.
    ToHead,
    /// Principal component.
    Component,
    /// Group of similar examples, the largest first.
    Cluster,
    /// Cell of another metric, labelled `axis=label,…` (empty for a scalar).
    Cell,
    /// Quantile, labelled with its level.
    Quantile,
    /// Change of a curve, in time order, from 0.
    Change,
    /// Position in a sequence, from 0.
    Position,
    /// Task of a model that learns several, from the most frequent one.
    Task,
    /// Digit of an answer; 0 is the most significant one.
    Digit,
    /// Number of digits that a carry came through.
    Cascade,
    /// Property of a digit or a run that may explain an order or a time.
    Predictor,
    /// Row of the token set, in the order given.
    Row,
    /// Element type, labelled as safetensors name it (`F32`).
    Dtype,
    /// Kind of finding, labelled with its name.
    Finding,
    /// Template of a prompt, labelled with its name.
    Template,
    /// Part of the model that writes to the residual stream, labelled with its name (`L9H6`, `L9.mlp`).
    Part,
    /// Class of attention heads, labelled with its name.
    HeadClass,
    /// Task that a prompt sets, labelled with its name.
    Probe,
    /// Number of solved examples in front of the question.
    Shots,
    /// Model of a sweep or of one of its entries, labelled.
    Member,
    /// Block of the other model of a pair.
    PartnerLayer,
    /// Frequency that the other model of a pair follows.
    PartnerFrequency,
    /// Digit that another one is compared with.
    OtherDigit,
    /// Pair of models, or of positions that attention is read between, labelled with both.
    Pair,
    /// Place on the line between two models, labelled from 0 to 1.
    Point,
    /// Data that a loss is taken on, labelled (`train`, `test`).
    Split,
    /// Activation of a neuron: `post`, what is written out, or `mid`, in front of the norm of a SoLU MLP.
    Site,
    /// Neuron of an MLP.
    Neuron,
    /// Question of a test, in the order given.
    Question,
    /// Independent run of a sampler.
    Chain,
    /// Class of tokens, labelled with its name.
    TokenClass,
    /// Value of a margin, labelled.
    Threshold,
    /// Measure of a thing, labelled with its name.
    Measure,
    /// Number of groups that curves are divided into.
    ClusterCount,
    /// Cell that another one is compared with, labelled as [`Axis::Cell`].
    OtherCell,
    /// Checkpoints that one curve is moved against another one, labelled.
    Lag,
    /// Time as a fraction of the time of an event, labelled.
    Fraction,
}

impl Axis {
    /// Column name in exports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Head => "head",
            Self::Frequency => "frequency",
            Self::Tensor => "tensor",
            Self::ToLayer => "to_layer",
            Self::ToHead => "to_head",
            Self::Component => "component",
            Self::Cluster => "cluster",
            Self::Cell => "cell",
            Self::Quantile => "quantile",
            Self::Change => "change",
            Self::Position => "position",
            Self::Task => "task",
            Self::Digit => "digit",
            Self::Cascade => "cascade",
            Self::Predictor => "predictor",
            Self::Row => "row",
            Self::Dtype => "dtype",
            Self::Finding => "finding",
            Self::Template => "template",
            Self::Part => "part",
            Self::HeadClass => "head_class",
            Self::Probe => "probe",
            Self::Shots => "shots",
            Self::Arm => "arm",
            Self::Member => "member",
            Self::PartnerLayer => "partner_layer",
            Self::PartnerFrequency => "partner_frequency",
            Self::OtherDigit => "other_digit",
            Self::Pair => "pair",
            Self::Point => "point",
            Self::Split => "split",
            Self::Site => "site",
            Self::Neuron => "neuron",
            Self::Question => "question",
            Self::Chain => "chain",
            Self::TokenClass => "token_class",
            Self::Threshold => "threshold",
            Self::Measure => "measure",
            Self::ClusterCount => "cluster_count",
            Self::OtherCell => "other_cell",
            Self::Lag => "lag",
            Self::Fraction => "fraction",
        }
    }
}

/// Unit of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Natural-log loss or divergence.
    Nats,
    /// Base-2 loss or divergence.
    Bits,
    /// In `[0, 1]`: a probability or a fraction of cases.
    Probability,
    /// Quotient of two like quantities.
    Ratio,
    /// Whole number of things.
    Count,
    /// Unnormalised log-probability.
    Logit,
    /// Euclidean norm in weight or activation space.
    Norm,
    /// Squared Euclidean norm.
    SquaredNorm,
    /// Training steps.
    Steps,
    /// Factors of ten on the step axis.
    Decades,
    /// Angle.
    Radians,
    /// Storage size of data.
    Bytes,
    /// Pure number without a natural scale.
    Dimensionless,
    /// 1 for yes, 0 for no.
    Truth,
}

impl Unit {
    /// Stable lowercase name, as exported.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::Bits => "bits",
            Self::Probability => "probability",
            Self::Ratio => "ratio",
            Self::Count => "count",
            Self::Logit => "logit",
            Self::Norm => "norm",
            Self::SquaredNorm => "squared_norm",
            Self::Steps => "steps",
            Self::Decades => "decades",
            Self::Radians => "radians",
            Self::Bytes => "bytes",
            Self::Dimensionless => "dimensionless",
            Self::Truth => "truth",
        }
    }
}

/// A default plot.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// File stem.
    pub name: &'static str,
    /// Heading.
    pub title: &'static str,
    /// How it is drawn.
    pub kind: FigureKind,
    /// Metrics of this card that it shows.
    pub metrics: &'static [&'static str],
    /// Logarithmic step axis (for scatter plots: first component).
    pub log_x: bool,
    /// Logarithmic value axis.
    pub log_y: bool,
}

/// A heat map of metrics of heads over the logarithm of the step.
pub(crate) const fn heat_map(
    name: &'static str,
    title: &'static str,
    metrics: &'static [&'static str],
) -> Figure {
    Figure { name, title, kind: FigureKind::HeatMap, metrics, log_x: true, log_y: false }
}

/// How a figure is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FigureKind {
    /// Values over steps, one line per metric (and cell).
    Lines,
    /// The same with intervals: metrics in threes, estimate, lower end, upper end.
    Intervals,
    /// First axis entry 0 against entry 1, one point per step, coloured by step.
    Scatter,
    /// One axis against steps, colour is the value.
    HeatMap,
    /// Model by model, colour is the value; for experiments on pairs.
    Pairs,
}
