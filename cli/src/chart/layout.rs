//! Where everything goes: margins are measured from the labels that stand in them, so that nothing
//! overlaps whatever the names and numbers are.

use super::{
    Axis, ColorBar, Figure, LegendEntry, Mark, Panel,
    color::MISSING,
    draw::{self, Area},
    raster::text_width,
    scale::{Scale, Tick},
    svg::{Anchor, Svg, TextStyle},
};

const TITLE: f64 = 15.0;
const PANEL_TITLE: f64 = 12.5;
const LABEL: f64 = 12.5;
const LABEL_MIN: f64 = 8.0;
const TICK: f64 = 11.5;
const LEGEND: f64 = 12.0;

const INK: &str = "#222222";
const AXIS: &str = "#444444";
const GRID: &str = "#e4e4e4";

/// Space at the edge of the page and between things.
const MARGIN: f64 = 12.0;
const GAP: f64 = 8.0;
/// Length of a tick mark.
const MARK: f64 = 4.0;
/// Length of a line sample in the legend.
const SAMPLE: f64 = 26.0;
const LEGEND_ROW: f64 = 18.0;
const BAR_WIDTH: f64 = 13.0;

/// Distances between labelled ticks that read well.
const X_TICK_PIXELS: f64 = 62.0;
const Y_TICK_PIXELS: f64 = 34.0;
/// Named places need only their own line.
const NAME_PIXELS: f64 = 13.0;

/// The figure as SVG text.
pub fn to_svg(figure: &Figure) -> String {
    let grid = Grid::of(figure);
    let mut svg = Svg::default();
    let title_at = (MARGIN, MARGIN + TITLE);
    svg.text(title_at, &figure.title, style(TITLE, true, Anchor::Start));
    for (index, panel) in figure.panels.iter().enumerate() {
        draw_panel(&mut svg, figure, &grid, index, panel);
    }
    if let Some(bar) = &figure.color_bar {
        draw_color_bar(&mut svg, bar, &grid);
    }
    draw_legend(&mut svg, &figure.legend, &grid);
    svg.finish(grid.width, grid.height, &figure.title, &figure.description)
}

fn style(size: f64, bold: bool, anchor: Anchor) -> TextStyle {
    TextStyle { size, bold, anchor, color: INK }
}

/// Sizes of everything on the page.
struct Grid {
    columns: usize,
    /// Left edge of the data area of each column.
    lefts: Vec<f64>,
    /// Upper edge of the data area of each row.
    tops: Vec<f64>,
    /// Right edge of the last data area.
    right: f64,
    /// Lower edge of the last data area.
    bottom: f64,
    legend_top: f64,
    legend_columns: usize,
    legend_column_width: f64,
    width: f64,
    height: f64,
}

impl Grid {
    fn of(figure: &Figure) -> Self {
        let columns = figure.columns.clamp(1, figure.panels.len().max(1));
        let rows = figure.panels.len().div_ceil(columns).max(1);
        let cell = |row: usize, column: usize| figure.panels.get(row * columns + column);
        let mut x = MARGIN;
        let mut lefts = Vec::new();
        for column in 0..columns {
            let panels = || (0..rows).filter_map(move |row| cell(row, column));
            x += panels().map(left_margin).fold(0.0, f64::max);
            lefts.push(x);
            let width = panels().map(|panel| panel.size.0).fold(0.0, f64::max);
            // Half of the last tick's label may stand out on the right.
            let overhang = panels().map(overhang).fold(0.0, f64::max);
            x += width + if column + 1 < columns { overhang.max(GAP) + GAP } else { 0.0 };
            if column + 1 == columns {
                x += overhang;
            }
        }
        let right = lefts.last().map_or(x, |left| {
            let last = (0..rows).filter_map(|row| cell(row, columns - 1));
            left + last.map(|panel| panel.size.0).fold(0.0, f64::max)
        });
        let mut y = MARGIN + TITLE + GAP;
        let mut tops = Vec::new();
        let mut bottom = y;
        for row in 0..rows {
            let panels = || (0..columns).filter_map(move |column| cell(row, column));
            let title = panels().map(title_height).fold(0.0, f64::max);
            y += if title > 0.0 { title + GAP } else { GAP / 2.0 };
            tops.push(y);
            bottom = y + panels().map(|panel| panel.size.1).fold(0.0, f64::max);
            y = bottom + panels().map(bottom_margin).fold(0.0, f64::max) + GAP;
        }
        let bar = figure.color_bar.as_ref().map_or(0.0, bar_room);
        let title = 2.0 * MARGIN + text_width(&figure.title, TITLE, true);
        let width = (x + bar + MARGIN).max(title);
        let widest = figure
            .legend
            .iter()
            .map(|entry| text_width(&entry.label, LEGEND, false) + SAMPLE + 6.0);
        let legend_column_width = widest.fold(0.0, f64::max) + 2.0 * GAP;
        let fit = ((width - 2.0 * MARGIN + 2.0 * GAP) / legend_column_width).floor() as usize;
        let legend_columns = fit.clamp(1, figure.legend.len().max(1));
        let legend_rows = figure.legend.len().div_ceil(legend_columns);
        let width = width.max(2.0 * MARGIN + legend_column_width.min(2000.0) - 2.0 * GAP);
        let height = y + legend_rows as f64 * LEGEND_ROW + MARGIN;
        Self {
            columns,
            lefts,
            tops,
            right,
            bottom,
            legend_top: y,
            legend_columns,
            legend_column_width,
            width,
            height,
        }
    }

