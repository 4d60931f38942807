//! Fakes, residue scanner, failpoints: for tests only.
