//! `sweep catalog models` and `sweep catalog checkpoints`: published models, their schedules and
//! known defects. Needs neither a coordinator nor, for models with a fixed schedule, a network.

use comfy_table::Cell;
use serde_json::{Value, json};
use sweep_source::{
    Found, Listing, Source,
    published::{self, Defect, DefectKind, Model, Schedule},
};

use crate::{
    context::Context,
    error::{CommandError, Outcome, Result},
    sources,
    table::{self, Align},
};

/// All models, or the one called `name`.
pub(super) fn models(cx: &Context, name: Option<&str>) -> Result<Outcome> {
    let Some(name) = name else { return all(cx) };
    let model = published::get(name)?;
    if cx.output.is_json() {
        cx.output.json("sweep.catalog/v1", json!({ "models": [model_json(model)] }))?;
    } else {
        one(cx, model)?;
    }
    Ok(Outcome::Success)
}

/// The labels of the checkpoints of a model or other source, one a line.
pub(super) async fn checkpoints(cx: &Context, name: Option<&str>) -> Result<Outcome> {
    let name = name.ok_or_else(|| {
        CommandError::usage("of which model?").hint("sweep catalog checkpoints pythia-70m")
    })?;
    let source = Source::parse(name);
    let listing = match offline(cx, &source)? {
        Some(listing) => listing,
        None => sources::resolve(cx, &sources::access()?, &source).await?,
    };
    let steps: Vec<u64> = listing.checkpoints.iter().map(|found| found.step).collect();
    if cx.output.is_json() {
        let found = |found: &Found| json!({ "step": found.step, "name": found.name });
        let fields = json!({
            "at": listing.at,
            "unit": listing.unit.word(),
            "checkpoints": listing.checkpoints.iter().map(found).collect::<Vec<_>>(),
            "notes": listing.notes,
            "defects": sweep_source::warnings(&listing, &steps),
        });
        cx.output.json("sweep.catalog.checkpoints/v1", fields)?;
        return Ok(Outcome::Success);
    }
    let lines: Vec<String> = steps.iter().map(u64::to_string).collect();
    cx.output.line(&lines.join("\n"))?;
    sources::warn(cx, &listing, &steps);
    Ok(Outcome::Success)
}

/// What the catalogue itself knows. The labels of files that are named by tokens are the nominal
/// ones here.
fn offline(cx: &Context, source: &Source) -> Result<Option<Listing>> {
    let Source::Published(name) = source else { return Ok(None) };
    let model = published::get(name)?;
    if let Some(listing) = model.listing() {
        for note in &listing.notes {
            cx.output.note(note);
        }
        return Ok(Some(listing));
    }
    if !matches!(model.schedule, Schedule::Tokens { .. }) {
        return Ok(None);
    }
    let note = format!(
        "nominal points: `sweep catalog checkpoints hub:{}` reads the labels of the files",
        model.repo
    );
    cx.output.note(&note);
    let labels = model.schedule.labels().unwrap_or_default();
    let checkpoints =
        labels.into_iter().map(|step| Found { step, name: step.to_string() }).collect();
    let at = format!("hub:{}@main/checkpoints/{{}}", model.repo);
    Ok(Some(Listing { at, checkpoints, unit: model.unit(), notes: vec![note] }))
}

fn all(cx: &Context) -> Result<Outcome> {
    let models = published::models();
    if cx.output.is_json() {
        let list: Vec<Value> = models.iter().map(model_json).collect();
        cx.output.json("sweep.catalog/v1", json!({ "models": list }))?;
        return Ok(Outcome::Success);
    }
    let mut table = table::new(&[
        ("name", Align::Left),
        ("repository", Align::Left),
        ("layers", Align::Right),
        ("width", Align::Right),
        ("checkpoints", Align::Left),
        ("", Align::Left),
    ]);
    for model in models {
        let (layers, width) = match model.shape {
            Some(shape) => (shape.n_layers.to_string(), shape.d_model.to_string()),
            None => (String::new(), String::new()),
        };
        let defects = model.defects.iter().any(|defect| defect.kind != DefectKind::Mended);
        let marks = if defects { "known defects" } else { "" };
        let words = [&model.name, &model.repo, &layers, &width, &count(model), marks];
        table.add_row(words.map(Cell::new));
    }
    cx.output.table(table)?;
    cx.output
        .hint("`sweep catalog models NAME` shows one, `sweep catalog checkpoints NAME` its steps");
    Ok(Outcome::Success)
}

/// `154 steps`, `164 by tokens`, `listed by the hub`, `final`.
fn count(model: &Model) -> String {
    match &model.schedule {
        Schedule::Steps(steps) => format!("{} steps", steps.len()),
        Schedule::Tokens { .. } => {
            format!("{} by tokens", model.schedule.labels().map_or(0, |labels| labels.len()))
        }
        Schedule::Hub(_) => "listed by the hub".to_owned(),
        Schedule::Final => "final".to_owned(),
    }
}

fn one(cx: &Context, model: &Model) -> Result<()> {
    cx.output.line(&format!("{}  {}", model.name, model.collection))?;
    let mut table = table::new(&[("", Align::Left), ("", Align::Left)]);
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            table.add_row([Cell::new(name), Cell::new(value)]);
        }
    };
    row("repository", format!("hub:{}", model.repo));
    row("also called", model.aliases.join(", "));
    row("family", model.family.to_owned());
    row(
        "size",
        model.shape.map_or_else(String::new, |shape| {
            format!("{} layers, width {}, {} heads", shape.n_layers, shape.d_model, shape.n_heads)
        }),
    );
    row("checkpoints", model.schedule.summary());
    let tokens = model.tokens_per_step.map(|tokens| format!("{tokens} per step"));
    row("tokens", tokens.unwrap_or_default());
    row("prepend_bos", model.prepend_bos.to_string());
    row("tokenizer", model.tokenizer.unwrap_or("its own").to_owned());
    let trained =
        model.trained_vocab.map(|rows| format!("{rows} rows trained, the rest is padding"));
    row("vocabulary", trained.unwrap_or_default());
    for note in &model.notes {
        row("note", (*note).to_owned());
    }
    for defect in &model.defects {
        let steps = format!("{} ({})", defect.text, defect.source);
        row(&format!("defect: {}", defect.kind.word()), steps);
    }
    cx.output.table(table)
}

fn model_json(model: &Model) -> Value {
    json!({
        "name": model.name,
        "aliases": model.aliases,
        "repo": model.repo,
        "family": model.family,
        "collection": model.collection,
        "n_layers": model.shape.map(|shape| shape.n_layers),
        "d_model": model.shape.map(|shape| shape.d_model),
        "n_heads": model.shape.map(|shape| shape.n_heads),
        "schedule": model.schedule.summary(),
        "unit": model.unit().word(),
        "checkpoints": model.schedule.labels().map(|labels| labels.len()),
        "prepend_bos": model.prepend_bos,
        "tokenizer": model.tokenizer,
        "trained_vocab": model.trained_vocab,
        "tokens_per_step": model.tokens_per_step,
        "notes": model.notes,
        "defects": model.defects.iter().map(defect_json).collect::<Vec<_>>(),
    })
}

fn defect_json(defect: &Defect) -> Value {
    json!({
        "kind": defect.kind.word(),
        "steps": defect.steps,
        "text": defect.text,
        "source": defect.source,
    })
}