    fn area(&self, index: usize, panel: &Panel) -> Area {
        let (row, column) = (index / self.columns, index % self.columns);
        Area { x: self.lefts[column], y: self.tops[row], width: panel.size.0, height: panel.size.1 }
    }
}

fn tick_count(axis: &Axis, pixels: f64, vertical: bool) -> usize {
    let distance = match (&axis.scale, vertical) {
        (Scale::Names { .. }, true) => NAME_PIXELS,
        (Scale::Names { .. }, false) if turned(axis, pixels) => NAME_PIXELS,
        (Scale::Names { names, .. }, false) => widest_name(names) + 6.0,
        (_, true) => Y_TICK_PIXELS,
        (_, false) => X_TICK_PIXELS,
    };
    ((pixels / distance) as usize).max(2)
}

fn widest_name(names: &[String]) -> f64 {
    names.iter().map(|name| text_width(name, TICK, false)).fold(0.0, f64::max)
}

/// Whether the names on a horizontal axis stand upright: when they are words that do not fit side by
/// side. Numbers are left out instead, they can be counted.
fn turned(axis: &Axis, pixels: f64) -> bool {
    let Scale::Names { names, .. } = &axis.scale else { return false };
    let words = names.iter().any(|name| name.parse::<f64>().is_err());
    words && (widest_name(names) + 6.0) * names.len() as f64 > pixels
}

fn x_ticks(panel: &Panel) -> Vec<Tick> {
    let ticks = panel.x.scale.ticks(tick_count(&panel.x, panel.size.0, false));
    if turned(&panel.x, panel.size.0) { ticks } else { without_collisions(ticks, panel.size.0) }
}

fn y_ticks(panel: &Panel) -> Vec<Tick> {
    panel.y.scale.ticks(tick_count(&panel.y, panel.size.1, true))
}

/// Drops labels (not marks) that would touch the one before.
fn without_collisions(mut ticks: Vec<Tick>, pixels: f64) -> Vec<Tick> {
    let mut free = f64::NEG_INFINITY;
    for tick in ticks.iter_mut().filter(|tick| !tick.label.is_empty()) {
        let (middle, half) = (tick.at * pixels, text_width(&tick.label, TICK, false) / 2.0);
        if middle - half < free {
            tick.label.clear();
        } else {
            free = middle + half + 5.0;
        }
    }
    ticks
}

fn widest(ticks: &[Tick]) -> f64 {
    ticks.iter().map(|tick| text_width(&tick.label, TICK, false)).fold(0.0, f64::max)
}

fn left_margin(panel: &Panel) -> f64 {
    let label = if panel.y.label.is_empty() { 0.0 } else { LABEL + GAP };
    label + widest(&y_ticks(panel)) + MARK + 4.0
}

fn bottom_margin(panel: &Panel) -> f64 {
    let label = if panel.x.label.is_empty() { 0.0 } else { LABEL + GAP };
    MARK + 4.0 + x_tick_height(panel) + label
}

