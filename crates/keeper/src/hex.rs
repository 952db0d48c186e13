//! Hexadecimal, in which prepared messages and the claim key travel in JSON.

/// The text is not pairs of hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not hexadecimal: {0}")]
pub struct HexError(&'static str);

/// Reads pairs of hexadecimal digits.
pub fn decode(text: &str) -> Result<Vec<u8>, HexError> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return Err(HexError("an odd number of digits"));
    }
    digits.chunks_exact(2).map(|pair| Ok(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// Writes lower-case hexadecimal.
pub fn encode(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String does not fail
        text
    })
}

fn digit(character: u8) -> Result<u8, HexError> {
    match character {
        b'0'..=b'9' => Ok(character - b'0'),
        b'a'..=b'f' => Ok(character - b'a' + 10),
        b'A'..=b'F' => Ok(character - b'A' + 10),
        _ => Err(HexError("a character that is no digit")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_survives_the_round_trip_and_nothing_else_is_read() {
        assert_eq!(decode("00fFa5").unwrap(), [0, 255, 0xa5]);
        assert_eq!(encode(&[0, 255, 0xa5]), "00ffa5");
        for bad in ["0", "0g", "+1", "é0"] {
            assert!(decode(bad).is_err(), "{bad}");
        }
    }
}
