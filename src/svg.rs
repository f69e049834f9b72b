//! Plots as SVG: lines and dots over two axes, in one file that a browser shows.

use std::fmt::Write as _;

use crate::format::short_number;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 180.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 56.0;
/// Of Okabe and Ito: told apart by those who do not see all colours.
const COLORS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];
const TICKS: f64 = 6.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Linear,
    Log,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    pub label: String,
    pub scale: Scale,
}

impl Axis {
    pub fn new(label: &str, scale: Scale) -> Axis {
        Axis { label: label.into(), scale }
    }

    fn place(&self, value: f64) -> f64 {
        if self.scale == Scale::Log { value.log10() } else { value }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Mark {
    Line,
    Dots,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Series of one name share a colour and a line of the legend.
    pub name: String,
    pub mark: Mark,
    pub points: Vec<(f64, f64)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
}

/// From data to pixels along one axis.
struct Range {
    low: f64,
    high: f64,
}

impl Range {
    fn of(axis: &Axis, values: impl Iterator<Item = f64>) -> Range {
        let placed = values.map(|v| axis.place(v)).filter(|v| v.is_finite());
        let (low, high) = placed.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let margin = if high > low { 0.05 * (high - low) } else { 0.5 };
        if low.is_finite() { Range { low: low - margin, high: high + margin } } else { Range { low: 0.0, high: 1.0 } }
    }

    fn share(&self, placed: f64) -> f64 {
        (placed - self.low) / (self.high - self.low)
    }

    /// Places of ticks and what stands beside them.
    fn ticks(&self, axis: &Axis) -> Vec<(f64, String)> {
        let raw = (self.high - self.low) / TICKS;
        let decade = 10f64.powf(raw.log10().floor());
        let mut step = [1.0, 2.0, 5.0, 10.0].map(|m| m * decade).into_iter().find(|s| *s >= raw).unwrap_or(raw);
        if axis.scale == Scale::Log && step > 0.5 {
            step = step.ceil();
        }
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        (first..=last)
            .map(|i| {
                let placed = i as f64 * step;
                let value = if axis.scale == Scale::Log { 10f64.powf(placed) } else { placed };
                (placed, short_number(value))
            })
            .collect()
    }
}

impl Plot {
    pub fn render(&self) -> String {
        let all = || self.series.iter().flat_map(|s| s.points.iter());
        let x = Range::of(&self.x, all().map(|p| p.0));
        let y = Range::of(&self.y, all().map(|p| p.1));
        let (inner_width, inner_height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
        let to_x = |placed: f64| LEFT + inner_width * x.share(placed);
        let to_y = |placed: f64| TOP + inner_height * (1.0 - y.share(placed));
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
             <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>\n",
            escaped(&self.title)
        );
        // Writing to a string does not fail.
        let mut line = |text: String| {
            let _ = writeln!(out, "{text}");
        };
        let bottom = TOP + inner_height;
        for (placed, text) in x.ticks(&self.x) {
            let at = to_x(placed);
            line(format!("<path d=\"M{at:.1} {TOP}V{bottom}\" stroke=\"#ddd\"/>"));
            line(format!("<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>", bottom + 18.0));
        }
        for (placed, text) in y.ticks(&self.y) {
            let at = to_y(placed);
            line(format!("<path d=\"M{LEFT} {at:.1}H{}\" stroke=\"#ddd\"/>", LEFT + inner_width));
            line(format!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>", LEFT - 8.0, at + 4.0));
        }
        let middle = LEFT + inner_width / 2.0;
        line(format!(
            "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 14.0,
            escaped(&self.x.label)
        ));
        let middle = TOP + inner_height / 2.0;
        line(format!(
            "<text x=\"18\" y=\"{middle}\" text-anchor=\"middle\" transform=\"rotate(-90 18 {middle})\">{}</text>",
            escaped(&self.y.label)
        ));
        let mut names: Vec<&str> = Vec::new();
        for series in &self.series {
            let number = names.iter().position(|n| *n == series.name).unwrap_or_else(|| {
                names.push(&series.name);
                names.len() - 1
            });
            let color = COLORS[number % COLORS.len()];
            let places = series.points.iter().map(|(px, py)| (to_x(self.x.place(*px)), to_y(self.y.place(*py))));
            let places: Vec<(f64, f64)> = places.filter(|(a, b)| a.is_finite() && b.is_finite()).collect();
            match series.mark {
                Mark::Line => {
                    let path: Vec<String> = places.iter().map(|(a, b)| format!("{a:.1},{b:.1}")).collect();
                    line(format!(
                        "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"/>",
                        path.join(" ")
                    ));
                }
                Mark::Dots => {
                    for (a, b) in places {
                        line(format!("<circle cx=\"{a:.1}\" cy=\"{b:.1}\" r=\"3.5\" fill=\"{color}\"/>"));
                    }
                }
            }
        }
        for (i, name) in names.iter().enumerate() {
            let (at_x, at_y) = (WIDTH - RIGHT + 14.0, TOP + 12.0 + 18.0 * i as f64);
            let color = COLORS[i % COLORS.len()];
            line(format!("<rect x=\"{at_x}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"{color}\"/>", at_y - 9.0));
            line(format!("<text x=\"{}\" y=\"{at_y}\">{}</text>", at_x + 16.0, escaped(name)));
        }
        out.push_str("</svg>\n");
        out
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(points: Vec<(f64, f64)>) -> String {
        let series = vec![
            Series { name: "seen & <named>".into(), mark: Mark::Dots, points: points.clone() },
            Series { name: "law".into(), mark: Mark::Line, points },
        ];
        let (x, y) = (Axis::new("operations", Scale::Log), Axis::new("loss", Scale::Linear));
        Plot { title: "a \"plot\"".into(), x, y, series }.render()
    }

    #[test]
    fn points_lie_within_the_axes_and_names_are_escaped() {
        let svg = plot(vec![(1e12, 3.0), (1e14, 2.0), (1e13, 2.5)]);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("seen &amp; &lt;named&gt;") && svg.contains("a &quot;plot&quot;"), "{svg}");
        assert!(svg.contains(">1e13<") && svg.contains(">2.4<"), "{svg}");
        // The one in the middle of both ranges is in the middle of the picture.
        let (x, y) = (LEFT + (WIDTH - LEFT - RIGHT) / 2.0, TOP + (HEIGHT - TOP - BOTTOM) / 2.0);
        assert!(svg.contains(&format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\"")), "{svg}");
    }

    #[test]
    fn what_is_no_number_and_no_points_at_all_are_no_trouble() {
        assert_eq!(plot(vec![(1e12, f64::NAN), (0.0, 1.0), (1e13, 2.0)]).matches("<circle").count(), 1);
        assert!(plot(Vec::new()).ends_with("</svg>\n"));
    }
}
