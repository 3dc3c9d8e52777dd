//! What a target begins with: inputs as an honest peer would send them, so that a minute is not spent on finding out the
//! format. Must never overwrite anything else.

use std::path::PathBuf;

/// Where to; nowhere when it is not set.
const VARIABLE: &str = "BANGER_FUZZ_SEEDS";

/// Writes inputs whose first variant is plain bytes, if somebody wants them.
pub fn write(seeds: impl FnOnce() -> Vec<Vec<u8>>) {
    let Some(dir) = std::env::var_os(VARIABLE).map(PathBuf::from) else { return };
    for (n, seed) in seeds().into_iter().enumerate() {
        // `Arbitrary` takes the variant from four bytes: zeros are the first.
        std::fs::write(dir.join(format!("seed-{n}")), [&[0; 4][..], &seed].concat()).unwrap();
    }
}
