//! Reads the fuzzer's corpora (`fuzz/corpus`) with the parsers that they are for, as regression tests.

use std::path::Path;

#[path = "../../../fuzz/src/targets.rs"]
mod targets;

#[test]
fn every_corpus_is_read_without_harm() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let mut known: Vec<_> = std::fs::read_dir(&corpora)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    known.sort();
    let named: Vec<&str> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        known, named,
        "each target has its corpus, and each corpus its target"
    );
    for (name, read) in targets::TARGETS {
        let inputs: Vec<_> = std::fs::read_dir(corpora.join(name)).unwrap().collect();
        assert!(!inputs.is_empty(), "{name} has nothing to read");
        for input in inputs {
            read(&std::fs::read(input.unwrap().path()).unwrap());
        }
    }
}
