//! The program: all of it is in the library.

use std::process::ExitCode;

/// A first sync costs less CPU than with glibc's, and no more memory (see docs/dev/dependencies.md).
#[cfg(target_arch = "x86_64")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    kube_consul::cli::main()
}
