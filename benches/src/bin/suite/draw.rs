//! Figures, of panels of bars or of lines, as SVG. Everything is placed in pixels here: names, figures and labels have places of their own, where nothing overlaps.

use iron_exec_benches::Result;
use iron_exec_benches::results::digits;
use plotters::backend::SVGBackend;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontDesc, FontFamily, FontStyle, RGBColor};

const WIDTH: i32 = 1000;
const MARGIN: i32 = 20;
const TITLE_HEIGHT: i32 = 70;
const FOOT_HEIGHT: i32 = 52;
/// Of a row of bars.
const BAR_STEP: i32 = 24;
/// Of a panel of lines, between its title and its axis.
const LINES_HEIGHT: i32 = 300;
/// Between panels.
const GAP: i32 = 24;
/// Between the labels of two lines.
const LABEL_STEP: i32 = 18;

const TEXT_SIZE: i32 = 14;
const SMALL_SIZE: i32 = 13;
/// What a sans-serif letter is wide at most times, of its size.
const LETTER_WIDTH: f64 = 0.57;
/// The same of a bold one.
const BOLD_LETTER_WIDTH: f64 = 0.65;
/// Spreads that are narrower would be a blot.
const SPREAD_MIN: i32 = 5;
/// The size that is written into the SVG is so much smaller than that which the library is given.
const SIZE_FACTOR: f64 = 1.24;

const INK: RGBColor = RGBColor(0x1f, 0x23, 0x28);
const FAINT: RGBColor = RGBColor(0x59, 0x63, 0x6e);
const GRID: RGBColor = RGBColor(0xe1, 0xe4, 0xe8);
const WHITE: RGBColor = RGBColor(0xff, 0xff, 0xff);
const OURS: RGBColor = RGBColor(0x09, 0x69, 0xda);
/// Of several of ours that have to be told from each other.
const OURS_EACH: [RGBColor; 3] = [OURS, RGBColor(0x0a, 0x30, 0x69), RGBColor(0x3f, 0xa0, 0xf5)];
const FLOOR: RGBColor = RGBColor(0x6e, 0x77, 0x81);
const PEER: RGBColor = RGBColor(0xe0, 0x8a, 0x3c);
/// Of peers that have to be told from each other.
const PEERS: [RGBColor; 7] = [
    RGBColor(0xd1, 0x24, 0x2f),
    RGBColor(0x1a, 0x7f, 0x37),
    RGBColor(0x82, 0x50, 0xdf),
    RGBColor(0xbc, 0x6c, 0x00),
    RGBColor(0xbf, 0x39, 0x89),
    RGBColor(0x0f, 0x7b, 0x8a),
    RGBColor(0x6b, 0x4f, 0x3a),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// One file: panels in rows.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) title: String,
    /// What is better, and what else has to be known.
    pub(crate) subtitle: String,
    pub(crate) rows: Vec<Row>,
}

/// Panels side by side.
#[derive(Debug)]
pub(crate) enum Row {
    Bars(Bars),
    Lines(Vec<LinePanel>),
}

/// A panel for each column of a table, with a bar for each of its rows.
#[derive(Debug)]
pub(crate) struct Bars {
    pub(crate) title: String,
    pub(crate) names: Vec<String>,
    pub(crate) panels: Vec<BarPanel>,
    /// Whether all panels have the same unit, and so the same scale.
    pub(crate) is_common: bool,
}

/// Bars for all names.
#[derive(Debug)]
pub(crate) struct BarPanel {
    pub(crate) title: String,
    pub(crate) axis: Axis,
    /// For each name the median, the least and the most; `None` if nothing was measured.
    pub(crate) bars: Vec<Option<[f64; 3]>>,
}

/// An axis of figures.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    /// The unit.
    pub(crate) label: String,
    pub(crate) is_log: bool,
}

/// A panel of lines over numbers.
#[derive(Debug)]
pub(crate) struct LinePanel {
    pub(crate) title: String,
    /// What was measured at, and how that is written.
    pub(crate) points: Vec<(f64, String)>,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) lines: Vec<Line>,
}

/// One contender's.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    /// For each point; `None` if nothing was measured.
    pub(crate) values: Vec<Option<f64>>,
}

