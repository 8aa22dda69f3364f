//! Live displays of a running sweep: [`Display`] draws a block that is rewritten on a terminal, and
//! prints a line now and then where there is none. What is said is made by `view`, which is plain
//! text from plain data.

mod estimate;
mod view;

use std::{io, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sweep_proto::pb;
use tokio::time::Instant;

pub use self::view::{Newest, ended, source_word, state_word};
use self::{
    estimate::Estimator,
    view::{View, block, failure_line, line},
};
use crate::output::Output;

/// Lines in a log file are at least this far apart unless something important happens.
const LINE_PAUSE: Duration = Duration::from_secs(5);

/// A sweep's progress on standard error.
#[derive(Debug)]
pub struct Display {
    output: Output,
    bar: Option<ProgressBar>,
    estimator: Estimator,
    begun: Instant,
    status: Option<pb::SweepStatus>,
    newest: Vec<Newest>,
    shown_failures: Vec<(String, u64)>,
    last_line: Option<(Instant, String)>,
}

impl Display {
    /// Nothing is shown before the first status.
    pub fn new(output: &Output) -> Self {
        let bar = output.is_live().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            bar.set_style(
                ProgressStyle::with_template("{msg}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            bar
        });
        Self {
            output: output.clone(),
            bar,
            estimator: Estimator::default(),
            begun: Instant::now(),
            status: None,
            newest: Vec::new(),
            shown_failures: Vec::new(),
            last_line: None,
        }
    }

    /// Shows a new status.
    pub fn update(&mut self, status: pb::SweepStatus) {
        self.estimator.observe(self.begun.elapsed(), &status.running);
        for failure in &status.failures {
            let key = (failure.label.clone(), failure.attempt);
            if !self.shown_failures.contains(&key) {
                self.shown_failures.push(key);
                // What was tried again before we came is over.
                if self.status.is_none() && !failure.r#final {
                    continue;
                }
                self.note(&failure_line(failure, &self.output));
            }
        }
        self.status = Some(status);
        self.refresh();
    }

    /// Shows new values of the key metrics.
    pub fn set_newest(&mut self, newest: Vec<Newest>) {
        self.newest = newest;
        self.refresh();
    }

    /// Draws again; the elapsed time and the estimate change by themselves.
    pub fn refresh(&mut self) {
        let Some(status) = &self.status else { return };
        let now = self.begun.elapsed();
        let view = View {
            status,
            newest: &self.newest,
            elapsed: now,
            eta: self.estimator.eta(status),
            rates: self.estimator.remaining(),
        };
        if let Some(bar) = &self.bar {
            bar.set_message(block(&view, terminal_width(), &self.output));
            bar.tick();
            return;
        }
        let text = line(&view);
        let due = match &self.last_line {
            None => true,
            Some((_, last)) if *last == text => false,
            Some((at, _)) => at.elapsed() >= LINE_PAUSE || ended(status),
        };
        if due {
            self.output.note(&text);
            self.last_line = Some((Instant::now(), text));
        }
    }

    /// A line above the display.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.output.note(text)),
            None => self.output.note(text),
        }
    }

    /// Takes the display away; the last status stays readable where `keep` is set.
    pub fn finish(&mut self, keep: bool) {
        if let Some(bar) = self.bar.take() {
            // What stays is printed as text: the echo of a Ctrl-C would confuse a redraw.
            bar.finish_and_clear();
            if keep {
                self.output.note(&bar.message());
            }
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.finish(true);
    }
}

fn terminal_width() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stderr());
    size.map_or(80, |size| usize::from(size.ws_col)).clamp(40, 160)
}
