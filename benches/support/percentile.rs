//! What a share of measured values does not exceed.

/// The value that a share of the sorted ones does not exceed (nearest rank): of fewer than a hundred, the 99th percentile is the
/// greatest.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
