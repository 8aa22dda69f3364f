//! The data of a panel: curves, paths and cells in pixel coordinates.

use super::{
    Cells, ColorBar, Content, Dash, Line, Panel, Path,
    color::{ColorMap, MISSING, ink_on},
    raster::text_width,
    scale::Scale,
    svg::{Anchor, Svg, TextStyle},
};

/// Size of the numbers in cells.
const NUMBER: f64 = 9.5;

/// Cells smaller than a fifth of a pixel are merged before they are drawn.
const CELLS_PER_PIXEL: f64 = 2.0;

/// The data area of a panel on the page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Area {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

impl Area {
    /// The page position of fractions of both axes.
    pub(super) fn at(&self, x: f64, y: f64) -> (f64, f64) {
        (self.x + x * self.width, self.y + (1.0 - y) * self.height)
    }
}

/// Draws the data of a panel.
pub(super) fn content(svg: &mut Svg, panel: &Panel, area: Area, bar: Option<&ColorBar>) {
    match &panel.content {
        Content::Lines(list) => {
            for curve in list {
                line(svg, panel, area, curve);
            }
        }
        Content::Paths(paths) => {
            for way in paths {
                path(svg, panel, area, way, bar);
            }
        }
        Content::Cells(grid) => cells(svg, panel, area, grid, bar),
    }
}

/// `stroke-dasharray` of a pattern.
pub(super) fn dashes(dash: Dash) -> &'static str {
    match dash {
        Dash::Solid => "",
        Dash::Dashed => "6 3",
        Dash::Dotted => "1.6 2.4",
        Dash::DashDot => "7 3 1.6 3",
    }
}

fn line(svg: &mut Svg, panel: &Panel, area: Area, line: &Line) {
    let place = |&(x, y): &(f64, f64)| {
        let (x, y) = (panel.x.scale.at(x)?, panel.y.scale.at(y)?);
        Some(area.at(x, y))
    };
    let places: Vec<Option<(f64, f64)>> = line.points.iter().map(place).collect();
    for run in places.split(Option::is_none) {
        let run: Vec<(f64, f64)> = run.iter().flatten().copied().collect();
        match run.as_slice() {
            [] => {}
            [alone] => svg.circle(*alone, 3.0, &line.color),
            [_, _, ..] => {
                let shown = extremes(&run, area.width);
                svg.polyline(&shown, &line.color, dashes(line.dash), 1.8);
            }
        }
    }
}

/// First, lowest, highest and last point of every half pixel: looks the same as all points.
fn extremes(run: &[(f64, f64)], width: f64) -> Vec<(f64, f64)> {
    if (run.len() as f64) < width * 8.0 {
        return run.to_vec();
    }
    let mut shown: Vec<(f64, f64)> = Vec::new();
    for column in run.chunk_by(|a, b| (a.0 * 2.0).floor() == (b.0 * 2.0).floor()) {
        let by_y = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let low = column.iter().enumerate().min_by(|a, b| by_y(&a.1, &b.1)).map(|(i, _)| i);
        let high = column.iter().enumerate().max_by(|a, b| by_y(&a.1, &b.1)).map(|(i, _)| i);
        let mut keep = vec![0, low.unwrap_or(0), high.unwrap_or(0), column.len() - 1];
        keep.sort_unstable();
        keep.dedup();
        shown.extend(keep.into_iter().map(|index| column[index]));
    }
    shown
}

fn path(svg: &mut Svg, panel: &Panel, area: Area, path: &Path, bar: Option<&ColorBar>) {
    let place = |&(x, y): &(f64, f64)| {
        let (x, y) = (panel.x.scale.at(x)?, panel.y.scale.at(y)?);
        Some(area.at(x, y))
    };
    let places: Vec<Option<(f64, f64)>> = path.points.iter().map(place).collect();
    for run in places.split(Option::is_none) {
        let run: Vec<(f64, f64)> = run.iter().flatten().copied().collect();
        if run.len() > 1 {
            svg.polyline(&run, "#b0b0b0", "", 1.0);
        }
    }
    for (at, along) in places.iter().zip(&path.along) {
        let fraction = bar.and_then(|bar| bar.scale.at(*along)).unwrap_or(f64::NAN);
        if let Some(at) = at {
            svg.circle(*at, 2.8, &ColorMap::Viridis.at(fraction));
        }
    }
    let mut present = places.iter().flatten();
    if let Some(first) = present.next() {
        start_mark(svg, *first);
    }
    if let Some(last) = places.iter().flatten().next_back() {
        end_mark(svg, *last);
    }
}

/// A hollow square.
pub(super) fn start_mark(svg: &mut Svg, (x, y): (f64, f64)) {
    let r = 5.0;
    svg.polygon(
        &[(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)],
        "none",
        "#222222",
    );
}

/// A star.
pub(super) fn end_mark(svg: &mut Svg, (x, y): (f64, f64)) {
    let corner = |index: u32| {
        let radius = if index.is_multiple_of(2) { 7.5 } else { 3.2 };
        let angle = f64::from(index) * std::f64::consts::PI / 5.0;
        (x + radius * angle.sin(), y - radius * angle.cos())
    };
    let corners: Vec<(f64, f64)> = (0..10).map(corner).collect();
    svg.polygon(&corners, "#ffffff", "#222222");
}

