//! Promise: the floors hold. A module uses only what lies below it, and what lies on its own floor only where the design says so.

use std::fs;
use std::path::{Path, PathBuf};

/// The floor of a module of the library, by the first words of its path inside the crate.
fn floor(module: &str) -> Option<u8> {
    let mut words = module.split("::");
    Some(match words.next()? {
        "model" => 1,
        "logic" => 2,
        "kernel" => 3,
        "control" | "job" | "lent" | "log" | "outputs" | "table" | "log_reader" | "retention" => 4,
        "reactor" => 5,
        "worker" | "builder" | "fuzzing" | "handle" | "adapters" => 6,
        _ => return None,
    })
}

/// Whether two modules of one floor may use each other.
fn may_use_each_other(floor: u8) -> bool {
    // Values name values and logic uses logic; the table holds jobs; the public face is one. Kernel objects do not know each other.
    matches!(floor, 1 | 2 | 4 | 6)
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name() != Some("bin".as_ref()) {
            sources(&path, found);
        } else if path.extension() == Some("rs".as_ref()) {
            found.push(path);
        }
    }
}

/// `kernel::stdio` for `src/kernel/stdio.rs`.
fn module_of(path: &Path, root: &Path) -> String {
    let relative = path.strip_prefix(root).unwrap().with_extension("");
    let words: Vec<_> = relative.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    words.join("::").trim_end_matches("::mod").to_owned()
}

/// Every path into the crate that the code of a file names, tests and comments left out.
fn uses(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let path: String = code[at + 7..].chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | ':')).collect();
        // `use crate::kernel::{process, stdio}` names each of the braces.
        let rest = &code[at + 7 + path.len()..];
        match rest.strip_prefix('{').and_then(|list| list.split_once('}')) {
            Some((list, _)) => found.extend(list.split(',').map(|name| format!("{path}{}", name.trim()))),
            None => found.push(path),
        }
    }
    found
}

#[test]
fn no_import_climbs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 20, "the sources were found");
    let mut checked = 0;
    for file in &files {
        let module = module_of(file, &root);
        let Some(own) = floor(&module) else {
            // The guide is text, and calls nothing.
            assert!(module == "lib" || module.starts_with("guide"), "a module outside the floors: {module}");
            continue;
        };
        for used in uses(&fs::read_to_string(file).unwrap()) {
            // Names re-exported at the root (`crate::BuildError`) are values of the model, but for the loop's own types.
            let Some(other) = floor(&used) else { continue };
            checked += 1;
            assert!(other <= own, "{module} (floor {own}) uses {used} (floor {other})");
            let same_module = used.split("::").take(2).eq(module.split("::").take(2));
            assert!(other < own || same_module || may_use_each_other(own), "{module} uses its sibling {used}");
        }
    }
    assert!(checked > 80, "only {checked} imports were found: does the test still read them?");
}

#[test]
fn unsafe_code_lives_in_sys_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let crate_root = fs::read_to_string(root.join("src/lib.rs")).unwrap();
    assert!(crate_root.contains("#![forbid(unsafe_code)]"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//") && !line.contains("forbid(unsafe_code)"));
        assert!(code.into_iter().all(|line| !line.contains("unsafe ")), "unsafe code in {}", file.display());
    }
}

#[test]
fn the_parser_of_this_test_sees_what_it_must() {
    let text =
        "use crate::kernel::{cgroup, stdio};\nuse crate::model::id::JobId;\n// use crate::worker::Worker;\nfn f() { crate::job::x() }";
    assert_eq!(uses(text), ["kernel::cgroup", "kernel::stdio", "model::id::JobId", "job::x"]);
    assert_eq!(floor("kernel::stdio"), Some(3));
    assert_eq!(floor("JobId"), None);
}
