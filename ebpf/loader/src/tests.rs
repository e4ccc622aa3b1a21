//! Tests on the running kernel. Each makes a BPF file system of its own, and cgroups and namespaces of its own.

mod maps;
mod scratch;

use scratch::Scratch;
