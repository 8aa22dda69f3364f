//! Writing SVG: elements with short numbers and escaped text. Nothing here knows about charts.

use std::fmt::Write as _;

/// The font of all text; browsers without it take the next one.
pub(super) const FONT: &str = "'DejaVu Sans', Verdana, Helvetica, sans-serif";

/// Where text hangs on its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// An SVG text in the making.
#[derive(Debug, Default)]
pub(super) struct Svg {
    body: String,
}

/// How a piece of text looks.
#[derive(Debug, Clone, Copy)]
pub(super) struct TextStyle {
    pub(super) size: f64,
    pub(super) bold: bool,
    pub(super) anchor: Anchor,
    pub(super) color: &'static str,
}

impl Svg {
    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), color: &str, width: f64) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(
            self.body,
            r#"<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{color}" stroke-width="{}"/>"#,
            n(x1),
            n(y1),
            n(x2),
            n(y2),
            n(width)
        );
    }

    pub(super) fn polyline(&mut self, points: &[(f64, f64)], color: &str, dash: &str, width: f64) {
        let list: Vec<String> =
            points.iter().map(|(x, y)| format!("{},{}", n(*x), n(*y))).collect();
        let dash =
            if dash.is_empty() { String::new() } else { format!(r#" stroke-dasharray="{dash}""#) };
        let _ = writeln!(
            self.body,
            r#"<polyline points="{}" fill="none" stroke="{color}" stroke-width="{}" stroke-linejoin="round" stroke-linecap="butt"{dash}/>"#,
            list.join(" "),
            n(width)
        );
    }

    pub(super) fn polygon(&mut self, points: &[(f64, f64)], fill: &str, stroke: &str) {
        let list: Vec<String> =
            points.iter().map(|(x, y)| format!("{},{}", n(*x), n(*y))).collect();
        let _ = writeln!(
            self.body,
            r#"<polygon points="{}" fill="{fill}" stroke="{stroke}" stroke-width="1.2" stroke-linejoin="round"/>"#,
            list.join(" ")
        );
    }

    pub(super) fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str) {
        let _ = writeln!(
            self.body,
            r#"<rect x="{}" y="{}" width="{}" height="{}" fill="{fill}"/>"#,
            n(x),
            n(y),
            n(width),
            n(height)
        );
    }

    pub(super) fn circle(&mut self, (x, y): (f64, f64), radius: f64, fill: &str) {
        let _ = writeln!(
            self.body,
            r#"<circle cx="{}" cy="{}" r="{}" fill="{fill}"/>"#,
            n(x),
            n(y),
            n(radius)
        );
    }

    pub(super) fn text(&mut self, (x, y): (f64, f64), text: &str, style: TextStyle) {
        self.text_turned((x, y), text, style, false);
    }

    /// `up` turns the text by 90° to the left around its point.
    pub(super) fn text_turned(
        &mut self,
        (x, y): (f64, f64),
        text: &str,
        style: TextStyle,
        up: bool,
    ) {
        let anchor = match style.anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let weight = if style.bold { r#" font-weight="bold""# } else { "" };
        let turn = if up {
            format!(r#" transform="rotate(-90 {} {})""#, n(x), n(y))
        } else {
            String::new()
        };
        let _ = writeln!(
            self.body,
            r#"<text x="{}" y="{}" font-size="{}" text-anchor="{anchor}" fill="{}"{weight}{turn}>{}</text>"#,
            n(x),
            n(y),
            n(style.size),
            style.color,
            escape(text)
        );
    }

    /// Starts a group that shows nothing outside a rectangle.
    pub(super) fn open_clip(&mut self, id: usize, (x, y, width, height): (f64, f64, f64, f64)) {
        let _ = writeln!(
            self.body,
            r#"<clipPath id="panel{id}"><rect x="{}" y="{}" width="{}" height="{}"/></clipPath>
<g clip-path="url(#panel{id})">"#,
            n(x),
            n(y),
            n(width),
            n(height)
        );
    }

    /// Starts a group whose shapes meet without seams.
    pub(super) fn open_crisp(&mut self) {
        self.body.push_str("<g shape-rendering=\"crispEdges\">\n");
    }

    pub(super) fn close_group(&mut self) {
        self.body.push_str("</g>\n");
    }

    /// The whole document.
    pub(super) fn finish(self, width: f64, height: f64, title: &str, description: &str) -> String {
        let (width, height) = (n(width.ceil()), n(height.ceil()));
        format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="{FONT}">
<title>{}</title>
<desc>{}</desc>
<rect x="0" y="0" width="{width}" height="{height}" fill="#ffffff"/>
{}</svg>
"##,
            escape(title),
            escape(description),
            self.body
        )
    }
}

/// A coordinate with at most two decimals.
fn n(number: f64) -> String {
    let text = format!("{number:.2}");
    let short = crate::format::trim_zeros(&text);
    if short == "-0" { "0".to_owned() } else { short.to_owned() }
}

/// Text that XML allows; control characters are dropped.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() => {}
            c => escaped.push(c),
        }
    }
    escaped
}
