//! The host's clock, in figures and in words.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    // A clock before 1970 is as good as one that stands at it.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Writes a time as Neutron's logs do, in UTC: `2026-11-23 00:34:43.123`.
pub fn utc(at_ms: u64) -> String {
    let at = i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.unwrap_or(jiff::Timestamp::MAX).strftime("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_neutron_does() {
        assert_eq!(utc(1_795_394_083_123), "2026-11-23 00:34:43.123");
        assert_eq!(utc(0), "1970-01-01 00:00:00.000");
        assert!(utc(u64::MAX).starts_with("9999"));
    }
}
