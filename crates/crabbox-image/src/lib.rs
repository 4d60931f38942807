//! Artefacts by digest, clone and grow, seed, build recipes, guest contract.
