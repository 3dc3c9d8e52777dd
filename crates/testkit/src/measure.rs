//! Numbers for the benchmark: medians of repeated runs.

use std::time::{Duration, Instant};

/// The middle of an odd number of values, the mean of the middle two of an even one.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match (values.len() % 2, values.get(half), values.get(half.wrapping_sub(1))) {
        (1, Some(middle), _) => *middle,
        (_, Some(above), Some(below)) => f64::midpoint(*above, *below),
        _ => f64::NAN,
    }
}

/// How long something takes.
pub fn time(what: impl FnOnce()) -> Duration {
    let began = Instant::now();
    what();
    began.elapsed()
}

/// Milliseconds.
#[must_use]
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    #[test]
    fn medians() {
        assert!((super::median(vec![9.0, 1.0, 5.0]) - 5.0).abs() < 1e-9);
        assert!((super::median(vec![4.0, 1.0, 2.0, 9.0]) - 3.0).abs() < 1e-9);
        assert!(super::median(Vec::new()).is_nan());
    }
}
