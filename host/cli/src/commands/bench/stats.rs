//! Figures: medians, percentiles, a ratio to a floor, and how they are printed.

use super::super::image::print;
use crate::args::MessageFormat;
use crate::error::CommandError;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// One line of the benchmark.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// What was measured.
    pub(super) name: String,
    /// Its unit.
    pub(super) unit: &'static str,
    /// The median.
    pub(super) median: f64,
    /// The floor's median, in the same unit.
    pub(super) floor: Option<f64>,
    /// Median by floor for times, the same for rates.
    pub(super) ratio: Option<f64>,
    /// What is wanted, for people.
    pub(super) wanted: &'static str,
}

impl Row {
    pub(super) fn new(
        name: &str,
        unit: &'static str,
        median: f64,
        floor: Option<f64>,
        wanted: &'static str,
    ) -> Self {
        let ratio = floor.filter(|floor| *floor > 0.0).map(|floor| median / floor);
        Self { name: name.to_owned(), unit, median, floor, ratio, wanted }
    }

    pub(super) fn to_line(&self) -> String {
        let name = format!("{}, {}", self.name, self.unit);
        let number = |value: f64| match value {
            value if value.abs() >= 100.0 => format!("{value:.0}"),
            value if value.abs() >= 10.0 => format!("{value:.1}"),
            value => format!("{value:.3}"),
        };
        let floor = self.floor.map(number).unwrap_or_default();
        let ratio = self.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let median = number(self.median);
        format!("{name:<50} {median:>9} {floor:>9} {ratio:>7}   {}", self.wanted)
            .trim_end()
            .to_owned()
            + "\n"
    }
}

/// `VmHWM` of proc_pid_status(5), KiB.
pub(super) fn peak_memory(status: &Path) -> Result<f64, CommandError> {
    let text = std::fs::read_to_string(status)?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next()).unwrap_or("0");
    Ok(number.parse()?)
}

/// Where rows were measured, and how often.
#[derive(Debug, Serialize)]
pub(super) struct Setting {
    pub(super) accelerator: &'static str,
    /// QEMU's version.
    pub(super) qemu: String,
    /// The guest's kernel.
    pub(super) kernel: String,
    pub(super) runs: u32,
}

impl Setting {
    /// The rows as a table, or as one object with the fields of `more`.
    pub(super) fn print(
        &self,
        format: MessageFormat,
        more: Value,
        rows: &[Row],
    ) -> Result<u8, CommandError> {
        let Self { accelerator, qemu, kernel, runs } = self;
        if format == MessageFormat::Json {
            let mut all = json!({ "version": 1, "rows": rows });
            for fields in [serde_json::to_value(self)?, more] {
                if let (Some(all), Value::Object(fields)) = (all.as_object_mut(), fields) {
                    all.extend(fields);
                }
            }
            return print(&format!("{all}\n"));
        }
        print(&format!(
            "accelerator {accelerator}, QEMU {qemu}, kernel {kernel}, medians of {runs}\n{}",
            heading(50, 9)
        ))?;
        for row in rows {
            print(&row.to_line())?;
        }
        Ok(0)
    }
}

/// What stands above figures, whose names and numbers are so wide.
pub(super) fn heading(name: usize, number: usize) -> String {
    let (median, floor) = ("MEDIAN", "FLOOR");
    format!("{:<name$} {median:>number$} {floor:>number$} {:>7}   WANTED\n", "FIGURE", "RATIO")
}

/// The value below which this share of the samples is.
pub(super) fn percentile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(index.saturating_sub(1)).copied().unwrap_or_default()
}

pub(super) fn median(samples: &[f64]) -> f64 {
    percentile(samples, 0.5)
}

pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// MB/s of so many bytes in so much time.
pub(super) fn rate(bytes: usize, duration: Duration) -> f64 {
    bytes as f64 / 1e6 / duration.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_hundred() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!((median(&samples), percentile(&samples, 0.99)), (50.0, 99.0));
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn a_row_has_its_ratio() {
        let row = Row::new("ping", "ms", 0.3, Some(0.2), "");
        assert_eq!(row.ratio.map(|ratio| (ratio * 10.0).round()), Some(15.0));
        assert!(row.to_line().contains("0.300     0.200    1.50"));
        assert_eq!(Row::new("x", "ms", 1.0, Some(0.0), "").ratio, None);
    }
}
