//! The header in `include/` says what the library does: it is what cbindgen makes of the sources today.

use std::path::Path;

/// The order in which the header tells of things.
const SOURCES: [&str; 8] = ["error", "id", "config", "command", "status", "event", "worker", "stream"];

#[test]
fn the_header_is_the_one_that_the_sources_make() {
    let made = make_header();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/iron_exec.h");
    if std::env::var_os("IRON_EXEC_BLESS_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let same = made.lines().zip(committed.lines()).take_while(|(made, committed)| made == committed).count();
    assert!(
        made == committed,
        "include/iron_exec.h differs from what the sources make, from line {} on: make it again with\n\
         IRON_EXEC_BLESS_HEADER=1 cargo test -p iron-exec-capi --test header",
        same + 1
    );
}

/// A source that is missing in the list above would be missed without a word.
#[test]
fn every_function_is_in_the_header() {
    let header = make_header();
    let mut functions = 0;
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap() {
        let source = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for rest in source.split("extern \"C\" fn ").skip(1) {
            let name = rest.split('(').next().unwrap();
            assert!(header.contains(&format!("{name}(")), "{name} is not in the header");
            functions += 1;
        }
    }
    assert!(functions > 50, "only {functions} functions were found");
}

fn make_header() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut builder = cbindgen::Builder::new().with_config(cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap());
    for name in SOURCES {
        builder = builder.with_src(root.join("src").join(name).with_extension("rs"));
    }
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    String::from_utf8(made).unwrap()
}
