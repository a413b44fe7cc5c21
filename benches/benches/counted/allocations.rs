use std::path::Path;
use crate::{Pace, Report, Result};
pub(crate) fn count(_pace: Pace, _directory: &Path, _report: &mut Report) -> Result<()> { Ok(()) }
