//! The C interface of iron-exec.
