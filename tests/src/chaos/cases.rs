//! Every case, by what goes wrong.

mod hosts;

use super::Case;

/// Every case, in the order of the table.
pub fn all() -> Vec<Case> {
    [hosts::CASES].concat()
}
