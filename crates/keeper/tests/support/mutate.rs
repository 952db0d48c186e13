//! Damages bytes as networks and strangers do, the same way at every run.

/// Values at which lengths, counts and flags go wrong.
const EDGES: [u8; 8] = [0, 1, 2, 0x7f, 0x80, 0xfe, 0xff, 0x20];

/// Longest that anything becomes.
const MOST: usize = 2000;

/// A source of decisions (xorshift64), the same for the same seed.
pub(crate) struct Dice(u64);

impl Dice {
    /// Begins anew. Zero would stay zero.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }

    /// Damages a message in one to four places; `others` are what may be mixed into it.
    pub(crate) fn mutate(&mut self, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
        for _ in 0..=self.below(4) {
            self.mutate_once(bytes, others);
        }
        bytes.truncate(MOST);
    }

    fn mutate_once(&mut self, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
        let at = self.below(bytes.len().max(1));
        let end = at + self.below((bytes.len() - at.min(bytes.len())).max(1));
        match (self.below(9), bytes.get_mut(at)) {
            (0 | 1, Some(byte)) => *byte ^= 1 << self.below(8),
            (2 | 3, Some(byte)) => *byte = EDGES[self.below(EDGES.len())],
            (4, Some(byte)) => *byte = self.below(256) as u8,
            (5, Some(_)) => bytes.truncate(at),
            (6, Some(_)) => drop(bytes.drain(at..end)),
            (7, Some(_)) => bytes.extend_from_within(at..end),
            // The beginning of one with the end of another.
            _ => {
                let other = &others[self.below(others.len())];
                bytes.truncate(at);
                bytes.extend(other.iter().skip(at));
            }
        }
    }
}
