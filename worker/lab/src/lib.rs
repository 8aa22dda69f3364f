//! What we measure and what we train: experiments, trajectory experiments and training recipes.
//!
//! # Map
//! - [`EXPERIMENTS`] and [`RECIPES`] are the only lists; each entry describes itself by a [`Card`].
//! - [`analyse`] runs a bundle of experiments on one checkpoint, [`compare`] one experiment on two,
//!   [`trajectory`] one on all checkpoints or metric series of a model, [`joint`] one on those of
//!   several models, [`train`] a group of seeds of a recipe.
//! - `fourier`, `progress_measures` and `curve` hold the mathematics, free of sinks and cards.
//!
//! # Invariants
//! - No network or file I/O, no async, clock, environment or global random state: bytes and models come
//!   in as arguments, everything goes out through a sink.
//! - Nothing undeclared reaches a sink; a panic in one experiment is that experiment's error.

mod activation_names;
mod addition_task;
mod card;
mod circuit;
mod cluster;
mod cohort;
mod compare;
pub mod curve;
pub mod data;
mod documents;
mod each_cell;
mod error;
mod executor;
mod experiment;
pub mod experiments;
pub mod fourier;
#[cfg(test)]
mod golden;
mod gram;
mod group;
mod integrity;
mod interventions;
mod modular;
mod neurons;
pub mod optimizer;
mod params;
mod pattern_sums;
mod progress_measures;
mod prompts;
mod qk_ov;
mod questions;
pub mod random;
mod readout;
pub mod rebasin;
mod recipe;
pub mod recipes;
mod sequence;
mod shared_task;
mod sink;
mod subject;
mod surface;
mod token_difference;
mod token_rows;
mod train;
mod trainer_state;
mod trajectory;
mod value;
pub mod vocabulary;

pub use sweep_lens as lens;

pub use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Scope, Stage, Unit},
    cohort::{Cohort, CohortCheckpoints, CohortSeries, Member, MemberSeries, joint},
    compare::{Couple, compare},
    error::{Class, Error, Result},
    executor::{AnalyseJob, analyse},
    experiment::{Analysis, AnyExperiment, Experiment, Inputs, Observer, Procedure, TokenSet},
    experiments::EXPERIMENTS,
    interventions::{Auxiliary, Interventions, Measure, Penalty, UnitKind},
    params::{MetricName, NoParams, ParamDef, ParamKind, ParamSet, ParamType},
    recipe::{AnyRecipe, Base, Examples, Objective, Phase, Plan, Recipe},
    recipes::RECIPES,
    sink::{Cancelled, Context, MemorySink, Sink},
    subject::{FileIdentity, StoredTensors, Subject, TextCodec},
    train::{CheckpointPlan, SeedOutcome, Signal, TrainSink, train, train_from},
    trajectory::{Cell, Checkpoints, Series, SeriesTable, TrajectoryInput, trajectory},
    value::Value,
};
