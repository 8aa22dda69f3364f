//! Text widths and PNG, both by the same renderer and with the embedded DejaVu Sans, so that what is
//! measured is what is drawn and no font of the machine matters.

use std::sync::{Arc, OnceLock};

use resvg::{
    tiny_skia::{Pixmap, Transform},
    usvg::{Options, Tree, fontdb::Database},
};

use super::svg::{FONT, escape};
use crate::error::{CommandError, Result};

/// PNG pixels per SVG pixel: 300 dpi at a width of about 16 cm.
pub const PNG_SCALE: f32 = 3.0;

/// A PNG with more pixels than this is refused rather than running out of memory.
const PIXELS_MAX: f64 = 2e8;

pub(super) fn options() -> &'static Options<'static> {
    static OPTIONS: OnceLock<Options<'static>> = OnceLock::new();
    OPTIONS.get_or_init(|| {
        let mut fonts = Database::new();
        fonts.load_font_data(dejavu::sans::regular().to_vec());
        fonts.load_font_data(dejavu::sans::bold().to_vec());
        fonts.set_sans_serif_family("DejaVu Sans");
        Options { fontdb: Arc::new(fonts), ..Options::default() }
    })
}

/// Width of a text in pixels.
pub fn text_width(text: &str, size: f64, bold: bool) -> f64 {
    if text.trim().is_empty() {
        return 0.0;
    }
    let weight = if bold { "bold" } else { "normal" };
    let svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><text y="5" font-family="{FONT}" font-size="{size}" font-weight="{weight}">{}</text></svg>"#,
        escape(text)
    );
    // Falls back to an average advance for text that the renderer drops (nothing visible in it).
    let estimate = text.chars().count() as f64 * size * 0.6;
    Tree::from_str(&svg, options())
        .map_or(estimate, |tree| f64::from(tree.root().abs_bounding_box().width()))
}

/// Renders an SVG of ours as PNG.
///
/// # Errors
/// When the picture is too large.
pub fn png(svg: &str) -> Result<Vec<u8>> {
    let broken = |error| CommandError::unexpected("cannot draw the figure").caused_by(error);
    let tree = Tree::from_str(svg, options()).map_err(broken)?;
    let size = tree.size();
    let (width, height) = (size.width() * PNG_SCALE, size.height() * PNG_SCALE);
    let pixels = f64::from(width) * f64::from(height);
    let pixmap = Pixmap::new(width.ceil() as u32, height.ceil() as u32);
    let Some(mut pixmap) = pixmap.filter(|_| pixels <= PIXELS_MAX) else {
        return Err(CommandError::usage(format!(
            "the figure is too large for a PNG ({width:.0} × {height:.0} pixels)"
        ))
        .hint("choose fewer models or metrics, or write SVG only: --to FILE.svg"));
    };
    resvg::render(&tree, Transform::from_scale(PNG_SCALE, PNG_SCALE), &mut pixmap.as_mut());
    pixmap
        .encode_png()
        .map_err(|error| CommandError::unexpected("cannot write PNG").caused_by(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_those_of_the_font() {
        let (one, two) = (text_width("m", 10.0, false), text_width("mm", 10.0, false));
        // DejaVu Sans: an m is 0.974 em wide.
        assert!((two - one - 9.74).abs() < 0.05, "{one} {two}");
        assert!(text_width("mm", 10.0, true) > two);
        assert!(text_width("", 10.0, false) < f64::EPSILON);
        assert!(text_width("a < b & c", 10.0, false) > 30.0);
    }
}
