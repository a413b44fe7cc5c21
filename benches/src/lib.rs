//! Benchmarks of iron-exec.
