//! Figures of measurements.

/// Quantile of the values (`q` from 0 to 1), interpolated between neighbours; 0 without values.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let at = last as f64 * q;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    let (low, high) = (sorted.get(low).copied().unwrap_or(0.0), sorted.get(high).copied().unwrap_or(0.0));
    low + (high - low) * at.fract()
}

/// Median of the values; 0 without values.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// p10, p50 and p90 of the values as text, with this number of digits after the point.
pub fn spread(values: &[f64], digits: usize) -> String {
    let at = |q| quantile(values, q);
    format!("p10 {:.digits$}, p50 {:.digits$}, p90 {:.digits$}", at(0.1), at(0.5), at(0.9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_measured_value_or_lies_between_two() {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(near(median(&[1.0, 3.0]), 2.0));
        assert!(near(median(&[5.0, 1.0, 3.0]), 3.0));
        assert!(near(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.9), 4.6));
        assert!(near(quantile(&[1.0, 2.0], 1.0), 2.0));
        assert!(near(quantile(&[], 0.5), 0.0));
    }

    #[test]
    fn a_spread_names_three_quantiles() {
        assert_eq!(spread(&[1.0, 2.0, 3.0], 1), "p10 1.2, p50 2.0, p90 2.8");
    }
}