impl Figure {
    /// As SVG.
    pub(crate) fn svg(&self) -> Result<String> {
        let height = TITLE_HEIGHT + self.rows.iter().map(Row::height).sum::<i32>() + MARGIN / 2;
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (WIDTH.unsigned_abs(), height.unsigned_abs())).into_drawing_area();
            self.draw(&area).and_then(|()| Ok(area.present()?)).map_err(|error| format!("{}: {error}", self.title))?;
        }
        Ok(svg)
    }

    fn draw(&self, area: &Area) -> Result<()> {
        area.fill(&WHITE)?;
        Label::new(&self.title, INK).size(20).bold().at(area, (MARGIN, 24))?;
        Label::new(&self.subtitle, FAINT).at(area, (MARGIN, 49))?;
        let mut top = TITLE_HEIGHT;
        for row in &self.rows {
            match row {
                Row::Bars(bars) => bars.draw(area, top)?,
                Row::Lines(panels) => {
                    let width = (WIDTH - 2 * MARGIN + GAP) / panels.len().max(1) as i32;
                    for (index, panel) in panels.iter().enumerate() {
                        let left = MARGIN + index as i32 * width;
                        panel.draw(area, (left, left + width - GAP), top)?;
                    }
                }
            }
            top += row.height();
        }
        Ok(())
    }
}

impl Row {
    fn height(&self) -> i32 {
        match self {
            Self::Bars(bars) => 30 + 24 + bars.names.len() as i32 * BAR_STEP + FOOT_HEIGHT,
            Self::Lines(_) => 30 + LINES_HEIGHT + FOOT_HEIGHT + 10,
        }
    }
}

impl Bars {
    fn draw(&self, area: &Area, top: i32) -> Result<()> {
        Label::new(&self.title, INK).bold().at(area, (MARGIN, top + 10))?;
        let names_width = self.names.iter().map(|name| name_width(name)).max().unwrap_or_default() + 10;
        let (first, last) = (top + 54, top + 54 + self.names.len() as i32 * BAR_STEP);
        for (index, name) in self.names.iter().enumerate() {
            let y = first + index as i32 * BAR_STEP + BAR_STEP / 2;
            let label = Label::new(name, INK).right();
            if is_ours(name) { label.bold() } else { label }.at(area, (MARGIN + names_width - 10, y))?;
        }
        let step = (WIDTH - 2 * MARGIN - names_width + GAP) / self.panels.len().max(1) as i32;
        for (index, panel) in self.panels.iter().enumerate() {
            let left = MARGIN + names_width + index as i32 * step;
            let all = if self.is_common { &self.panels[..] } else { std::slice::from_ref(panel) };
            panel.draw(area, &self.names, all, (left, left + step - GAP), (first, last))?;
        }
        Ok(())
    }
}

impl BarPanel {
    /// Draws it with the scale of all those.
    fn draw(&self, area: &Area, names: &[String], all: &[Self], (left, right): (i32, i32), (first, last): (i32, i32)) -> Result<()> {
        Label::new(&self.title, INK).at(area, (left, first - 16))?;
        let measured = || all.iter().flat_map(|panel| &panel.bars).flatten();
        // What stands behind the longest bar.
        let spare = measured().map(|[middle, ..]| width(&figure(*middle), SMALL_SIZE)).max().unwrap_or_default() + 10;
        let values: Vec<f64> = measured().flatten().copied().collect();
        let scale = Scale::new(&values, self.axis.is_log, (left, right - spare));
        scale.draw_across(area, (first, last), &self.axis.label, right)?;
        for (index, (bar, name)) in self.bars.iter().zip(names).enumerate() {
            let y = first + index as i32 * BAR_STEP + BAR_STEP / 2;
            let Some([middle, least, most]) = *bar else {
                Label::new("not measured", FAINT).size(SMALL_SIZE).at(area, (left + 6, y))?;
                continue;
            };
            let end = scale.place(middle);
            area.draw(&Rectangle::new([(left, y - 8), (end, y + 8)], colour(name).filled()))?;
            let (least, most) = (scale.place(least), scale.place(most));
            if most - least >= SPREAD_MIN {
                area.draw(&PathElement::new(vec![(least, y), (most, y)], INK.stroke_width(1)))?;
                for x in [least, most] {
                    area.draw(&PathElement::new(vec![(x, y - 4), (x, y + 4)], INK.stroke_width(1)))?;
                }
            }
            Label::new(&figure(middle), INK).size(SMALL_SIZE).at(area, (end.max(most) + 6, y))?;
        }
        area.draw(&PathElement::new(vec![(left, first), (left, last)], FAINT.stroke_width(1)))?;
        Ok(())
    }
}