fn x_tick_height(panel: &Panel) -> f64 {
    if turned(&panel.x, panel.size.0) { widest(&x_ticks(panel)) } else { TICK }
}

fn overhang(panel: &Panel) -> f64 {
    if turned(&panel.x, panel.size.0) {
        return 0.0;
    }
    let ticks = x_ticks(panel);
    let last = ticks.iter().rev().find(|tick| !tick.label.is_empty());
    last.map_or(0.0, |tick| {
        let half = text_width(&tick.label, TICK, false) / 2.0;
        (half - (1.0 - tick.at) * panel.size.0).max(0.0)
    })
}

fn draw_panel(svg: &mut Svg, figure: &Figure, grid: &Grid, index: usize, panel: &Panel) {
    let area = grid.area(index, panel);
    let (left, top) = (area.x, area.y);
    let (right, bottom) = (left + area.width, top + area.height);
    let (x_ticks, y_ticks) = (x_ticks(panel), y_ticks(panel));
    let is_grid = matches!(panel.content, super::Content::Cells(_));
    if !is_grid {
        for tick in x_ticks.iter().filter(|tick| !tick.label.is_empty()) {
            let x = area.at(tick.at, 0.0).0;
            svg.line((x, top), (x, bottom), GRID, 1.0);
        }
        for tick in y_ticks.iter().filter(|tick| !tick.label.is_empty()) {
            let y = area.at(0.0, tick.at).1;
            svg.line((left, y), (right, y), GRID, 1.0);
        }
    }
    svg.open_clip(index, (left - 1.0, top - 1.0, area.width + 2.0, area.height + 2.0));
    draw::content(svg, panel, area, figure.color_bar.as_ref());
    svg.close_group();
    svg.line((left, bottom), (right, bottom), AXIS, 1.0);
    svg.line((left, top), (left, bottom), AXIS, 1.0);
    for tick in &x_ticks {
        let x = area.at(tick.at, 0.0).0;
        let length = if tick.label.is_empty() { MARK / 2.0 } else { MARK };
        svg.line((x, bottom), (x, bottom + length), AXIS, 1.0);
        if turned(&panel.x, area.width) {
            let at = (x + TICK * 0.36, bottom + MARK + 3.0);
            svg.text_turned(at, &tick.label, style(TICK, false, Anchor::End), true);
        } else {
            let at = (x, bottom + MARK + 2.0 + TICK);
            svg.text(at, &tick.label, style(TICK, false, Anchor::Middle));
        }
    }
    for tick in &y_ticks {
        let y = area.at(0.0, tick.at).1;
        let length = if tick.label.is_empty() { MARK / 2.0 } else { MARK };
        svg.line((left - length, y), (left, y), AXIS, 1.0);
        let at = (left - MARK - 3.0, y + TICK * 0.36);
        svg.text(at, &tick.label, style(TICK, false, Anchor::End));
    }
    let (size, title) = title_lines(panel);
    for (line, y) in title.iter().rev().zip(0..) {
        let y = top - 6.0 - f64::from(y) * size * LEADING;
        svg.text((left, y), line, style(size, false, Anchor::Start));
    }
    if !panel.x.label.is_empty() {
        let below = bottom + MARK + 4.0 + x_tick_height(panel);
        let at = (left + area.width / 2.0, below + GAP + LABEL - 3.0);
        svg.text(at, &panel.x.label, style(LABEL, false, Anchor::Middle));
    }
    if !panel.y.label.is_empty() {
        let x = left - widest(&y_ticks) - MARK - 4.0 - GAP;
        let at = (x, top + area.height / 2.0);
        let size = fitting(&panel.y.label, LABEL, area.height + PANEL_TITLE + GAP);
        svg.text_turned(at, &panel.y.label, style(size, false, Anchor::Middle), true);
    }
}

/// From one line of a title to the next, in sizes.
const LEADING: f64 = 1.15;

