//! `sweep watch`: follows a sweep from the coordinator's event stream. Ctrl-C detaches; a coordinator
//! that goes away is waited for.

use std::time::Duration;

use clap::Args;
use sweep_proto::{
    catalog,
    pb::{
        self, metrics_service_client::MetricsServiceClient,
        sweep_service_client::SweepServiceClient,
    },
    spec::{ModelSource, SweepSpec},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tonic::transport::Channel;

use super::{SweepArg, status};
use crate::{
    connect::{self, Connection},
    context::Context,
    error::{CommandError, ErrorKind, Outcome, Result},
    progress::{Display, Newest, ended},
    series::short_name,
};

/// Without `--until-done`, a coordinator that stays away this long is given up.
const PATIENCE: Duration = Duration::from_mins(1);
/// The owner of an embedded coordinator restarts it within this time, if at all.
const OWNER_PATIENCE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Newest metric values are asked for this often, and shown for this many models and metrics.
const NEWEST_INTERVAL: Duration = Duration::from_secs(2);
const NEWEST_MODELS: usize = 4;
const NEWEST_METRICS: usize = 3;

/// Arguments of `sweep watch`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sweep watch last --until-done && sweep results last\n\n\
    Ctrl-C detaches; the sweep goes on. The exit code tells how the sweep ended.")]
pub struct WatchArgs {
    #[command(flatten)]
    sweep: SweepArg,
    /// Wait for the end however long the coordinator is away; exit 1 when interrupted
    #[arg(long)]
    until_done: bool,
}

pub(super) async fn run(cx: &Context, args: WatchArgs) -> Result<Outcome> {
    let connection = cx.connect().await?;
    let id = match args.sweep.resolve(&connection).await {
        Ok(status) => status.sweep,
        Err(error) => {
            connection.close().await;
            return Err(error);
        }
    };
    follow(cx, connection, &id, args.until_done).await
}

/// Follows a sweep to its end or until the user has seen enough.
pub(super) async fn follow(
    cx: &Context,
    mut connection: Connection,
    sweep: &str,
    until_done: bool,
) -> Result<Outcome> {
    let mut interrupts = Interrupts::new()?;
    let mut display = Display::new(&cx.output);
    let mut pause = FIRST_PAUSE;
    let mut lost_since: Option<Instant> = None;
    loop {
        if connection.daemon().is_some() {
            return without_workers(cx, connection, sweep).await;
        }
        let begun = Instant::now();
        let feed = Feed::of(cx, &connection);
        let json = cx.output.is_json().then_some(cx);
        let error = match feed.follow(sweep, &mut display, &mut interrupts, json).await {
            Ok(End::Ended(last)) => {
                display.finish(true);
                connection.close().await;
                return Ok(status::outcome(&last));
            }
            Ok(End::Interrupted) => {
                display.finish(true);
                connection.close().await;
                cx.output.note("detached; the sweep goes on");
                cx.output.hint(&format!("sweep watch {sweep}"));
                return Ok(if until_done { Outcome::Interrupted } else { Outcome::Success });
            }
            Err(error) if error.kind() != ErrorKind::Unreachable => return Err(error),
            Err(error) => error,
        };
        if begun.elapsed() > LONGEST_PAUSE {
            (pause, lost_since) = (FIRST_PAUSE, None);
        }
        let since = *lost_since.get_or_insert_with(Instant::now);
        if pause == FIRST_PAUSE {
            display.note("the coordinator does not answer; waiting for it");
        }
        if !until_done && since.elapsed() > PATIENCE {
            display.finish(true);
            return Err(error.hint("--until-done waits without limit"));
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = interrupts.next() => {
                display.finish(true);
                cx.output.note("detached while the coordinator was away");
                return Ok(if until_done { Outcome::Interrupted } else { Outcome::Success });
            }
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        // A remote channel reconnects by itself; an embedded coordinator may have moved.
        if connection.is_borrowed()
            && let Some(again) = find_again(cx, &connection, since).await
        {
            connection = again;
        }
    }
}

/// The coordinator that runs on the same folder now; one of our own when its owner had the time to
/// start it again and has not.
async fn find_again(cx: &Context, lost: &Connection, since: Instant) -> Option<Connection> {
    if let Some(again) = connect::running(lost.dir()?).await {
        return Some(again);
    }
    if since.elapsed() < OWNER_PATIENCE {
        return None;
    }
    // A failure shows at the next look as the coordinator's silence.
    cx.connect().await.ok()
}

/// The coordinator was started for this command alone: nobody works on the sweep.
async fn without_workers(cx: &Context, connection: Connection, sweep: &str) -> Result<Outcome> {
    let request = pb::GetSweepRequest { sweep: sweep.to_owned() };
    let answer = connection.sweeps().get(request).await;
    connection.close().await;
    let last = answer?.into_inner();
    status::show(cx, &last)?;
    if ended(&last) {
        return Ok(status::outcome(&last));
    }
    cx.output.note("nothing works on this sweep now");
    cx.output.hint("`sweep local FILE` with the same file goes on with it");
    Ok(Outcome::Interrupted)
}

/// How following ended.
pub(super) enum End {
    /// The sweep has ended.
    Ended(Box<pb::SweepStatus>),
    /// The user wants to leave.
    Interrupted,
}

/// Ctrl-C and SIGTERM.
pub(super) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// From now on both are events instead of the end.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// The next one.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// What a coordinator says about sweeps.
pub(super) struct Feed {
    sweeps: SweepServiceClient<Channel>,
    metrics: MetricsServiceClient<Channel>,
    known: pb::Catalog,
}

impl Feed {
    /// The feed of a connection. Key metrics are those of the catalogue that is built in.
    pub(super) fn of(_cx: &Context, connection: &Connection) -> Self {
        Self {
            sweeps: connection.sweeps(),
            metrics: connection.metrics(),
            known: catalog::embedded(),
        }
    }

    /// Shows a sweep until it ends; with `json`, every status is a line of result.
    ///
    /// # Errors
    /// `unreachable` when the stream breaks off.
    pub(super) async fn follow(
        mut self,
        sweep: &str,
        display: &mut Display,
        interrupts: &mut Interrupts,
        json: Option<&Context>,
    ) -> Result<End> {
        let request = pb::GetSweepRequest { sweep: sweep.to_owned() };
        let opening = self.sweeps.watch(request);
        let mut stream = tokio::select! {
            answer = opening => answer?.into_inner(),
            () = interrupts.next() => return Ok(End::Interrupted),
        };
        let mut clock = interval(Duration::from_secs(1));
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked = Instant::now().checked_sub(NEWEST_INTERVAL);
        let mut key_metrics: Option<Vec<String>> = None;
        let mut models: Vec<String> = Vec::new();
        loop {
            tokio::select! {
                message = stream.message() => {
                    let Some(current) = message? else {
                        return Err(CommandError::new(
                            ErrorKind::Unreachable,
                            "the coordinator stopped answering",
                        ));
                    };
                    if let Some(cx) = json {
                        cx.output.json_line("sweep.status/v1", status::to_json(&current))?;
                    }
                    let has_ended = ended(&current);
                    key_metrics.get_or_insert_with(|| key_metrics_of(&current.spec, &self.known));
                    models = training_models(&current);
                    display.update(current.clone());
                    if has_ended {
                        return Ok(End::Ended(Box::new(current)));
                    }
                }
                _ = clock.tick() => {
                    display.refresh();
                    let due = asked.is_none_or(|at| at.elapsed() >= NEWEST_INTERVAL);
                    if let Some(names) = key_metrics.as_ref().filter(|_| due) {
                        asked = Some(Instant::now());
                        let asking = newest(&mut self.metrics, sweep, names, &models);
                        // A slow answer must not hold up the statuses.
                        if let Ok(Ok(values)) = timeout(Duration::from_secs(1), asking).await
                            && !values.is_empty()
                        {
                            display.set_newest(values);
                        }
                    }
                }
                () = interrupts.next() => return Ok(End::Interrupted),
            }
        }
    }
}

/// Models that are being trained.
fn training_models(status: &pb::SweepStatus) -> Vec<String> {
    let model = |task: &pb::RunningTask| task.label.strip_suffix("/train").map(str::to_owned);
    status.running.iter().filter_map(model).take(NEWEST_MODELS).collect()
}

/// The metrics of the first figure of the sweep's recipes; without one, its first metrics.
fn key_metrics_of(spec: &str, known: &pb::Catalog) -> Vec<String> {
    let spec = serde_json::from_str(spec).ok().and_then(|spec| SweepSpec::decode(&spec).ok());
    let Some(spec) = spec else { return Vec::new() };
    let mut names = Vec::new();
    for model in &spec.models {
        let ModelSource::Train { recipe, .. } = &model.source else { continue };
        let Some(recipe) = catalog::recipe(known, recipe) else { continue };
        let lines = recipe.figures.iter().find(|figure| figure.kind == "lines");
        let chosen: Vec<&String> = match lines {
            Some(figure) => figure.metrics.iter().collect(),
            None => recipe.metrics.iter().map(|metric| &metric.name).collect(),
        };
        names.extend(chosen.into_iter().map(|name| format!("{}.{name}", recipe.name)));
    }
    names.dedup();
    names.truncate(NEWEST_METRICS);
    names
}

async fn newest(
    client: &mut MetricsServiceClient<Channel>,
    sweep: &str,
    metrics: &[String],
    models: &[String],
) -> Result<Vec<Newest>, tonic::Status> {
    let mut values = Vec::new();
    for model in models {
        for metric in metrics {
            let request = pb::QueryRequest {
                sweep: sweep.to_owned(),
                metric: metric.clone(),
                model: model.clone(),
                latest: true,
            };
            let mut stream = client.query(request).await?.into_inner();
            while let Some(series) = stream.message().await? {
                if let ([step], [value]) = (series.steps.as_slice(), series.values.as_slice()) {
                    values.push(Newest {
                        model: series.model,
                        metric: short_name(&series.metric).to_owned(),
                        step: *step,
                        value: *value,
                        unit: series.unit,
                    });
                }
            }
        }
    }
    Ok(values)
}
