//! Which logs of a directory go, beside a model that sorts them all at once; and what an archive reports of them.

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::{Arbitrary, Result, Unstructured};
use iron_exec::fuzzing::{self, PlanBounds, PlanFile, plan_logs};

/// Files in one directory.
const FILES_MAX: usize = 200;

/// Any directory of logs, shown in any order, within any bounds.
///
/// # Panics
///
/// When what goes is not what the model says, or a log goes that is still written.
pub fn retention(data: &[u8]) {
    // That the input ended early is no failure.
    let _ = plan_and_compare(&mut Unstructured::new(data));
}

/// Any report of an archive.
///
/// # Panics
///
/// When a file counts as stored without a line that says so, and only so.
pub fn archive_report(data: &[u8]) {
    let names = ["a_1.log", "b_2.log", "b_2.log.000001"];
    let outcomes = fuzzing::archive_report(data, &names);
    assert_eq!(outcomes.len(), names.len());
    let text = String::from_utf8_lossy(data.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
    for (name, stored) in names.iter().zip(outcomes) {
        let ends_with_name = |line: &&str| line.rsplit('\t').next() == Some(name) && line.contains('\t');
        let about: Vec<&str> = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).filter(ends_with_name).collect();
        if let Some(bytes) = stored {
            let says_so = |line: &&str| {
                let fields: Vec<&str> = line.split('\t').collect();
                fields.len() == 4 && fields[0] == "stored" && fields[1].parse() == Ok(bytes) && fields[2].len() == 64
            };
            assert!(about.iter().any(says_so), "{name}: {text:?}");
            assert!(!about.iter().any(|line| line.starts_with("failed\t") && line.matches('\t').count() >= 2), "{name}: {text:?}");
        }
    }
}

fn plan_and_compare(input: &mut Unstructured<'_>) -> Result<()> {
    let small = |input: &mut Unstructured<'_>, max: u64| input.int_in_range(0..=max);
    let mut optional = |max: u64| if bool::arbitrary(input)? { small(input, max).map(Some) } else { Ok(None) };
    let bounds = PlanBounds { age_max_nanos: optional(300)?, bytes_max: optional(5000)?, logs_max: optional(50)? };
    let now = small(input, 400)?;
    let mut names = BTreeSet::new();
    let mut files = Vec::new();
    while !input.is_empty() && files.len() < FILES_MAX {
        let flags = u8::arbitrary(input)?;
        let file = PlanFile {
            log: small(input, 60)?,
            rotated: (flags & 1 != 0).then_some(1 + small(input, 5)?),
            bytes: small(input, 255)?,
            changed_nanos: small(input, 400)?,
            is_sealed: flags & 0b110 != 0,
            worker_lives: flags & 0b1000 != 0,
        };
        // A name stands in a directory once.
        if names.insert((file.log, file.rotated)) {
            files.push(file);
        }
    }
    let planned = plan_logs(bounds, &files, now);
    assert_eq!(planned, model(bounds, &files, now));
    files.reverse();
    assert_eq!(plan_logs(bounds, &files, now), planned, "the order of the directory changes nothing");
    Ok(())
}

/// All logs at once, sorted.
fn model(bounds: PlanBounds, files: &[PlanFile], now: u64) -> Vec<(u64, u64)> {
    let mut logs: BTreeMap<u64, Vec<&PlanFile>> = BTreeMap::new();
    for file in files {
        logs.entry(file.log).or_default().push(file);
    }
    let (mut bytes, mut count) = (files.iter().map(|file| file.bytes).sum::<u64>(), logs.len() as u64);
    let mut order = Vec::new();
    for (log, files) in logs {
        let newest = files.iter().find(|file| file.rotated.is_none()).map(|file| file.changed_nanos);
        let is_live = files.iter().any(|file| !file.is_sealed && file.worker_lives);
        let may_be_rotating = newest.is_none() && files.iter().any(|file| file.worker_lives);
        if !is_live && !may_be_rotating {
            let changed = newest.unwrap_or_else(|| files.iter().map(|file| file.changed_nanos).max().unwrap_or(0));
            order.push((changed, log, files.iter().map(|file| file.bytes).sum::<u64>()));
        }
    }
    order.sort_unstable();
    let mut gone = Vec::new();
    for (changed, log, its_bytes) in order {
        let is_over = |value: u64, max: Option<u64>| max.is_some_and(|max| value > max);
        let is_old = bounds.age_max_nanos.is_some_and(|max| now.saturating_sub(changed) >= max);
        if !is_old && !is_over(bytes, bounds.bytes_max) && !is_over(count, bounds.logs_max) {
            break;
        }
        bytes -= its_bytes;
        count -= 1;
        gone.push((log, its_bytes));
    }
    gone
}
