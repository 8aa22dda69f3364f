//! Which checkpoints of a training were kept. Main type: [`Schedule`].

use crate::layout::Unit;

/// Which checkpoints there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// Exactly these steps.
    Steps(Vec<u64>),
    /// These fractions of the training, denser at its beginning; the labels of the files are the
    /// nearest tokens that the trainer stopped at.
    Tokens {
        /// Tokens of the whole training.
        total: u64,
    },
    /// The hub is asked; this is what is known about them.
    Hub(&'static str),
    /// The final model alone.
    Final,
}

impl Schedule {
    /// Stanford CRFM: 609 steps from 0 to 400 000.
    pub fn crfm() -> Self {
        let steps = (0..100)
            .step_by(10)
            .chain((100..2000).step_by(50))
            .chain((2000..20_000).step_by(100))
            .chain((20_000..=400_000).step_by(1000));
        Self::Steps(steps.collect())
    }

    /// Pythia: step 0, the powers of two to 512, every thousandth to 143 000.
    pub fn pythia() -> Self {
        let powers = (0..10).map(|exponent| 1 << exponent);
        Self::Steps(std::iter::once(0).chain(powers).chain(thousands()).collect())
    }

    /// The first Pythia suite: every thousandth step to 143 000.
    pub fn pythia_v0() -> Self {
        Self::Steps(thousands().collect())
    }

    /// The labels: exact steps, or nominal tokens. None where only the hub knows.
    pub fn labels(&self) -> Option<Vec<u64>> {
        match self {
            Self::Steps(steps) => Some(steps.clone()),
            Self::Tokens { total } => Some(neel_tokens(*total)),
            Self::Hub(_) => None,
            Self::Final => Some(vec![0]),
        }
    }

    /// What the labels count.
    pub fn unit(&self) -> Unit {
        match self {
            Self::Tokens { .. } => Unit::Token,
            Self::Steps(_) | Self::Hub(_) | Self::Final => Unit::Step,
        }
    }

    /// One line about it.
    pub fn summary(&self) -> String {
        match self {
            Self::Steps(steps) => {
                let (first, last) = (steps.first().unwrap_or(&0), steps.last().unwrap_or(&0));
                format!("{} steps, {first} to {last}", steps.len())
            }
            Self::Tokens { total } => format!(
                "{} points up to {} thousand million tokens, labelled by tokens (as listed by the hub)",
                neel_tokens(*total).len(),
                total / 1_000_000_000
            ),
            Self::Hub(about) => (*about).to_owned(),
            Self::Final => "the final model".to_owned(),
        }
    }
}

fn thousands() -> impl Iterator<Item = u64> {
    (1..=143).map(|thousand| thousand * 1000)
}

/// 164 points: ten thousandths in tenths, hundredths in twentieths, tenths in fiftieths, and
/// hundredths of the rest. As in Neel Nanda's training script.
fn neel_tokens(total: u64) -> Vec<u64> {
    let fractions = (0..10)
        .map(|tenth| (tenth, 10_000))
        .chain((2..20).map(|twentieth| (twentieth, 2000)))
        .chain((5..50).map(|fiftieth| (fiftieth, 500)))
        .chain((10..=100).map(|hundredth| (hundredth, 100)));
    fractions.map(|(numerator, denominator)| total * numerator / denominator).collect()
}
