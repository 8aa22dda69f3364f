//! Every experiment, in alphabetical order. Adding one: write `foo.rs`, add its two lines here.

use crate::experiment::AnyExperiment;

pub mod activations;
pub mod attention_stats;
pub mod composition;
pub mod copying;
pub mod digit_order;
pub mod digit_phases;
pub mod frequency_choice;
pub mod grok_predict;
pub mod grokking_phases;
pub mod grokking_progress;
pub mod head_detector;
pub mod in_context_learning;
pub mod induction_heads;
pub mod integrity;
pub mod integrity_report;
pub mod logit_lens;
pub mod pca;
pub mod per_token_loss;
pub mod phase_transition;
pub mod quanta;
pub mod s_curve_evidence;
pub mod soft_induction;
pub mod weight_norms;

/// All experiments this build can run; the worker advertises exactly this list.
pub static EXPERIMENTS: &[&dyn AnyExperiment] = &[
    &activations::Activations,
    &attention_stats::AttentionStats,
    &composition::Composition,
    &copying::Copying,
    &digit_order::DigitOrder,
    &digit_phases::DigitPhases,
    &frequency_choice::FrequencyChoice,
    &grok_predict::GrokPredict,
    &grokking_phases::GrokkingPhases,
    &grokking_progress::GrokkingProgress,
    &head_detector::HeadDetector,
    &in_context_learning::InContextLearning,
    &induction_heads::InductionHeads,
    &integrity::Integrity,
    &integrity_report::IntegrityReport,
    &logit_lens::LogitLens,
    &pca::Pca,
    &per_token_loss::PerTokenLoss,
    &phase_transition::PhaseTransition,
    &quanta::Quanta,
    &s_curve_evidence::SCurveEvidence,
    &soft_induction::SoftInduction,
    &weight_norms::WeightNorms,
];