impl LinePanel {
    fn draw(&self, area: &Area, (left, right): (i32, i32), top: i32) -> Result<()> {
        Label::new(&self.title, INK).bold().at(area, (left, top + 10))?;
        let (first, last) = (top + 46, top + 30 + LINES_HEIGHT);
        let names_width = self.lines.iter().map(|line| name_width(&line.name)).max().unwrap_or_default() + 26;
        let values: Vec<f64> = self.lines.iter().flat_map(|line| &line.values).flatten().copied().collect();
        let y = Scale::new(&values, self.y.is_log, (last, first + 6));
        let inner = (left + 58, right - names_width);
        y.draw_up(area, inner, &self.y.label, (left, first - 15))?;
        let xs: Vec<f64> = self.points.iter().map(|(x, _)| *x).collect();
        let x = Scale::exactly(&xs, self.x.is_log, (inner.0 + 16, inner.1 - 8));
        for (at, text) in &self.points {
            let at = x.place(*at);
            area.draw(&PathElement::new(vec![(at, last), (at, last + 5)], FAINT.stroke_width(1)))?;
            Label::new(text, FAINT).size(SMALL_SIZE).middle().at(area, (at, last + 15))?;
        }
        area.draw(&PathElement::new(vec![(inner.0, last), (inner.1, last)], FAINT.stroke_width(1)))?;
        // It may be longer than its axis, but not than its panel.
        let half = width(&self.x.label, SMALL_SIZE) / 2;
        let middle = i32::midpoint(inner.0, inner.1).min(right - half).max(left + half);
        Label::new(&self.x.label, INK).size(SMALL_SIZE).middle().at(area, (middle, last + 36))?;

        let colours = colours(&self.lines);
        let mut labels = Vec::new();
        // Ours is above all others.
        let mut order: Vec<usize> = (0..self.lines.len()).collect();
        order.sort_by_key(|line| is_ours(&self.lines[*line].name));
        for index in order {
            let line = &self.lines[index];
            let points: Vec<(i32, i32)> =
                xs.iter().zip(&line.values).filter_map(|(at, value)| Some((x.place(*at), y.place((*value)?)))).collect();
            let Some(end) = points.last().copied() else { continue };
            let stroke = if is_ours(&line.name) { 4 } else { 2 };
            area.draw(&PathElement::new(points.clone(), colours[index].stroke_width(stroke)))?;
            for point in points {
                area.draw(&Circle::new(point, stroke + 1, colours[index].filled()))?;
            }
            labels.push((end, index));
        }
        for ((end, index), at) in placed(labels, (first, last)) {
            let (x, colour, name) = (inner.1, colours[index], &self.lines[index].name);
            area.draw(&PathElement::new(vec![(end.0 + 6, end.1), (x + 4, at), (x + 10, at)], colour.stroke_width(1)))?;
            let label = Label::new(name, colour);
            if is_ours(name) { label.bold() } else { label }.at(area, (x + 14, at))?;
        }
        Ok(())
    }
}

type End = ((i32, i32), usize);

/// Labels of lines' ends, moved up and down until none covers another.
fn placed(mut ends: Vec<End>, (first, last): (i32, i32)) -> Vec<(End, i32)> {
    ends.sort_by_key(|(end, _)| end.1);
    let mut places: Vec<i32> = ends.iter().map(|(end, _)| end.1).collect();
    // Groups of those that would cover each other share the way that they have to go.
    for _ in 0..100 {
        for at in 1..places.len() {
            let lack = LABEL_STEP - (places[at] - places[at - 1]);
            if lack > 0 {
                places[at - 1] -= lack / 2;
                places[at] += lack - lack / 2;
            }
        }
    }
    let mut floor = first - LABEL_STEP / 2;
    for place in &mut places {
        *place = (*place).max(floor);
        floor = *place + LABEL_STEP;
    }
    let mut ceiling = last;
    for place in places.iter_mut().rev() {
        *place = (*place).min(ceiling);
        ceiling = *place - LABEL_STEP;
    }
    ends.into_iter().zip(places).collect()
}

fn is_ours(name: &str) -> bool {
    name.starts_with("iron-exec")
}

fn colour(name: &str) -> RGBColor {
    match name {
        name if is_ours(name) => OURS,
        name if name.starts_with("floor") => FLOOR,
        _ => PEER,
    }
}

