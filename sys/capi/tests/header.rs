//! The header in `include/` says what the library does: it is what cbindgen makes of the sources today.

use std::ffi::CStr;
use std::path::Path;

use iron_exec_capi::iron_exec_version;

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

/// What a caller who loads the library compares; the example in C sees to the sizes.
#[test]
fn the_library_says_the_version_of_its_header() {
    // SAFETY: a constant, with a NUL byte at its end.
    let version = unsafe { CStr::from_ptr(iron_exec_version()) }.to_str().unwrap();
    assert!(make_header().contains(&format!("\n#define IRON_EXEC_VERSION \"{version}\"\n")), "{version}");
}

fn make_header() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    // cbindgen has no constants that are strings.
    config.after_includes = config.after_includes.map(|text| text.replace("{version}", env!("CARGO_PKG_VERSION")));
    let mut builder = cbindgen::Builder::new().with_config(config);
    for name in SOURCES {
        builder = builder.with_src(root.join("src").join(name).with_extension("rs"));
    }
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    String::from_utf8(made).unwrap()
}
