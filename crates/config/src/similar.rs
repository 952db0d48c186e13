//! Which known word a misspelt one was meant to be.

/// Picks the candidate that is fewest single-letter edits away, if it is near enough to be meant:
/// one edit in three letters.
pub(crate) fn closest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    candidates
        .map(|candidate| (distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|(edits, candidate)| *edits <= candidate.len().max(word.len()) / 3)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_a_different_word_is_not() {
        let known = ["l3_ha", "l3_ha_net_cidr", "agent_mode"];
        assert_eq!(closest("l3-ha", known.into_iter()), Some("l3_ha"));
        assert_eq!(closest("agentmode", known.into_iter()), Some("agent_mode"));
        assert_eq!(closest("l3_ha_net_cdir", known.into_iter()), Some("l3_ha_net_cidr"));
        assert_eq!(closest("frobnicate", known.into_iter()), None);
    }
}
