//! `sweep catalog problems`: the open problems on training dynamics and what ships for each.

use comfy_table::Cell;
use serde_json::{Value, json};

use crate::{
    context::Context,
    error::{Outcome, Result},
    problems::{Preset, Setting},
    table::{self, Align},
};

/// All problems, or the one with this number.
pub(super) fn problems(cx: &Context, id: Option<&str>) -> Result<Outcome> {
    let presets = match id {
        Some(id) => vec![Preset::find(id)?],
        None => Preset::all(),
    };
    if cx.output.is_json() {
        let list: Vec<Value> = presets.iter().map(to_json).collect();
        cx.output.json("sweep.catalog.problems/v1", json!({ "problems": list }))?;
        return Ok(Outcome::Success);
    }
    if id.is_some() {
        // The file itself says everything, and is where one's own sweep starts.
        for preset in &presets {
            cx.output.line(preset.text().trim_end())?;
        }
        return Ok(Outcome::Success);
    }
    let columns = [
        ("", Align::Left),
        ("difficulty", Align::Left),
        ("problem", Align::Left),
        ("ships", Align::Left),
    ];
    let mut table = table::new(&columns);
    for preset in &presets {
        let ships: Vec<&str> = settings(preset).map(Setting::name).collect();
        let ships = if ships.is_empty() { "not yet".to_owned() } else { ships.join(", ") };
        let words = [preset.id(), preset.difficulty(), preset.title(), &ships];
        table.add_row(words.map(Cell::new));
    }
    cx.output.table(table)?;
    cx.output.hint("`sweep local --problem ID` runs the setting `cpu`, `sweep catalog problems ID` shows its file");
    Ok(Outcome::Success)
}

fn settings(preset: &Preset) -> impl Iterator<Item = Setting> {
    Setting::ALL.into_iter().filter(|&setting| preset.shows(setting).is_some())
}

fn to_json(preset: &Preset) -> Value {
    let settings: serde_json::Map<String, Value> = settings(preset)
        .map(|setting| (setting.name().to_owned(), json!({ "shows": preset.shows(setting) })))
        .collect();
    json!({
        "problem": preset.id(),
        "title": preset.title(),
        "difficulty": preset.difficulty(),
        "question": preset.question(),
        "settings": settings,
    })
}
