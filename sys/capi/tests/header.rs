//! The header in `include/` says what the library does: it is what cbindgen makes of the sources today.

use std::path::Path;

/// The order in which the header tells of things.
const SOURCES: [&str; 8] = ["error", "id", "config", "command", "status", "event", "worker", "stream"];

#[test]
fn the_header_is_the_one_that_the_sources_make() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for name in SOURCES {
        builder = builder.with_src(root.join("src").join(name).with_extension("rs"));
    }
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();

    let path = root.join("include/iron_exec.h");
    if std::env::var_os("IRON_EXEC_BLESS_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let line = made.lines().zip(committed.lines()).position(|(made, committed)| made != committed);
    assert!(
        made == committed,
        "include/iron_exec.h differs from what the sources make, at line {:?}: make it again with\n\
         IRON_EXEC_BLESS_HEADER=1 cargo test -p iron-exec-capi --test header",
        line.map_or_else(|| made.lines().count().min(committed.lines().count()) + 1, |line| line + 1)
    );
}

/// Every exported function is in the header: a source that is missing in the list above would be missed without a word.
#[test]
fn every_function_is_in_the_header() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let header = std::fs::read_to_string(root.join("include/iron_exec.h")).unwrap();
    let mut functions = 0;
    for entry in std::fs::read_dir(root.join("src")).unwrap() {
        let source = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let names = source.split("extern \"C\" fn ").skip(1).map(|rest| rest.split('(').next().unwrap());
        for name in names {
            assert!(header.contains(&format!("{name}(")), "{name} is not in the header");
            functions += 1;
        }
    }
    assert!(functions > 50, "only {functions} functions were found");
}
