//! Every experiment, in alphabetical order. Adding one: write `foo.rs`, add its two lines here.

use crate::experiment::AnyExperiment;

pub mod activation_patching;
pub mod activations;
pub mod algorithmic_probes;
pub mod attention_stats;
pub mod change_points;
pub mod cka;
pub mod component_cosine;
pub mod composition;
pub mod composition_gradient;
pub mod copy_score;
pub mod copying;
pub mod curve_clusters;
pub mod diff_examples;
pub mod digit_order;
pub mod digit_phases;
pub mod early_signs;
pub mod forgetting;
pub mod frequency_choice;
pub mod gradient_noise;
pub mod grok_predict;
pub mod grokking_phases;
pub mod grokking_progress;
pub mod head_detector;
pub mod head_lifelines;
pub mod head_similarity;
pub mod hessian;
pub mod in_context_learning;
pub mod induction_heads;
pub mod integrity;
pub mod integrity_report;
pub mod ioi;
pub mod ioi_ablation;
pub mod ioi_attention;
pub mod ioi_dla;
pub mod knockout_delay;
pub mod lambada;
pub mod lead_lag;
pub mod llc;
pub mod logit_lens;
pub mod loss_pca;
pub mod max_act_overlap;
pub mod max_activating;
pub mod mode_connectivity;
pub mod multiple_choice;
pub mod neuron_formation;
pub mod neuron_stats;
pub mod order;
pub mod output_similarity;
pub mod patch_recovery;
pub mod path_patching;
pub mod pca;
pub mod per_token_loss;
pub mod phase_transition;
pub mod predict_pair;
pub mod quanta;
pub mod quanta_clusters;
pub mod rebasin;
pub mod rebasin_search;
pub mod representation;
pub mod s_curve_evidence;
pub mod scale_inversion;
pub mod scale_inversion_excess;
pub mod seed_variance;
pub mod shared_index;
pub mod soft_induction;
pub mod weight_delta;
pub mod weight_norms;

/// All experiments this build can run; the worker advertises exactly this list.
pub static EXPERIMENTS: &[&dyn AnyExperiment] = &[
    &activation_patching::ActivationPatching,
    &activations::Activations,
    &algorithmic_probes::AlgorithmicProbes,
    &attention_stats::AttentionStats,
    &change_points::ChangePoints,
    &cka::Cka,
    &component_cosine::ComponentCosine,
    &composition::Composition,
    &composition_gradient::CompositionGradient,
    &copy_score::CopyScore,
    &copying::Copying,
    &curve_clusters::CurveClusters,
    &diff_examples::DiffExamples,
    &digit_order::DigitOrder,
    &digit_phases::DigitPhases,
    &early_signs::EarlySigns,
    &forgetting::Forgetting,
    &frequency_choice::FrequencyChoice,
    &gradient_noise::GradientNoise,
    &grok_predict::GrokPredict,
    &grokking_phases::GrokkingPhases,
    &grokking_progress::GrokkingProgress,
    &head_detector::HeadDetector,
    &head_lifelines::HeadLifelines,
    &head_similarity::HeadSimilarity,
    &hessian::Hessian,
    &in_context_learning::InContextLearning,
    &induction_heads::InductionHeads,
    &integrity::Integrity,
    &integrity_report::IntegrityReport,
    &ioi::Ioi,
    &ioi_ablation::IoiAblation,
    &ioi_attention::IoiAttention,
    &ioi_dla::IoiDla,
    &knockout_delay::KnockoutDelay,
    &lambada::Lambada,
    &lead_lag::LeadLag,
    &llc::Llc,
    &logit_lens::LogitLens,
    &loss_pca::LossPca,
    &max_act_overlap::MaxActOverlap,
    &max_activating::MaxActivating,
    &mode_connectivity::ModeConnectivity,
    &multiple_choice::MultipleChoice,
    &neuron_formation::NeuronFormation,
    &neuron_stats::NeuronStats,
    &order::Order,
    &output_similarity::OutputSimilarity,
    &patch_recovery::PatchRecovery,
    &path_patching::PathPatching,
    &pca::Pca,
    &per_token_loss::PerTokenLoss,
    &phase_transition::PhaseTransition,
    &predict_pair::PredictPair,
    &quanta::Quanta,
    &quanta_clusters::QuantaClusters,
    &rebasin::Rebasin,
    &rebasin_search::RebasinSearch,
    &representation::Representation,
    &s_curve_evidence::SCurveEvidence,
    &scale_inversion::ScaleInversion,
    &scale_inversion_excess::ScaleInversionExcess,
    &seed_variance::SeedVariance,
    &shared_index::SharedIndex,
    &soft_induction::SoftInduction,
    &weight_delta::WeightDelta,
    &weight_norms::WeightNorms,
];
