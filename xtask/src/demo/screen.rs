//! A terminal as SVG in which each line appears when it was printed: without scripts, and complete where
//! animations are off.
//!
//! It must never depend on anything but its arguments, nor cut long lines.

use std::fmt::Write as _;

use super::recording::{Line, Recording};
use crate::svg::escaped;

/// Characters per line; longer lines wrap, as in a terminal.
const COLUMNS: usize = 100;

/// Sizes in pixels; the character width is that of common terminal fonts at this size.
const SIZE: usize = 13;
const HUNDRED_CHARACTERS: usize = 783;
const ROW: usize = 18;
const MARGIN: usize = 16;
const BAR: usize = 28;

/// The kind of a line.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Command,
    Output,
    Found,
}

impl Kind {
    fn class(self) -> &'static str {
        match self {
            Self::Command => "c",
            Self::Output => "o",
            Self::Found => "f",
        }
    }
}

/// The drawing as a file.
pub(super) fn svg(recording: &Recording) -> String {
    let rows = rows(recording);
    let mut body = String::new();
    let mut top = BAR + MARGIN;
    for (at, kind, text) in &rows {
        top += ROW;
        if text.is_empty() {
            continue;
        }
        // Hidden until the animation ends; without animations it is visible. Writing to a string cannot fail.
        writeln!(
            body,
            r#"<text x="{MARGIN}" y="{top}" class="{}" style="animation-duration:{}.{:03}s">{}</text>"#,
            kind.class(),
            at / 1000,
            at % 1000,
            escaped(text)
        )
        .ok();
    }
    let foot = wrapped(&recording.foot());
    top += ROW / 2;
    for line in &foot {
        top += ROW;
        writeln!(
            body,
            r#"<text x="{MARGIN}" y="{top}" class="n">{}</text>"#,
            escaped(line)
        )
        .ok();
    }
    let height = top + MARGIN;
    let width = (COLUMNS * HUNDRED_CHARACTERS).div_ceil(100) + 2 * MARGIN;
    let dots: Vec<String> = ["#e5604d", "#e0b33f", "#5fb25a"]
        .iter()
        .enumerate()
        .map(|(at, fill)| {
            format!(
                r#"<circle cx="{}" cy="{}" r="5" fill="{fill}"/>"#,
                MARGIN + 5 + at * 18,
                BAR / 2
            )
        })
        .collect();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\" xml:space=\"preserve\">\n\
         <title>The main job of crabbox, recorded in a terminal</title>\n\
         <style>\n\
         text{{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace;font-size:{SIZE}px;\
         white-space:pre;fill:#c9d1d9;animation-name:wait;animation-timing-function:step-end}}\n\
         .c{{fill:#7ee787;font-weight:bold}}\n.f{{fill:#79c0ff}}\n.n{{fill:#8b949e;animation-name:none}}\n\
         @keyframes wait{{from,to{{visibility:hidden}}}}\n\
         @media (prefers-reduced-motion:reduce){{text{{animation-name:none}}}}\n\
         </style>\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#161b22\"/>\n{}\n{body}</svg>\n",
        dots.join("")
    )
}

/// Every line of the screen with the time it appears, in milliseconds from the beginning.
fn rows(recording: &Recording) -> Vec<(u64, Kind, String)> {
    let (mut rows, mut began) = (Vec::new(), 0);
    let mut put = |at: u64, kind: Kind, text: &str| {
        rows.extend(wrapped(text).into_iter().map(|line| (at, kind, line)));
    };
    for step in &recording.steps {
        put(began, Kind::Command, &format!("$ {}", step.shown));
        for Line(since, text) in &step.lines {
            put(began + since, Kind::Output, text);
        }
        began += step.took;
        put(began, Kind::Output, "");
    }
    put(began + recording.searched, Kind::Found, &recording.found);
    rows
}

/// `text` broken where a terminal would break it.
fn wrapped(text: &str) -> Vec<String> {
    let all: Vec<char> = text.chars().collect();
    if all.is_empty() {
        return vec![String::new()];
    }
    all.chunks(COLUMNS).map(|line| line.iter().collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::recording::tests::recording;
    use super::*;

    #[test]
    fn a_line_appears_when_it_came_and_a_long_one_goes_on_below() {
        let drawn = svg(&recording());
        let line = |text: &str| {
            let found: Vec<&str> = drawn.lines().filter(|line| line.contains(text)).collect();
            assert_eq!(found.len(), 1, "{text} in {drawn}");
            found[0].to_owned()
        };
        assert!(line("$ one &lt;1&gt;").contains("animation-duration:0.000s"));
        assert!(line("first &amp; last").contains("animation-duration:0.250s"));
        // A command begins when the previous one has ended.
        assert!(line("$ two").contains("animation-duration:1.500s"));
        // The search for leftovers took time, too.
        assert!(line("Nothing is left.").contains("animation-duration:2.400s"));
        let long: Vec<&str> = drawn.lines().filter(|line| line.contains(">xxx")).collect();
        let marks: Vec<usize> = long.iter().map(|line| line.matches('x').count()).collect();
        // In each line, one `x` comes from the attribute `x` and two from `text`.
        assert_eq!(marks, [103, 103, 53]);
        assert!(drawn.contains("rung 4"), "what it was recorded on");
        assert_eq!(drawn, svg(&recording()));
    }
}