fn cells(svg: &mut Svg, panel: &Panel, area: Area, cells: &Cells, bar: Option<&ColorBar>) {
    let (columns, rows) = (cells.x_edges.len() - 1, cells.y_edges.len() - 1);
    let x_groups = groups(columns, area.width);
    let y_groups = groups(rows, area.height);
    svg.rect(area.x, area.y, area.width, area.height, MISSING);
    svg.open_crisp();
    for (row_from, row_to) in &y_groups {
        let edges = (cells.y_edges[*row_from], cells.y_edges[*row_to]);
        let Some((y0, y1)) = span(&panel.y.scale, edges) else { continue };
        let color = |(from, to): &(usize, usize)| {
            let value = mean(cells, columns, (*from, *to), (*row_from, *row_to));
            let fraction = bar.and_then(|bar| bar.scale.at(value));
            fraction.zip(bar).map(|(fraction, bar)| bar.map.at(fraction))
        };
        let colors: Vec<Option<String>> = x_groups.iter().map(color).collect();
        let mut index = 0;
        for same in colors.chunk_by(|a, b| a == b) {
            let (from, to) = (x_groups[index].0, x_groups[index + same.len() - 1].1);
            index += same.len();
            let Some(color) = &same[0] else { continue };
            let edges = (cells.x_edges[from], cells.x_edges[to]);
            let Some((x0, x1)) = span(&panel.x.scale, edges) else { continue };
            let ((left, bottom), (right, top)) = (area.at(x0, y0), area.at(x1, y1));
            // A little overlap: where edges fall between pixels, the ground would shine through.
            let overlap = 0.3;
            svg.rect(left, top - overlap, right - left + overlap, bottom - top + overlap, color);
        }
    }
    svg.close_group();
    numbers(svg, panel, area, cells, bar);
}

/// The values of cells that are large enough for all of them.
fn numbers(svg: &mut Svg, panel: &Panel, area: Area, cells: &Cells, bar: Option<&ColorBar>) {
    let Some(bar) = bar else { return };
    let columns = cells.x_edges.len() - 1;
    let mut written = Vec::new();
    for (index, value) in cells.values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
        let (row, column) = (index / columns, index % columns);
        let x = span(&panel.x.scale, (cells.x_edges[column], cells.x_edges[column + 1]));
        let y = span(&panel.y.scale, (cells.y_edges[row], cells.y_edges[row + 1]));
        let Some(((x0, x1), (y0, y1))) = x.zip(y) else { continue };
        let ((left, bottom), (right, top)) = (area.at(x0, y0), area.at(x1, y1));
        let text = number(*value);
        if text_width(&text, NUMBER, false) + 3.0 > right - left || NUMBER + 3.0 > bottom - top {
            return;
        }
        let ground = bar.scale.at(*value).map_or_else(|| MISSING.to_owned(), |at| bar.map.at(at));
        let middle = (f64::midpoint(left, right), f64::midpoint(top, bottom) + NUMBER * 0.36);
        written.push((middle, text, ink_on(&ground)));
    }
    for (at, text, color) in written {
        let style = TextStyle { size: NUMBER, bold: false, anchor: Anchor::Middle, color };
        svg.text(at, &text, style);
    }
}

/// Two significant digits, without the zero before the point, as in tables of coefficients.
fn number(value: f64) -> String {
    let digits = if value.abs() >= 10.0 { 3 } else { 2 };
    let text = crate::format::significant(value, digits);
    let text = if value.fract() == 0.0 { crate::format::trim_zeros(&text) } else { &text };
    let text = text.replace('-', "−");
    match text.strip_prefix("0.") {
        Some(rest) => format!(".{rest}"),
        None => text.replace("−0.", "−."),
    }
}

/// Both edges as fractions, the smaller one first. Edges are never at zero of a log axis.
fn span(scale: &Scale, (from, to): (f64, f64)) -> Option<(f64, f64)> {
    let place = |edge: f64| match scale {
        // Edges of named cells lie between the names.
        Scale::Names { .. } => scale.at(edge - 0.5),
        // The edge below the cell of zero is the axis' own start.
        Scale::Log { zero: true, .. } if edge <= 0.0 => Some(0.0),
        Scale::Linear { .. } | Scale::Log { .. } => scale.at(edge),
    };
    let (a, b) = (place(from)?.clamp(0.0, 1.0), place(to)?.clamp(0.0, 1.0));
    Some((a.min(b), a.max(b)))
}

/// Ranges of cells that share a pixel.
fn groups(count: usize, pixels: f64) -> Vec<(usize, usize)> {
    let most = (pixels * CELLS_PER_PIXEL).max(1.0) as usize;
    let stride = count.div_ceil(most).max(1);
    (0..count).step_by(stride).map(|from| (from, (from + stride).min(count))).collect()
}

/// Mean of the finite values of a rectangle of cells.
fn mean(cells: &Cells, columns: usize, x: (usize, usize), y: (usize, usize)) -> f64 {
    let rectangle = (y.0..y.1).flat_map(|row| (x.0..x.1).map(move |column| row * columns + column));
    let (mut sum, mut count) = (0.0, 0.0);
    for value in rectangle.map(|index| cells.values[index]).filter(|value| value.is_finite()) {
        sum += value;
        count += 1.0;
    }
    sum / count
}
