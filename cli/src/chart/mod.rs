//! Charts for papers: a [`Figure`] of [`Panel`]s becomes one SVG text, and the PNG is rendered from
//! that SVG, so that both show the same.
//!
//! # Layout
//! - [`scale`]: numbers to positions, nice ticks, logarithmic axes with room for step 0.
//! - [`color`]: colour-blind-safe palette and colour maps.
//! - `svg`: writing SVG elements.
//! - `layout`: where panels, labels, legend and colour bar go, so that nothing overlaps.
//! - `draw`: the data itself.
//! - [`raster`]: text widths and PNG.
//!
//! Non-finite values are gaps, never interpolated. Data are never sampled: where a line has more
//! points than pixels, the extremes of every pixel column are drawn.

pub mod color;
mod draw;
mod layout;
pub mod raster;
pub mod scale;
mod svg;

pub use self::layout::to_svg;
use self::{color::ColorMap, scale::Scale};

/// A whole picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Heading.
    pub title: String,
    /// Where the data come from; kept in the file, not drawn.
    pub description: String,
    /// Panels in reading order.
    pub panels: Vec<Panel>,
    /// Panels per row.
    pub columns: usize,
    /// What colours, dashes and marks mean; below the panels.
    pub legend: Vec<LegendEntry>,
    /// What a colour scale means; right of the panels.
    pub color_bar: Option<ColorBar>,
}

/// One pair of axes with data.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// Heading; empty for a figure of one panel.
    pub title: String,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// The data.
    pub content: Content,
    /// Size of the data area in pixels.
    pub size: (f64, f64),
}

/// An axis of a panel.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// What it shows, with its unit.
    pub label: String,
    /// From values to positions.
    pub scale: Scale,
}

/// Data of a panel.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Curves.
    Lines(Vec<Line>),
    /// Ways through a plane, coloured along the way.
    Paths(Vec<Path>),
    /// A grid of coloured cells.
    Cells(Cells),
}

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Points from left to right; non-finite ones are gaps.
    pub points: Vec<(f64, f64)>,
    /// Colour as `#rrggbb`.
    pub color: String,
    /// Stroke pattern.
    pub dash: Dash,
}

/// Stroke patterns that can be told apart in print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dash {
    /// ──────
    Solid,
    /// ── ──
    Dashed,
    /// · · ·
    Dotted,
    /// ── · ──
    DashDot,
}

impl Dash {
    /// In order of use.
    pub const ALL: [Self; 4] = [Self::Solid, Self::Dashed, Self::Dotted, Self::DashDot];
}

/// A way through a plane.
#[derive(Debug, Clone, PartialEq)]
pub struct Path {
    /// Points in order.
    pub points: Vec<(f64, f64)>,
    /// Position of each point on the colour scale.
    pub along: Vec<f64>,
}

/// Coloured cells between the edges of two axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Cells {
    /// Left and right edges in axis values: one more than columns.
    pub x_edges: Vec<f64>,
    /// Edges along the vertical axis: one more than rows.
    pub y_edges: Vec<f64>,
    /// Values, row by row.
    pub values: Vec<f64>,
}

/// A line of the legend.
#[derive(Debug, Clone, PartialEq)]
pub struct LegendEntry {
    /// The words.
    pub label: String,
    /// The sample beside them.
    pub mark: Mark,
}

/// The sample of a legend entry.
#[derive(Debug, Clone, PartialEq)]
pub enum Mark {
    /// A piece of curve.
    Line(String, Dash),
    /// The mark of the first point of a path.
    Start,
    /// The mark of the last point of a path.
    End,
    /// Cells without a value.
    Missing,
}

/// The meaning of a colour scale.
#[derive(Debug, Clone, PartialEq)]
pub struct ColorBar {
    /// What it shows, with its unit.
    pub label: String,
    /// Values; the scale is used for positions between 0 and 1.
    pub scale: Scale,
    /// Colours.
    pub map: ColorMap,
}

#[cfg(test)]
mod tests;
