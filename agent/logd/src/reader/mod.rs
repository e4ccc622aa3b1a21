//! Reading output files.
