//! Horizontal bars as SVG: one scale per unit, the median as a bar, the spread as a line, and the number.
//!
//! Hand-written, because only rectangles and text are drawn: a plotting library would lay out text by the
//! machine's fonts or bring its own. It must never depend on anything but its arguments.

use std::fmt::Write as _;

use super::{Group, number};
use crate::svg::escaped;

/// Sizes in pixels.
const WIDTH: f64 = 760.0;
const LEFT: f64 = 330.0;
const RIGHT: f64 = 80.0;
const ROW: f64 = 24.0;
const HEAD: f64 = 44.0;
const FOOT: f64 = 30.0;
const GAP: f64 = 26.0;

/// The chart as a file.
pub(super) fn svg(title: &str, foot: &str, groups: &[Group]) -> String {
    let mut body = String::new();
    let mut at = HEAD;
    for group in groups {
        text(&mut body, LEFT, at + 12.0, "start", 11, group.unit);
        at += GAP;
        let most = group
            .bars
            .iter()
            .map(|bar| bar.spread.map_or(bar.middle, |(_, most)| most.max(bar.middle)))
            .fold(0.0, f64::max);
        // Values of zero have zero length.
        let scale = (WIDTH - LEFT - RIGHT) / if most > 0.0 { most } else { 1.0 };
        for bar in &group.bars {
            let (length, middle) = (bar.middle * scale, at + ROW / 2.0);
            text(&mut body, LEFT - 8.0, middle + 4.0, "end", 12, &bar.name);
            let (top, tall) = (at + 4.0, ROW - 8.0);
            // Writing to a string cannot fail.
            writeln!(
                body,
                r##"<rect x="{LEFT:.1}" y="{top:.1}" width="{length:.1}" height="{tall:.1}" fill="#4a7ab5"/>"##
            )
            .ok();
            let mut end = length;
            if let Some((one, most)) = bar.spread {
                let start = LEFT + bar.middle.min(one) * scale;
                for (to, thick) in [(most, 1), (one.max(bar.middle), 3)] {
                    let to = LEFT + to * scale;
                    writeln!(
                        body,
                        r##"<line x1="{start:.1}" y1="{middle:.1}" x2="{to:.1}" y2="{middle:.1}" stroke="#222" stroke-width="{thick}"/>"##
                    )
                    .ok();
                }
                end = end.max(most * scale);
            }
            text(
                &mut body,
                LEFT + end + 6.0,
                middle + 4.0,
                "start",
                12,
                &number(bar.middle),
            );
            at += ROW;
        }
    }
    let height = at + FOOT;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {WIDTH:.0} {height:.0}\" \
         font-family=\"sans-serif\" role=\"img\">\n<title>{}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        escaped(title)
    );
    text(&mut out, 12.0, 26.0, "start", 16, title);
    out.push_str(&body);
    text(&mut out, 12.0, height - 10.0, "start", 11, foot);
    out.push_str("</svg>\n");
    out
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, size: u32, words: &str) {
    let words = escaped(words);
    writeln!(
        out,
        r##"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-size="{size}" fill="#222">{words}</text>"##
    )
    .ok();
}
