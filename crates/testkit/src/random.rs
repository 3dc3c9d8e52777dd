//! Bytes that no compression, echo or default could produce by accident.

/// The next number of a xorshift64* sequence; `state` must not be zero.
fn next(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_F491_4F6C_DD1D)
}

/// `len` bytes, the same for the same seed.
#[must_use]
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        out.extend_from_slice(&next(&mut state).to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Throws that are the same for the same seed.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Dice of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // Small seeds that differ little must not throw alike.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `sides`.
    pub fn below(&mut self, sides: u64) -> u64 {
        (next(&mut self.0) >> 16) % sides.max(1)
    }

    /// One of these.
    pub fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let index = self.below(of.len() as u64);
        &of[usize::try_from(index).unwrap_or_default()]
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_gives_others() {
        assert_eq!(super::bytes(1001, 7), super::bytes(1001, 7));
        assert_ne!(super::bytes(1001, 7), super::bytes(1001, 9));
        assert_eq!(super::bytes(1001, 7).len(), 1001);
    }

    #[test]
    fn dice_throw_every_side_and_the_same_again() {
        let throws = |seed| {
            let mut dice = super::Dice::new(seed);
            (0..60).map(|_| dice.below(6)).collect::<Vec<_>>()
        };
        assert_eq!(throws(4), throws(4));
        assert_ne!(throws(4), throws(5));
        assert!((0..6).all(|side| throws(4).contains(&side)));
    }
}
