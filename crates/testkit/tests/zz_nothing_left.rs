//! The last of all (cargo runs the files of `tests/` in the order of their names, and `make` this one alone when
//! the others are done): whatever any scenario of this run has left in any place outside the tree, and whose process is
//! gone, is found here.

use banger_testkit::habitat;

#[test]
fn no_scenario_has_left_anything() {
    let left = habitat::left_behind();
    assert!(left.is_empty(), "{}", left.join("\n"));
}
