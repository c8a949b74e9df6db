//! Samples of a time: what half and nearly all of them are, and a histogram of text.

use std::{fmt, time::Duration};

/// Times, in the order in which they were taken.
#[derive(Clone, Debug, Default)]
pub struct Samples(pub Vec<Duration>);

impl Samples {
    /// The least time that so many hundredths of the samples do not exceed; none without samples.
    pub fn percentile(&self, hundredths: usize) -> Option<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort();
        let rank = (sorted.len() * hundredths).div_ceil(100);
        sorted.get(rank.saturating_sub(1)).copied()
    }

    /// The samples in milliseconds.
    pub fn ms(&self) -> Vec<u64> {
        self.0.iter().map(|sample| u64::try_from(sample.as_millis()).unwrap_or(u64::MAX)).collect()
    }

    /// A line for each step of the histogram, up to the last that has samples.
    pub fn histogram(&self) -> Vec<String> {
        let mut counts: Vec<usize> = Vec::new();
        for sample in &self.0 {
            let at = usize::try_from(sample.as_millis() / STEP.as_millis()).unwrap_or(usize::MAX);
            let at = at.min(STEPS);
            counts.resize(counts.len().max(at + 1), 0);
            counts[at] += 1;
        }
        let most = counts.iter().copied().max().unwrap_or(1);
        let line = |(at, count): (usize, &usize)| {
            let step = |at: usize| at as f64 * STEP.as_secs_f64();
            let to = if at == STEPS { "  ...".to_owned() } else { format!("{:5.2}", step(at + 1)) };
            let bar = "#".repeat((count * WIDTH).div_ceil(most));
            format!("{:5.2} -{to} s {count:>5} {bar}", step(at))
        };
        counts.iter().enumerate().skip_while(|(_, count)| **count == 0).map(line).collect()
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |hundredths| self.percentile(hundredths).map(|time| time.as_secs_f64());
        match (of(0), of(50), of(99), of(100)) {
            (Some(min), Some(p50), Some(p99), Some(max)) => {
                write!(f, "min {min:.2}, p50 {p50:.2}, p99 {p99:.2}, max {max:.2} s")
            }
            _ => f.write_str("none"),
        }
    }
}

const STEP: Duration = Duration::from_millis(100);
/// What takes longer is one step.
const STEPS: usize = 50;
/// The longest bar.
const WIDTH: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples = Samples((1..=200).rev().map(Duration::from_millis).collect());
        let of = |hundredths| samples.percentile(hundredths).unwrap().as_millis();
        assert_eq!([of(0), of(50), of(99), of(100)], [1, 100, 198, 200]);
        assert_eq!(samples.to_string(), "min 0.00, p50 0.10, p99 0.20, max 0.20 s");
        assert_eq!(Samples::default().percentile(50), None);
    }

    #[test]
    fn a_histogram_has_no_steps_before_the_first_and_after_the_last_sample() {
        let samples = Samples([310, 320, 590, 60_000].map(Duration::from_millis).to_vec());
        let lines = samples.histogram();
        assert_eq!(lines.len(), 48);
        assert_eq!(lines[0], format!(" 0.30 - 0.40 s     2 {}", "#".repeat(50)));
        assert_eq!(lines[1], " 0.40 - 0.50 s     0 ");
        assert_eq!(lines[47], format!(" 5.00 -  ... s     1 {}", "#".repeat(25)));
    }
}
