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

#[cfg(test)]
mod tests {
    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_gives_others() {
        assert_eq!(super::bytes(1001, 7), super::bytes(1001, 7));
        assert_ne!(super::bytes(1001, 7), super::bytes(1001, 9));
        assert_eq!(super::bytes(1001, 7).len(), 1001);
    }
}