/// As [`colour`], but each has one of its own.
fn colours(lines: &[Line]) -> Vec<RGBColor> {
    let (mut ours, mut peers) = (OURS_EACH.iter().cycle(), PEERS.iter().cycle());
    let of = |line: &Line| match colour(&line.name) {
        OURS => ours.next().copied().unwrap_or(OURS),
        PEER => peers.next().copied().unwrap_or(PEER),
        other => other,
    };
    lines.iter().map(of).collect()
}

/// From figures to pixels.
#[derive(Debug)]
struct Scale {
    from: f64,
    to: f64,
    is_log: bool,
    pixels: (i32, i32),
}

impl Scale {
    /// With a little room around the values. If it is not logarithmic it begins at 0.
    fn new(values: &[f64], is_log: bool, pixels: (i32, i32)) -> Self {
        let most = values.iter().copied().fold(0.0, f64::max);
        let least = values.iter().copied().filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
        match () {
            () if most <= 0.0 => Self { from: if is_log { 0.1 } else { 0.0 }, to: 1.0, is_log, pixels },
            () if is_log => Self { from: round_down(least / 1.3), to: most * 1.2, is_log, pixels },
            () => Self { from: 0.0, to: most, is_log, pixels },
        }
    }

    /// From the least of the values to the most.
    fn exactly(values: &[f64], is_log: bool, pixels: (i32, i32)) -> Self {
        let from = values.iter().copied().fold(f64::INFINITY, f64::min);
        let to = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Self { from, to, is_log, pixels }
    }

    fn place(&self, value: f64) -> i32 {
        let share = if self.is_log {
            (value.max(self.from) / self.from).log10() / (self.to / self.from).log10()
        } else {
            (value - self.from) / (self.to - self.from)
        };
        let (begin, end) = (f64::from(self.pixels.0), f64::from(self.pixels.1));
        let share = if share.is_finite() { share } else { 0.5 };
        (begin + share * (end - begin)).round() as i32
    }

    /// Round figures to mark, at most so many.
    fn ticks(&self, count_max: i32) -> Vec<f64> {
        let mut ticks = Vec::new();
        if self.is_log {
            let decades = self.from.log10().floor() as i32..=self.to.log10().ceil() as i32;
            // The fewer decades, the more of each.
            for steps in [&[1.0, 2.0, 5.0][..], &[1.0, 3.0], &[1.0]] {
                ticks = decades.clone().flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade))).collect();
                ticks.retain(|tick| (self.from * 0.999..=self.to * 1.001).contains(tick));
                if ticks.len() as i32 <= count_max {
                    return ticks;
                }
            }
            let nth = ticks.len().div_ceil(count_max.max(1) as usize).max(1);
            return ticks.into_iter().step_by(nth).collect();
        }
        let step = round_up((self.to - self.from) / f64::from(count_max.max(1)));
        let mut tick = self.from;
        while step > 0.0 && tick <= self.to * 1.001 {
            ticks.push(tick);
            tick += step;
        }
        ticks
    }

    /// Lines from top to bottom, with the figures and the unit below.
    fn draw_across(&self, area: &Area, (first, last): (i32, i32), unit: &str, right: i32) -> Result<()> {
        let (begin, end) = self.pixels;
        let mut free = i32::MIN;
        for tick in self.ticks(((end - begin) / 38).clamp(1, 8)) {
            let (x, text) = (self.place(tick), figure_round(tick));
            area.draw(&PathElement::new(vec![(x, first), (x, last)], GRID.stroke_width(1)))?;
            let half = width(&text, SMALL_SIZE) / 2;
            if x - half > free {
                Label::new(&text, FAINT).size(SMALL_SIZE).middle().at(area, (x, last + 11))?;
                free = x + half + 4;
            }
        }
        Label::new(unit, INK).size(SMALL_SIZE).middle().at(area, (i32::midpoint(begin, right), last + 29))
    }

    /// Lines from left to right, with the figures beside and the unit above.
    fn draw_up(&self, area: &Area, (left, right): (i32, i32), unit: &str, unit_at: (i32, i32)) -> Result<()> {
        for tick in self.ticks(8) {
            let y = self.place(tick);
            area.draw(&PathElement::new(vec![(left, y), (right, y)], GRID.stroke_width(1)))?;
            Label::new(&figure_round(tick), FAINT).size(SMALL_SIZE).right().at(area, (left - 6, y))?;
        }
        Label::new(unit, INK).size(SMALL_SIZE).at(area, unit_at)
    }
}

