//! The words of a live display: a block of lines for terminals, one line for logs.

use std::{collections::HashMap, time::Duration};

use owo_colors::Style;
use sweep_proto::{
    id::FailureClass,
    pb::{self, SweepState},
};

use crate::{format, output::Output};

/// Running tasks that are shown one by one.
const RUNNING_MAX: usize = 6;
/// Models whose newest values are shown.
const NEWEST_MAX: usize = 4;

/// Newest value of a metric of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Newest {
    /// Model label.
    pub model: String,
    /// Metric name without its experiment.
    pub metric: String,
    /// Step of the value.
    pub step: u64,
    /// The value.
    pub value: f64,
    /// Its unit.
    pub unit: String,
}

/// Everything that is shown.
pub(super) struct View<'a> {
    pub(super) status: &'a pb::SweepStatus,
    pub(super) newest: &'a [Newest],
    pub(super) elapsed: Duration,
    pub(super) eta: Option<Duration>,
    /// Time left by task label.
    pub(super) rates: HashMap<String, Duration>,
}

/// The word for a sweep's state in tables and JSON.
pub fn state_word(state: SweepState) -> &'static str {
    match state {
        SweepState::Running => "running",
        SweepState::Done => "done",
        SweepState::Failed => "failed",
        SweepState::Cancelled => "cancelled",
        SweepState::Unspecified => "unknown",
    }
}

/// Whether nothing of a sweep will run any more.
pub fn ended(status: &pb::SweepStatus) -> bool {
    matches!(status.state(), SweepState::Done | SweepState::Failed | SweepState::Cancelled)
}

/// What the tasks that produce checkpoints do: train, import, or both. The sweep file in canonical
/// form has a key for each; a glance is enough for a word.
pub fn source_word(status: &pb::SweepStatus) -> &'static str {
    match (status.spec.contains("\"train\":"), status.spec.contains("\"found\":")) {
        (true, true) => "train/import",
        (false, true) => "import",
        _ => "train",
    }
}

fn kinds(status: &pb::SweepStatus) -> Vec<(&'static str, pb::Counts)> {
    let counts = |counts: Option<pb::Counts>| counts.unwrap_or_default();
    [
        (source_word(status), counts(status.train)),
        ("analyse", counts(status.analyse)),
        ("compare", counts(status.compare)),
        ("trajectory", counts(status.trajectory)),
    ]
    .into_iter()
    .filter(|(_, counts)| counts.total > 0)
    .collect()
}

/// The block of a terminal, at most `width` characters wide.
pub(super) fn block(view: &View<'_>, width: usize, output: &Output) -> String {
    let status = view.status;
    let (bold, dim) = (Style::new().bold(), Style::new().dimmed());
    let mut lines = Vec::new();
    let state = state_word(status.state());
    let mut facts = vec![format::duration(view.elapsed)];
    if status.rate > 0.0 && !ended(status) {
        facts.push(format!("{:.1} tasks/s", status.rate));
    }
    if let Some(eta) = view.eta.filter(|_| !ended(status)) {
        facts.push(format!("about {} left", format::duration(eta)));
    }
    if status.workers == 0 && !ended(status) {
        facts.push("no worker".to_owned());
    }
    let head = clip(&format!("{}  {state}", status.sweep), width);
    lines.push(format!(
        "{}  {}",
        output.paint(&head, bold),
        output.paint(&clip(&facts.join(" · "), width.saturating_sub(head.len() + 2)), dim)
    ));
    let bar_width = width.saturating_sub(54).clamp(10, 40);
    for (kind, counts) in kinds(status) {
        let fraction = fraction(kind, &counts, status);
        let filled = (fraction * bar_width as f64).round() as usize;
        let bar = output.paint(&"━".repeat(filled), Style::new().green());
        let rest = output.paint(&"─".repeat(bar_width - filled), dim);
        let numbers =
            format!("{:>7}/{:<7}", format::count(counts.done), format::count(counts.total));
        let words = clip(&unfinished(&counts), width.saturating_sub(bar_width + 32));
        lines.push(format!("  {kind:<10} {bar}{rest} {numbers} {words}").trim_end().to_owned());
    }
    for task in status.running.iter().take(RUNNING_MAX) {
        lines.push(clip(&format!("  {}", running(task, &view.rates)), width));
    }
    if status.running.len() > RUNNING_MAX {
        lines.push(format!("  … and {} more running", status.running.len() - RUNNING_MAX));
    }
    let values = if ended(status) { &[] } else { view.newest };
    for text in newest(values) {
        lines.push(output.paint(&clip(&format!("  {text}"), width), dim));
    }
    lines.join("\n")
}

/// Finished part of a kind; running trainings count by their progress.
fn fraction(kind: &str, counts: &pb::Counts, status: &pb::SweepStatus) -> f64 {
    let finished = counts.done + counts.failed + counts.skipped + counts.cancelled;
    let share = |task: &pb::RunningTask| task.progress as f64 / task.progress_total.max(1) as f64;
    let partly: f64 = match kind {
        "train" | "train/import" => status
            .running
            .iter()
            .filter(|task| task.label.ends_with("/train"))
            .map(|task| share(task).min(1.0))
            .sum(),
        _ => 0.0,
    };
    ((finished as f64 + partly) / counts.total.max(1) as f64).clamp(0.0, 1.0)
}

