//! The last of all (cargo runs the files of `tests/` in the order of their names, and `make` this one alone when
//! the others are done): whatever any scenario of this run has left in any place outside the tree, and whose process is
//! gone, is found here.

use banger_testkit::{account, habitat};

#[test]
fn no_scenario_has_left_anything() {
    let left = habitat::left_behind();
    assert!(left.is_empty(), "{}", left.join("\n"));
}

/// `make clean-user`.
#[test]
#[ignore = "not a test: it removes the user whose sandboxes the tests used, as the last thing of a run"]
fn the_suites_user_is_removed() {
    println!("{}", account::remove_of_suite().unwrap());
}
