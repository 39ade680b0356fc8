//! A comparison as text, for people: a table, the sizes that were tried, the verdict.

use crate::compare::{Comparison, Figures, Results, Row};
use crate::host::{Engine, Lane};
use crate::plan::Schedule;
use std::fmt;

const HEAD: [&str; 6] = ["lane", "size", "time", "speed-up", "cores used", "tasks/s"];

/// Delays beyond this part of the serial loop's time are worth a note.
const DELAYED: f64 = 0.05;

/// Writes `comparison`, without a newline at the end.
pub(crate) fn render(comparison: &Comparison, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Comparison {
        name, items, cores, ..
    } = comparison;
    let how = match comparison.schedule {
        Schedule::Passes(1) => "one pass".to_string(),
        Schedule::Passes(passes) => format!("medians of {passes} interleaved passes"),
        Schedule::Blocks(blocks) => format!("one pass in {blocks} interleaved blocks"),
    };
    let items_text = count(*items as f64);
    let (items_word, cores_word) = (plural(*items, "item"), plural(*cores, "core"));
    writeln!(
        f,
        "{name}: {items_text} {items_word}, {cores} {cores_word}, {how}\n"
    )?;
    write_rows(&comparison.rows, f)?;
    writeln!(f)?;
    write_sweep(&comparison.sweep, f)?;
    match &comparison.results {
        Results::Equal { raised: 0 } => writeln!(f, "results: equal in every lane")?,
        Results::Equal { raised } => writeln!(
            f,
            "results: equal in every lane ({} of {items_text} calls raised)",
            count(*raised as f64)
        )?,
        Results::Differ { engine, item } => writeln!(
            f,
            "results: DIFFER: {engine} gave something else than serial for item {item}"
        )?,
    }
    if comparison.delayed > DELAYED {
        let percent = comparison.delayed * 100.0;
        writeln!(
            f,
            "note: other programs kept the serial loop off the cores for {percent:.0} % of its time; \
             on an idle machine the figures may be others"
        )?;
    }
    write!(f, "verdict: {}", comparison.verdict)
}

fn write_rows(rows: &[Row], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut lines: Vec<(Vec<String>, &str)> = vec![(HEAD.map(String::from).to_vec(), "")];
    for row in rows {
        let (lane, size) = match row.engine {
            Engine::Serial => ("serial".to_string(), "–".to_string()),
            Engine::Pool { lane, size } => (lane.name().to_string(), size.to_string()),
        };
        match row.figures {
            Some(figures) => lines.push((cells(lane, size, figures), &row.note)),
            None => lines.push((vec![lane], &row.note)),
        }
    }
    let mut widths = [0; HEAD.len()];
    for (cells, _) in &lines {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for (cells, note) in &lines {
        let mut line = format!("  {:<width$}", cells[0], width = widths[0]);
        for (cell, width) in cells.iter().zip(widths).skip(1) {
            line += &format!("  {cell:>width$}");
        }
        if !note.is_empty() {
            line += &format!("  {note}");
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

fn cells(lane: String, size: String, figures: Figures) -> Vec<String> {
    vec![
        lane,
        size,
        duration(figures.time_s),
        factor(figures.speed_up),
        format!("{:.2}", figures.cores_used),
        count(figures.tasks_per_s),
    ]
}

fn write_sweep(sweep: &[Row], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut head = "tasks/s on a sample: ";
    for wanted in Lane::ALL {
        let tried: Vec<String> = sweep
            .iter()
            .filter_map(|row| match (row.engine, row.figures) {
                (Engine::Pool { lane, size }, Some(figures)) if lane == wanted => {
                    Some(format!("{} by {size}", count(figures.tasks_per_s)))
                }
                _ => None,
            })
            .collect();
        if !tried.is_empty() {
            writeln!(f, "{head}{} {}", wanted.name(), tried.join(", "))?;
            head = "                     ";
        }
    }
    Ok(())
}

fn plural(number: usize, word: &str) -> String {
    if number == 1 {
        word.into()
    } else {
        format!("{word}s")
    }
}

/// Three figures and a unit: `11.9 s`, `85.1 ms`, `940 µs`.
pub fn duration(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s >= 1.0 => (s, "s"),
        s if s >= 1e-3 => (s * 1e3, "ms"),
        s => (s * 1e6, "µs"),
    };
    let decimals = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

/// `0.98×`, `1.94×`, `26×`.
pub fn factor(factor: f64) -> String {
    let decimals = if factor < 9.995 { 2 } else { 0 };
    format!("{factor:.decimals$}×")
}

/// A count with separated thousands; a small rate keeps its figures: `1,790`, `3.27`.
pub fn count(number: f64) -> String {
    if number < 9.995 && number.fract() != 0.0 {
        return format!("{number:.2}");
    }
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_about_three_figures() {
        assert_eq!(duration(11.947), "11.9 s");
        assert_eq!(duration(0.0851), "85.1 ms");
        assert_eq!(duration(0.000_94), "940 µs");
        assert_eq!(duration(0.0), "0.00 µs");
        assert_eq!(factor(1.944), "1.94×");
        assert_eq!(factor(26.4), "26×");
        assert_eq!(count(1_234_567.2), "1,234,567");
        assert_eq!(count(3.271), "3.27");
        assert_eq!(count(999.0), "999");
    }
}