fn unfinished(counts: &pb::Counts) -> String {
    let part = |n: u64, word: &str| (n > 0).then(|| format!("{} {word}", format::count(n)));
    [
        part(counts.running, "running"),
        part(counts.failed, "failed"),
        part(counts.skipped, "skipped"),
        part(counts.cancelled, "cancelled"),
    ]
    .into_iter()
    .flatten()
    .collect::<Vec<_>>()
    .join(", ")
}

fn running(task: &pb::RunningTask, left: &HashMap<String, Duration>) -> String {
    let mut text = task.label.clone();
    if task.progress_total > 1 {
        let percent = 100.0 * task.progress as f64 / task.progress_total as f64;
        text = format!(
            "{text}  {}/{}  {percent:.0} %",
            format::count(task.progress),
            format::count(task.progress_total)
        );
    }
    if let Some(left) = left.get(&task.label) {
        text = format!("{text}  {} left", format::duration(*left));
    }
    text
}

/// One line per model: `seed 0 at step 1200: train_loss 0.0012 nats · test_loss 5.21 nats`.
fn newest(values: &[Newest]) -> Vec<String> {
    let mut models: Vec<&str> = Vec::new();
    for value in values {
        if !models.contains(&value.model.as_str()) {
            models.push(&value.model);
        }
    }
    let of_model = |model: &&str| {
        let mine: Vec<&Newest> = values.iter().filter(|value| value.model == **model).collect();
        let step = mine.iter().map(|value| value.step).max().unwrap_or(0);
        let words = mine
            .iter()
            .map(|value| format!("{} {}", value.metric, format::value(value.value, &value.unit)));
        format!("{model} at step {step}: {}", words.collect::<Vec<_>>().join(" · "))
    };
    models.iter().take(NEWEST_MAX).map(of_model).collect()
}

/// One line for a log.
pub(super) fn line(view: &View<'_>) -> String {
    let status = view.status;
    let total = status.total.unwrap_or_default();
    let mut text = format!(
        "{} {}: {}/{} done",
        status.sweep,
        state_word(status.state()),
        total.done,
        total.total
    );
    let rest = unfinished(&total);
    if !rest.is_empty() {
        text = format!("{text}, {rest}");
    }
    for (kind, counts) in kinds(status) {
        text = format!("{text} · {kind} {}/{}", counts.done, counts.total);
    }
    if !ended(status) {
        for task in status.running.iter().filter(|task| task.progress_total > 1).take(2) {
            text = format!("{text} · {} {}/{}", task.label, task.progress, task.progress_total);
        }
    }
    text
}

/// A failure, as it happens.
pub(super) fn failure_line(failure: &pb::TaskFailure, output: &Output) -> String {
    let (class, message) =
        failure.failure.as_ref().map_or((FailureClass::Transient, ""), |failure| {
            (FailureClass::from_pb(failure.class), failure.message.as_str())
        });
    let (word, style) = if failure.r#final {
        ("failed", Style::new().red().bold())
    } else {
        ("will be tried again", Style::new().yellow())
    };
    format!("{} {} ({class}): {message}", output.paint(word, style), failure.label)
}

/// At most `width` characters.
fn clip(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{ColorChoice, Format};

    fn status() -> pb::SweepStatus {
        let counts = |total, done, running, failed| {
            Some(pb::Counts {
                total,
                done,
                running,
                failed,
                waiting: total - done - running - failed,
                ..Default::default()
            })
        };
        let running = |label: &str, progress, progress_total| pb::RunningTask {
            label: label.into(),
            progress,
            progress_total,
            ..Default::default()
        };
        pb::SweepStatus {
            sweep: "grokking-1a2b3c4d5e".into(),
            name: "grokking".into(),
            state: SweepState::Running as i32,
            total: counts(174, 41, 3, 1),
            train: counts(2, 0, 2, 0),
            analyse: counts(164, 41, 1, 1),
            trajectory: counts(8, 0, 0, 0),
            running: vec![
                running("modular-addition-seed0/train", 1200, 4000),
                running("modular-addition-seed0/step1200/grokking-progress", 0, 0),
            ],
            workers: 1,
            rate: 1.53,
            ..Default::default()
        }
    }

    fn newest_value(metric: &str, value: f64) -> Newest {
        Newest {
            model: "modular-addition-seed0".into(),
            metric: metric.into(),
            step: 1200,
            value,
            unit: "nats".into(),
        }
    }

    #[test]
    fn the_block_says_what_runs_and_how_long() {
        let status = status();
        let newest = [newest_value("train_loss", 0.00123), newest_value("test_loss", 5.207)];
        let view = View {
            status: &status,
            newest: &newest,
            elapsed: Duration::from_secs(83),
            eta: Some(Duration::from_secs(200)),
            rates: HashMap::from([(
                "modular-addition-seed0/train".to_owned(),
                Duration::from_secs(190),
            )]),
        };
        let output = Output::new(Format::Table, ColorChoice::Never, true, false);
        let text = block(&view, 90, &output);
        assert!(text.lines().all(|line| line.chars().count() <= 90), "{text}");
        insta::assert_snapshot!(text);
        let narrow = block(&view, 50, &output);
        assert!(narrow.lines().all(|line| line.chars().count() <= 56), "{narrow}");
    }

    #[test]
    fn a_log_line_has_the_counts() {
        let status = status();
        let view = View {
            status: &status,
            newest: &[],
            elapsed: Duration::ZERO,
            eta: None,
            rates: HashMap::new(),
        };
        insta::assert_snapshot!(line(&view), @"grokking-1a2b3c4d5e running: 41/174 done, 3 running, 1 failed · train 0/2 · analyse 41/164 · trajectory 0/8 · modular-addition-seed0/train 1200/4000");
    }
}
