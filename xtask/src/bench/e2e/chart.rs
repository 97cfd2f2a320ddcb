//! Bar charts as SVG, drawn from the results' JSON: text stays text, and the colours follow the
//! reader's choice of light or dark.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::report;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 140.0;
const RIGHT: f64 = 84.0;
const TOP: f64 = 76.0;
const BAR: f64 = 13.0;
const BETWEEN_BARS: f64 = 2.0;
const BETWEEN_GROUPS: f64 = 12.0;
const BOTTOM: f64 = 34.0;

/// Light and dark; the colours of the series differ in lightness as well.
const STYLE: &str = "<style>
text { font: 12px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 }
.quiet { fill: #59636e }
.paper { fill: #ffffff }
.grid { stroke: #d1d9e0; stroke-width: 1 }
.s0 { fill: #0b5fc0 } .s1 { fill: #e08700 } .s2 { fill: #7a8490 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .quiet { fill: #9198a1 }
  .paper { fill: #0d1117 }
  .grid { stroke: #3d444d }
  .s0 { fill: #58a6ff } .s1 { fill: #f0b24d } .s2 { fill: #8b949e }
}
</style>
";

/// How a length of a bar stands for a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scale {
    /// From 0 to the largest figure.
    Linear,
    /// Decades.
    Logarithmic,
}

/// A chart: for each system one bar of each series.
struct Chart {
    /// Name of its file, without the ending.
    file: &'static str,
    title: &'static str,
    note: &'static str,
    scale: Scale,
    /// Where its figures are in the JSON of a system, and what they are called.
    series: &'static [(&'static str, &'static str)],
    digits: usize,
}

const CHARTS: [Chart; 4] = [
    Chart {
        file: "e2e-tcp",
        title: "TCP throughput, relative to plain forwarding",
        note: "plain forwarding = 1; longer is better",
        scale: Scale::Linear,
        series: &[
            ("/ratio_to_plain/tcp_1_gbps", "1 stream"),
            ("/ratio_to_plain/tcp_4_gbps", "4 streams"),
            ("/ratio_to_plain/tcp_1_off_gbps", "1 stream, offloads off"),
        ],
        digits: 3,
    },
    Chart {
        file: "e2e-udp",
        title: "UDP packets a second with at most 0.5 % loss, relative to plain forwarding",
        note: "plain forwarding = 1; longer is better",
        scale: Scale::Linear,
        series: &[
            ("/ratio_to_plain/udp64_kpps", "64 B of payload"),
            ("/ratio_to_plain/udp1372_kpps", "1372 B of payload"),
        ],
        digits: 3,
    },
    Chart {
        file: "e2e-rtt",
        title: "Round-trip time, 99th percentile",
        note: "µs, logarithmic; shorter is better",
        scale: Scale::Logarithmic,
        series: &[
            ("/rtt_idle_p99_us", "idle"),
            ("/rtt_loaded_p99_us", "beside a TCP stream at full speed"),
        ],
        digits: 0,
    },
    Chart {
        file: "e2e-cpu",
        title: "Processor time of hosts, gateways and kernel, one TCP stream",
        note: "CPU seconds for 10⁹ octets, logarithmic; shorter is better",
        scale: Scale::Logarithmic,
        series: &[
            ("/cpu_s_per_gb", "offloads on"),
            ("/cpu_off_s_per_gb", "offloads off"),
        ],
        digits: 2,
    },
];

/// A drawn chart.
pub struct Drawn {
    /// Name of its file.
    pub file: String,
    /// What it shows.
    pub title: &'static str,
    /// The file's content.
    pub svg: String,
}

/// Draws every chart for which the results have figures.
pub fn draw(results: &Value) -> Result<Vec<Drawn>> {
    let systems = report::systems(results)?;
    ensure!(!systems.is_empty(), "no system was measured");
    CHARTS
        .iter()
        .filter(|chart| {
            let mut figures = systems.iter().flat_map(|system| chart.values(system));
            figures.any(|figure| figure.is_some())
        })
        .map(|chart| {
            Ok(Drawn {
                file: format!("{}.svg", chart.file),
                title: chart.title,
                svg: chart.svg(systems)?,
            })
        })
        .collect()
}

impl Chart {
    fn values(&self, system: &Value) -> Vec<Option<f64>> {
        self.series
            .iter()
            .map(|(pointer, _)| system.pointer(pointer)?.as_f64().filter(|it| *it > 0.0))
            .collect()
    }

    fn svg(&self, systems: &[Value]) -> Result<String> {
        let rows: Vec<(&str, Vec<Option<f64>>)> = systems
            .iter()
            .map(|system| {
                let name = system["name"].as_str().context("a system without a name")?;
                Ok((name, self.values(system)))
            })
            .collect::<Result<_>>()?;
        let figures = || rows.iter().flat_map(|(_, values)| values.iter().flatten());
        let least = figures().copied().fold(f64::INFINITY, f64::min);
        let most = figures().copied().fold(0.0, f64::max);
        let axis = Axis::new(self.scale, least, most);

        let group = self.series.len() as f64 * (BAR + BETWEEN_BARS) - BETWEEN_BARS;
        let bottom = TOP + rows.len() as f64 * (group + BETWEEN_GROUPS);
        let height = bottom + BOTTOM;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">\n\
             <title>{}</title>\n{STYLE}\
             <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\" rx=\"6\"/>\n",
            escaped(self.title),
            escaped(self.title),
        );
        label(&mut out, "title", 16.0, 26.0, "start", self.title)?;
        let mut x = 16.0;
        for (index, (_, name)) in self.series.iter().enumerate() {
            writeln!(
                out,
                "<rect class=\"s{index}\" x=\"{x}\" y=\"40\" width=\"12\" height=\"12\" rx=\"2\"/>"
            )?;
            label(&mut out, "name", x + 17.0, 50.0, "start", name)?;
            // Wide enough for any of these letters.
            x += 17.0 + 7.0 * name.chars().count() as f64 + 18.0;
        }
        for tick in axis.ticks() {
            let x = axis.x(tick);
            writeln!(
                out,
                "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>",
                TOP - 8.0
            )?;
            let text = axis.tick_text(tick);
            label(&mut out, "quiet", x, bottom + 16.0, "middle", &text)?;
        }
        label(&mut out, "quiet", WIDTH - 16.0, 50.0, "end", self.note)?;
        let mut y = TOP;
        for (name, values) in &rows {
            let middle = y + group / 2.0 + 4.0;
            label(&mut out, "name", LEFT - 10.0, middle, "end", name)?;
            for (index, value) in values.iter().enumerate() {
                let Some(value) = value else {
                    label(&mut out, "quiet", LEFT + 6.0, y + 11.0, "start", "–")?;
                    y += BAR + BETWEEN_BARS;
                    continue;
                };
                let end = axis.x(*value);
                writeln!(
                    out,
                    "<rect class=\"s{index}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" rx=\"2\"/>",
                    (end - LEFT).max(1.0)
                )?;
                let text = format!("{value:.*}", self.digits);
                label(&mut out, "value", end + 6.0, y + 11.0, "start", &text)?;
                y += BAR + BETWEEN_BARS;
            }
            y += BETWEEN_GROUPS - BETWEEN_BARS;
        }
        out += "</svg>\n";
        Ok(out)
    }
}

/// From figures to places.
struct Axis {
    scale: Scale,
    /// Figure, or its decade, at the left end.
    from: f64,
    /// At the right end.
    to: f64,
}

impl Axis {
    fn new(scale: Scale, least: f64, most: f64) -> Self {
        let (from, to) = match scale {
            Scale::Linear => (0.0, most.max(1.0)),
            Scale::Logarithmic => {
                let from = least.log10().floor();
                // A bar as long as the least figure must be seen.
                let from = if least.log10() - from < 0.1 {
                    from - 1.0
                } else {
                    from
                };
                (from, most.log10().ceil().max(from + 1.0))
            }
        };
        Self { scale, from, to }
    }

    fn x(&self, figure: f64) -> f64 {
        let place = match self.scale {
            Scale::Linear => figure,
            Scale::Logarithmic => figure.log10(),
        };
        LEFT + (place - self.from) / (self.to - self.from) * (WIDTH - LEFT - RIGHT)
    }

    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let step = if self.to > 2.5 { 1.0 } else { 0.25 };
                (0..=(self.to / step) as u32)
                    .map(|number| f64::from(number) * step)
                    .collect()
            }
            Scale::Logarithmic => (self.from as i32..=self.to as i32)
                .map(|decade| 10f64.powi(decade))
                .collect(),
        }
    }

    fn tick_text(&self, tick: f64) -> String {
        match self.scale {
            Scale::Linear => format!("{tick:.2}"),
            Scale::Logarithmic => format!("{tick}"),
        }
    }
}

fn label(
    out: &mut String,
    class: &str,
    x: f64,
    y: f64,
    anchor: &str,
    text: &str,
) -> std::fmt::Result {
    writeln!(
        out,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escaped(text)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::bench::e2e::report::tests::results;

    /// Checks that tags are closed in order and attributes quoted; gives the names of all elements.
    fn elements(text: &str) -> Vec<String> {
        let (mut open, mut all) = (Vec::new(), Vec::new());
        let mut rest = text;
        while let Some(at) = rest.find('<') {
            assert!(!rest[..at].contains('>'), "a loose > in {}", &rest[..at]);
            let end = at + rest[at..].find('>').expect("a tag that does not end");
            let tag = &rest[at + 1..end];
            rest = &rest[end + 1..];
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name), "closed in order");
                continue;
            }
            assert_eq!(tag.matches('"').count() % 2, 0, "quotes of <{tag}>");
            assert!(!tag.contains('<'), "a loose < in <{tag}>");
            let name = tag.split([' ', '/']).next().unwrap_or(tag).to_owned();
            if !tag.ends_with('/') {
                open.push(name.clone());
            }
            all.push(name);
        }
        assert!(open.is_empty(), "left open: {open:?}");
        all
    }

    #[test]
    fn charts_are_well_formed_and_say_what_they_show() {
        let drawn = draw(&results()).unwrap();
        let files: Vec<&str> = drawn.iter().map(|chart| chart.file.as_str()).collect();
        assert_eq!(
            files,
            ["e2e-tcp.svg", "e2e-udp.svg", "e2e-rtt.svg", "e2e-cpu.svg"]
        );
        for chart in &drawn {
            let all = elements(&chart.svg);
            assert_eq!(all.first().map(String::as_str), Some("svg"));
            for text in ["espada-udp", "plain", "prefers-color-scheme: dark"] {
                assert!(chart.svg.contains(text), "{}: {text}", chart.file);
            }
        }
        // Three bars of two systems, three in the legend, and the paper.
        let bars = elements(&drawn[0].svg);
        assert_eq!(bars.iter().filter(|name| *name == "rect").count(), 10);
        assert!(drawn[0].svg.contains(">0.500</text>"), "{}", drawn[0].svg);
        assert!(drawn[1].svg.contains(">–</text>"), "what was not measured");
    }

    #[test]
    fn names_cannot_break_the_file() {
        let mut results = results();
        results["systems"][1]["name"] = json!("<b> & \"co\"");
        let drawn = draw(&results).unwrap();
        elements(&drawn[0].svg);
        assert!(drawn[0].svg.contains("&lt;b&gt; &amp; &quot;co&quot;"));
        assert!(draw(&json!({"systems": []})).is_err());
        assert!(draw(&json!({})).is_err());
    }

    #[test]
    fn bars_are_as_long_as_the_axis_says() {
        let axis = Axis::new(Scale::Linear, 0.03, 1.0);
        let room = WIDTH - LEFT - RIGHT;
        assert_eq!(axis.x(0.5), LEFT + room / 2.0);
        assert_eq!(axis.ticks(), [0.0, 0.25, 0.5, 0.75, 1.0]);
        let axis = Axis::new(Scale::Logarithmic, 20.0, 9000.0);
        assert_eq!(axis.ticks(), [10.0, 100.0, 1000.0, 10000.0]);
        assert!((axis.x(100.0) - LEFT - room / 3.0).abs() < 1e-9);
        assert_eq!(axis.tick_text(0.1), "0.1");
        // The least figure is not where the axis begins.
        assert!(Axis::new(Scale::Logarithmic, 10.0, 20.0).x(10.0) > LEFT);
    }
}
