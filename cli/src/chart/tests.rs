//! The structure of the SVG, and that the PNG shows it.

use super::*;

/// Attributes of every element of that name.
fn elements<'a>(svg: &'a str, name: &str) -> Vec<&'a str> {
    let open = format!("<{name} ");
    svg.match_indices(&open)
        .filter_map(|(at, _)| svg[at..].find('>').map(|end| &svg[at..at + end]))
        .collect()
}

fn axis(label: &str, min: f64, max: f64) -> Axis {
    Axis { label: label.into(), scale: Scale::Linear { min, max } }
}

fn figure(content: Content, color_bar: Option<ColorBar>) -> Figure {
    Figure {
        title: "Losses & <accuracies>".into(),
        description: "sweep x-1".into(),
        panels: vec![Panel {
            title: String::new(),
            x: axis("training step", 0.0, 4.0),
            y: axis("loss (nats)", 0.0, 4.0),
            content,
            size: (200.0, 100.0),
        }],
        columns: 1,
        legend: vec![LegendEntry {
            label: "train loss".into(),
            mark: Mark::Line("#0072b2".into(), Dash::Dashed),
        }],
        color_bar,
    }
}

fn line(points: Vec<(f64, f64)>) -> Content {
    Content::Lines(vec![Line { points, color: "#0072b2".into(), dash: Dash::Solid }])
}

#[test]
fn gaps_split_a_line_and_lone_points_stay_visible() {
    let nan = f64::NAN;
    let content = line(vec![(0.0, 1.0), (1.0, 2.0), (2.0, nan), (3.0, 3.0), (4.0, f64::INFINITY)]);
    let svg = to_svg(&figure(content, None));
    // One run of two points (and the sample in the legend), one lone point.
    assert_eq!(elements(&svg, "polyline").len(), 2, "{svg}");
    assert_eq!(elements(&svg, "circle").len(), 1);
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
    assert!(svg.contains("Losses &amp; &lt;accuracies&gt;"));
}

#[test]
fn the_structure_of_a_line_chart() {
    let svg = to_svg(&figure(line(vec![(0.0, 1.0), (2.0, 3.0), (4.0, 0.5)]), None));
    insta::assert_snapshot!(svg);
}

#[test]
fn long_lines_keep_their_extremes() {
    let mut points: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i) * 4e-5, 1.0)).collect();
    points[54_321].1 = 4.0;
    let svg = to_svg(&figure(line(points), None));
    assert!(svg.len() < 60_000, "{} bytes", svg.len());
    let drawn = elements(&svg, "polyline")[0];
    let heights = drawn.split(['"', ' ']).filter_map(|pair| pair.split_once(','));
    let highest = heights.filter_map(|(_, y)| y.parse::<f64>().ok()).fold(f64::MAX, f64::min);
    let top = elements(&svg, "clipPath").len();
    assert_eq!(top, 1);
    // The peak is at the upper edge of the data area.
    let area = elements(&svg, "rect")[1];
    let y = area.split("y=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    assert!((highest - y.parse::<f64>().unwrap() - 1.0).abs() < 0.1, "{highest} {y}");
}

fn bar() -> ColorBar {
    ColorBar {
        label: "score".into(),
        scale: Scale::Linear { min: 0.0, max: 1.0 },
        map: ColorMap::Viridis,
    }
}

#[test]
fn cells_have_their_colours_and_missing_ones_the_ground() {
    let cells = Cells {
        x_edges: vec![0.0, 1.0, 2.0, 4.0],
        y_edges: vec![0.0, 2.0, 4.0],
        values: vec![0.0, 0.0, 1.0, f64::NAN, 0.5, 0.5],
    };
    let svg = to_svg(&figure(Content::Cells(cells), Some(bar())));
    let inside: Vec<&str> = svg.split("crispEdges").nth(1).unwrap().split("</g>").collect();
    let colors: Vec<&str> = elements(inside[0], "rect")
        .into_iter()
        .filter_map(|rect| rect.split("fill=\"").nth(1)?.split('"').next())
        .collect();
    // Equal neighbours are one rectangle; the missing cell is none.
    assert_eq!(colors, ["#440154", "#fde725", "#21918c"]);
}

#[test]
fn png_is_the_svg_and_not_blank() {
    let svg = to_svg(&figure(line(vec![(0.0, 1.0), (4.0, 3.0)]), None));
    let png = raster::png(&svg).unwrap();
    let pixmap = resvg::tiny_skia::Pixmap::decode_png(&png).unwrap();
    let size = svg.split("width=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let width: f32 = size.parse().unwrap();
    assert_eq!(pixmap.width(), (width * raster::PNG_SCALE) as u32);
    let is_blue = |p: &&resvg::tiny_skia::PremultipliedColorU8| {
        (p.red(), p.green(), p.blue()) == (0x00, 0x72, 0xb2)
    };
    let (blue, dark) = (
        pixmap.pixels().iter().filter(is_blue).count(),
        pixmap.pixels().iter().filter(|p| p.red() < 80 && p.green() < 80 && p.blue() < 80).count(),
    );
    // The line is about 200 px long and 1.8 px thick at threefold scale; text is dark.
    assert!(blue > 1500, "{blue} blue pixels");
    assert!(dark > 1500, "{dark} dark pixels");
}

#[test]
fn text_that_is_drawn_stays_on_the_page() {
    let mut wide = figure(line(vec![(0.0, 1.0), (4.0, 3.0)]), Some(bar()));
    wide.title = "A title that is quite a bit wider than the small panel below it".into();
    wide.legend = (0..9)
        .map(|n| LegendEntry {
            label: format!("modular-addition-weight_decay=0.3-seed{n}"),
            mark: Mark::Start,
        })
        .collect();
    let svg = to_svg(&wide);
    let tree = resvg::usvg::Tree::from_str(&svg, raster::options()).unwrap();
    let (page, content) = (tree.size(), tree.root().abs_bounding_box());
    assert!(content.left() >= 0.0 && content.top() >= 0.0, "{content:?}");
    assert!(content.right() <= page.width() && content.bottom() <= page.height(), "{content:?}");
}

#[test]
fn long_titles_of_panels_break_behind_commas() {
    let mut long = figure(line(vec![(0.0, 1.0), (4.0, 2.0)]), None);
    long.panels[0].title = "seed 0, a leader with a long name, a follower with a name".into();
    let (left, below) = ("seed 0, a leader with a long name,", "a follower with a name");
    let svg = to_svg(&long);
    let texts: Vec<&str> = svg.split("<text").filter(|text| text.contains("name")).collect();
    assert_eq!(texts.len(), 2, "{svg}");
    assert!(texts.iter().any(|text| text.contains(left) && !text.contains(below)), "{texts:?}");
}
