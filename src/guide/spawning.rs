//! How a job is started, and why that is safe.