/// The lines of a panel's title and their size: one if that can be read, else broken behind commas, so that it does not
/// run into the next panel's.
fn title_lines(panel: &Panel) -> (f64, Vec<String>) {
    let width = panel.size.0;
    let fits = |line: &str| text_width(line, LABEL_MIN + 1.0, false) <= width;
    let mut lines: Vec<String> = Vec::new();
    for part in panel.title.split_inclusive(", ") {
        match lines.last_mut() {
            Some(line) if fits(&format!("{line}{}", part.trim_end())) => line.push_str(part),
            _ => lines.push(part.to_owned()),
        }
    }
    let sizes = lines.iter().map(|line| fitting(line.trim_end(), PANEL_TITLE, width));
    (sizes.fold(PANEL_TITLE, f64::min), lines)
}

fn title_height(panel: &Panel) -> f64 {
    let (size, lines) = title_lines(panel);
    if lines.is_empty() { 0.0 } else { PANEL_TITLE + (lines.len() - 1) as f64 * size * LEADING }
}

/// The size at which a label of `size` is no longer than `pixels`, down to what can still be read.
fn fitting(label: &str, size: f64, pixels: f64) -> f64 {
    let width = text_width(label, size, false);
    if width <= pixels { size } else { (size * pixels / width).max(LABEL_MIN) }
}

fn bar_ticks(bar: &ColorBar, pixels: f64) -> Vec<Tick> {
    let axis = Axis { label: String::new(), scale: bar.scale.clone() };
    let mut ticks = bar.scale.ticks(tick_count(&axis, pixels, true));
    ticks.retain(|tick| !tick.label.is_empty() && (-1e-9..=1.0 + 1e-9).contains(&tick.at));
    ticks
}

/// A bar's ticks are the densest when it is long; that is the room it gets.
fn bar_room(bar: &ColorBar) -> f64 {
    2.0 * GAP + BAR_WIDTH + MARK + 4.0 + widest(&bar_ticks(bar, 400.0)) + GAP + LABEL
}

fn draw_color_bar(svg: &mut Svg, bar: &ColorBar, grid: &Grid) {
    let top = grid.tops.first().copied().unwrap_or(0.0);
    // One bar for all rows, no longer than is good for reading it.
    let height = (grid.bottom - top).min(320.0);
    let left = grid.right + 2.0 * GAP;
    let area = Area { x: left, y: top, width: BAR_WIDTH, height };
    svg.open_crisp();
    let steps = height.ceil() as usize;
    for index in 0..steps {
        let fraction = (index as f64 + 0.5) / steps as f64;
        let y = top + height - (index + 1) as f64 * height / steps as f64;
        svg.rect(left, y, BAR_WIDTH, height / steps as f64 + 0.5, &bar.map.at(fraction));
    }
    svg.close_group();
    let ticks = bar_ticks(bar, height);
    for tick in &ticks {
        let y = area.at(0.0, tick.at).1;
        let right = left + BAR_WIDTH;
        svg.line((right, y), (right + MARK, y), AXIS, 1.0);
        let at = (right + MARK + 3.0, y + TICK * 0.36);
        svg.text(at, &tick.label, style(TICK, false, Anchor::Start));
    }
    let x = left + BAR_WIDTH + MARK + 4.0 + widest(&ticks) + GAP + LABEL * 0.8;
    let at = (x, top + height / 2.0);
    let size = fitting(&bar.label, LABEL, height + PANEL_TITLE + GAP);
    svg.text_turned(at, &bar.label, style(size, false, Anchor::Middle), true);
}

fn draw_legend(svg: &mut Svg, legend: &[LegendEntry], grid: &Grid) {
    for (index, entry) in legend.iter().enumerate() {
        let (row, column) = (index / grid.legend_columns, index % grid.legend_columns);
        let x = MARGIN + column as f64 * grid.legend_column_width;
        let y = grid.legend_top + (row as f64 + 0.5) * LEGEND_ROW;
        let middle = (x + SAMPLE / 2.0, y);
        match &entry.mark {
            Mark::Line(color, dash) => {
                svg.polyline(&[(x, y), (x + SAMPLE, y)], color, draw::dashes(*dash), 2.2);
            }
            Mark::Start => draw::start_mark(svg, middle),
            Mark::End => draw::end_mark(svg, middle),
            Mark::Missing => svg.rect(middle.0 - 7.0, y - 6.0, 14.0, 12.0, MISSING),
        }
        let at = (x + SAMPLE + 6.0, y + LEGEND * 0.36);
        svg.text(at, &entry.label, style(LEGEND, false, Anchor::Start));
    }
}