/// The next of 1, 2 and 5, times a power of ten.
fn round_up(figure: f64) -> f64 {
    steps(figure).into_iter().find(|step| *step >= figure * (1.0 - 1e-9)).unwrap_or(figure)
}

/// The one of those before.
fn round_down(figure: f64) -> f64 {
    steps(figure).into_iter().rev().find(|step| *step <= figure * (1.0 + 1e-9)).unwrap_or(figure)
}

fn steps(figure: f64) -> [f64; 4] {
    let decade = 10f64.powf(figure.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|step| step * decade)
}

/// In about three digits, with commas: `12,345`.
fn figure(value: f64) -> String {
    commas(&digits(value))
}

/// Without digits that say nothing: `0.5`, `20,000`.
fn figure_round(value: f64) -> String {
    // What has been added up is not exact.
    let value = (value * 1e6).round() / 1e6;
    commas(&value.to_string())
}

fn commas(text: &str) -> String {
    let (whole, fraction) = text.split_once('.').map_or((text, String::new()), |(whole, fraction)| (whole, format!(".{fraction}")));
    let places = whole.len();
    let digit = |(index, digit): (usize, char)| {
        let comma = if index > 0 && (places - index).is_multiple_of(3) { "," } else { "" };
        format!("{comma}{digit}")
    };
    whole.chars().enumerate().map(digit).collect::<String>() + &fraction
}

/// About how wide a text is.
fn width(text: &str, size: i32) -> i32 {
    (f64::from(text.chars().count() as i32 * size) * LETTER_WIDTH).ceil() as i32
}

/// The same of a contender's name.
fn name_width(name: &str) -> i32 {
    let letter = if is_ours(name) { BOLD_LETTER_WIDTH } else { LETTER_WIDTH };
    (f64::from(name.chars().count() as i32 * TEXT_SIZE) * letter).ceil() as i32
}

/// A text that is drawn.
struct Label<'a> {
    text: &'a str,
    colour: RGBColor,
    size: i32,
    style: FontStyle,
    side: HPos,
}

impl<'a> Label<'a> {
    fn new(text: &'a str, colour: RGBColor) -> Self {
        Self { text, colour, size: TEXT_SIZE, style: FontStyle::Normal, side: HPos::Left }
    }

    fn size(self, size: i32) -> Self {
        Self { size, ..self }
    }

    fn bold(self) -> Self {
        Self { style: FontStyle::Bold, ..self }
    }

    /// It ends at its place.
    fn right(self) -> Self {
        Self { side: HPos::Right, ..self }
    }

    fn middle(self) -> Self {
        Self { side: HPos::Center, ..self }
    }

    /// Draws it, its middle at that height.
    fn at(self, area: &Area, place: (i32, i32)) -> Result<()> {
        let font = FontDesc::new(FontFamily::SansSerif, f64::from(self.size) * SIZE_FACTOR, self.style);
        let style = font.color(&self.colour).pos(Pos::new(self.side, VPos::Center));
        Ok(area.draw(&Text::new(self.text, place, style))?)
    }
}

#[cfg(test)]
mod tests {
    use super::{Scale, figure, figure_round, placed, round_down, round_up};

    #[test]
    fn ticks_are_round_and_inside() {
        let linear = Scale { from: 0.0, to: 2.6, is_log: false, pixels: (0, 100) };
        assert_eq!(linear.ticks(6), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]);
        let log = Scale { from: 1.0, to: 1000.0, is_log: true, pixels: (0, 90) };
        assert_eq!(log.ticks(5), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!((log.place(1.0), log.place(10.0), log.place(1000.0)), (0, 30, 90));
    }

    #[test]
    fn figures_are_rounded_and_written_with_commas() {
        assert_eq!([round_down(3.4), round_up(3.4), round_up(0.02)].map(figure_round), ["2", "5", "0.02"]);
        assert_eq!((figure(12_345.6), figure(999.0), figure_round(20_000.0)), ("12,346".into(), "999".into(), "20,000".into()));
        assert_eq!(figure_round(0.1 + 0.2), "0.3");
    }

    #[test]
    fn labels_do_not_cover_each_other() {
        let places: Vec<i32> = placed(vec![((0, 100), 0), ((0, 101), 1), ((0, 99), 2)], (0, 200)).iter().map(|placed| placed.1).collect();
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] >= 17), "{places:?}");
    }
}
