//! Gives the BLAS library of this process its threads back: the template holds it to one (rule 19).

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStringExt;

/// As the distributions, SciPy's own builds and the ones with 64-bit integers name it. All take an `int`.
const SETTERS: [&CStr; 4] = [
    c"openblas_set_num_threads",
    c"openblas_set_num_threads64_",
    c"scipy_openblas_set_num_threads",
    c"scipy_openblas_set_num_threads64_",
];

/// Where OpenBLAS looks for a number, in its order.
const VARIABLES: [&str; 3] = [
    "OPENBLAS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "OMP_NUM_THREADS",
];

/// Lets every OpenBLAS that is loaded use as many threads as it would, had it been loaded just now. Other
/// libraries start their threads when they are first used, and are not held back.
pub fn allow_blas_threads() {
    let Ok(maps) = std::fs::read("/proc/self/maps") else {
        return;
    };
    let mut paths: Vec<&[u8]> = maps
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            line.iter()
                .position(|byte| *byte == b'/')
                .map(|at| &line[at..])
        })
        .filter(|path| path.windows(8).any(|part| part == b"openblas"))
        .collect();
    paths.dedup();
    if paths.is_empty() {
        return;
    }
    let threads = threads_wanted();
    for path in paths {
        if let Ok(path) = CString::new(path) {
            set_threads(&path, threads);
        }
    }
}

fn threads_wanted() -> i32 {
    let set = VARIABLES.iter().find_map(|name| {
        let value = std::env::var_os(name)?.into_vec();
        let digits = value
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        let number = str::from_utf8(&value[..digits]).ok()?.parse().ok()?;
        (number > 0).then_some(number)
    });
    set.unwrap_or_else(|| i32::try_from(crate::CpuBudget::read().affinity).unwrap_or(1))
}

fn set_threads(library: &CStr, threads: i32) {
    // SAFETY: NOLOAD runs no code of the library; what has one of these names in it takes an `int` and returns
    // nothing. The handle is given back after the last use of what was found with it, and the library stays,
    // because whoever loaded it still holds it.
    unsafe {
        let handle = libc::dlopen(library.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY);
        if handle.is_null() {
            return;
        }
        for name in SETTERS {
            let found = libc::dlsym(handle, name.as_ptr());
            if !found.is_null() {
                let set: extern "C" fn(libc::c_int) = std::mem::transmute(found);
                set(threads);
            }
        }
        libc::dlclose(handle);
    }
}
