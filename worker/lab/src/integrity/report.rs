//! Findings about a trajectory, as data for programs and as text for people.

use serde::Serialize;

/// Kind of finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Equal weights under several steps.
    Duplicate,
    /// Some tensors of another checkpoint.
    CopiedTensors,
    /// Checkpoints in the wrong place.
    Swap,
    /// Steps that should be there.
    Gap,
    /// Another element type than the rest.
    DtypeChange,
    /// NaN or infinite weights.
    NonFinite,
    /// An embedding whose norm jumps.
    EmbeddingNorm,
}

impl Kind {
    /// All kinds, in the order of the report.
    pub(crate) const ALL: [Self; 7] = [
        Self::Duplicate,
        Self::CopiedTensors,
        Self::Swap,
        Self::Gap,
        Self::DtypeChange,
        Self::NonFinite,
        Self::EmbeddingNorm,
    ];

    /// Stable name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::CopiedTensors => "copied-tensors",
            Self::Swap => "swap",
            Self::Gap => "gap",
            Self::DtypeChange => "dtype-change",
            Self::NonFinite => "non-finite",
            Self::EmbeddingNorm => "embedding-norm",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Finding {
    /// What it is.
    pub kind: Kind,
    /// The steps that it is about; the missing ones for a gap.
    pub steps: Vec<u64>,
    /// What was found, in a sentence without its steps.
    pub detail: String,
}

/// One checkpoint of the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    /// Its step.
    pub step: u64,
    /// Twelve hexadecimal digits.
    pub fingerprint: String,
    /// Most frequent stored element type.
    pub dtype: String,
    /// NaN and infinite weights.
    pub n_nonfinite: f64,
    /// Relative distance to the last checkpoint.
    pub distance_final: f64,
    /// Cosine to it.
    pub cosine_final: f64,
    /// Relative distance to the first checkpoint.
    pub distance_first: f64,
}

/// Everything that was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Report {
    /// Checkpoints examined.
    pub n_checkpoints: usize,
    /// Steps whose analysis is missing.
    pub not_examined: Vec<u64>,
    /// How the distances were obtained.
    pub distances: &'static str,
    /// What is wrong, in the order of [`Kind`] and steps.
    pub findings: Vec<Finding>,
    /// One row per checkpoint.
    pub checkpoints: Vec<Row>,
}

impl Report {
    /// The report as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from("# Integrity of the trajectory\n\n");
        let mut line = |content: &str| {
            text.push_str(content);
            text.push('\n');
        };
        line(&format!("{} checkpoints were examined.", self.n_checkpoints));
        if !self.not_examined.is_empty() {
            line(&format!("Not examined: {}.", steps(&self.not_examined)));
        }
        line("");
        if self.findings.is_empty() {
            line("Nothing was found.");
        } else {
            line("| finding | steps | what |");
            line("|---|---|---|");
        }
        for Finding { kind, steps: of, detail } in &self.findings {
            line(&format!("| {} | {} | {detail} |", kind.name(), steps(of)));
        }
        line("");
        line(&format!("Distances are {}.", self.distances));
        line("");
        line(
            "| step | fingerprint | dtype | non-finite | distance to last | cosine to last | distance to first |",
        );
        line("|---:|---|---|---:|---:|---:|---:|");
        for row in &self.checkpoints {
            line(&format!(
                "| {} | {} | {} | {} | {:.4} | {:.4} | {:.4} |",
                row.step,
                row.fingerprint,
                row.dtype,
                row.n_nonfinite,
                row.distance_final,
                row.cosine_final,
                row.distance_first
            ));
        }
        text
    }
}

/// Steps as words, long lists shortened.
fn steps(steps: &[u64]) -> String {
    const SHOWN: usize = 12;
    let shown: Vec<String> = steps.iter().take(SHOWN).map(u64::to_string).collect();
    let rest = steps.len().saturating_sub(SHOWN);
    let more = if rest == 0 { String::new() } else { format!(" and {rest} more") };
    format!("{}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_well() {
        let row = Row {
            step: 7,
            fingerprint: "00000000002a".to_owned(),
            dtype: "F32".to_owned(),
            n_nonfinite: 0.0,
            distance_final: 0.25,
            cosine_final: 0.5,
            distance_first: f64::NAN,
        };
        let mut report = Report {
            n_checkpoints: 1,
            not_examined: vec![],
            distances: "exact",
            findings: vec![],
            checkpoints: vec![row],
        };
        let text = report.markdown();
        assert!(text.contains("Nothing was found.") && !text.contains("Not examined"), "{text}");
        assert!(text.contains("| 7 | 00000000002a | F32 | 0 | 0.2500 | 0.5000 | NaN |"), "{text}");
        report.not_examined = vec![9];
        report.findings.push(Finding {
            kind: Kind::Gap,
            steps: (0..20).collect(),
            detail: "missing".to_owned(),
        });
        let text = report.markdown();
        assert!(
            text.contains("| gap | 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 8 more | missing |")
        );
        assert!(text.contains("Not examined: 9."), "{text}");
    }

    #[test]
    fn names_are_those_of_the_json() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::json!(kind), kind.name());
        }
    }
}
