//! Parameters that say which prompts an experiment on indirect objects is run on.
//!
//! The macro `ioi_params!` declares them in front of an experiment's own, and gives the experiment's `Params` a
//! method `prompts` that returns them as [`PromptParams`].

/// Which prompts.
#[derive(Debug, Clone, Default)]
pub(crate) struct PromptParams {
    /// How many are made.
    pub n_prompts: u64,
    /// Which templates.
    pub templates: String,
    /// Seed of names, places and objects.
    pub seed: u64,
    /// Whether the BOS token goes in front.
    pub prepend_bos: Option<bool>,
    /// Prompts of one's own.
    pub tokens: Vec<Vec<i64>>,
    /// Their indirect objects.
    pub io: Vec<i64>,
    /// Their subjects.
    pub s: Vec<i64>,
    /// Tokens that are names.
    pub names: Vec<i64>,
    /// Their ABC counterparts.
    pub abc: Vec<Vec<i64>>,
}

/// Sets of templates.
pub(crate) const TEMPLATES: [&str; 5] = ["mixed", "baba", "abba", "abc", "bac"];

/// Declares `Params` of an experiment: the prompts, and what follows.
macro_rules! ioi_params {
    ($n_prompts:literal, $templates:literal, $($own:tt)*) => {
        $crate::params::params! {
            /// Which prompts, and what is done with them.
            pub struct Params {
                /// Prompts that are made, unless `tokens` gives some.
                n_prompts: u64 = $n_prompts, min = 1.0, max = 1_000_000.0;
                /// Templates: 15 with the subject first (baba), 15 with the indirect object first (abba), both (mixed), or those with
                /// three names (abc, bac).
                templates: String = $templates.to_owned(),
                    choices = $crate::circuit::params::TEMPLATES;
                /// Seed of templates, names, places and objects.
                seed: u64 = 0;
                /// Whether the BOS token goes in front of texts; null: the model's default. Toy sentences bring their own.
                prepend_bos: Option<bool> = None;
                /// Prompts of one's own as token ids, without the answer; needs `io` and `s`.
                tokens: Vec<Vec<i64>> = Vec::new(), min = 0.0;
                /// Indirect object of each row of `tokens`.
                io: Vec<i64> = Vec::new(), min = 0.0;
                /// Subject of each row of `tokens`, which stands in it twice.
                s: Vec<i64> = Vec::new(), min = 0.0;
                /// Names that may replace those of `tokens` (ABC); empty: all in `io` and `s`.
                names: Vec<i64> = Vec::new(), min = 0.0;
                /// What stands for each row of `tokens` where the answer must not be told; empty: the row with other names (ABC).
                abc: Vec<Vec<i64>> = Vec::new(), min = 0.0;
                $($own)*
            }
        }

        impl Params {
            /// The part that says which prompts.
            fn prompts(&self) -> $crate::circuit::params::PromptParams {
                $crate::circuit::params::PromptParams {
                    n_prompts: self.n_prompts,
                    templates: self.templates.clone(),
                    seed: self.seed,
                    prepend_bos: self.prepend_bos,
                    tokens: self.tokens.clone(),
                    io: self.io.clone(),
                    s: self.s.clone(),
                    names: self.names.clone(),
                    abc: self.abc.clone(),
                }
            }
        }
    };
}
pub(crate) use ioi_params;
