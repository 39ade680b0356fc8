//! The memory behind a symbol of the program, to look at.

use std::ffi::CStr;
use std::sync::atomic::AtomicU32;

/// At most so much of it: an interpreter's state is below a mebibyte.
const MOST_BYTES: usize = 1 << 20;

/// The words from this symbol on to the end of its segment, or as many as anybody needs. Others write to them: they are
/// for loads only.
pub fn words(name: &CStr) -> Option<&'static [AtomicU32]> {
    // SAFETY: the name ends with a zero; nothing is run and nothing is kept.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) } as usize;
    if found == 0 || !found.is_multiple_of(align_of::<AtomicU32>()) {
        return None;
    }
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut end = found;
    for line in maps.lines() {
        let (from, rest) = line.split_once('-')?;
        let (to, rest) = rest.split_once(' ')?;
        let [from, to] = [from, to].map(|address| usize::from_str_radix(address, 16).ok());
        let readable = rest.starts_with("rw");
        if readable && from? <= end && end < to? {
            end = to?;
        }
    }
    let bytes = (end - found).min(MOST_BYTES);
    // SAFETY: the memory is mapped, readable and writable, and stays: it is the data of an object that holds the symbol
    // that this process runs on. It is aligned, and only ever looked at through atomics here.
    Some(unsafe { std::slice::from_raw_parts(found as *const AtomicU32, bytes / 4) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_symbol_of_the_c_library_is_found() {
        let words = words(c"environ").expect("every program has it");
        assert!(words.len() >= 2);
        assert!(
            words[..2]
                .iter()
                .any(|word| word.load(Ordering::Relaxed) != 0)
        );
    }

    #[test]
    fn there_need_not_be_one() {
        assert!(words(c"rightlane_has_no_such_symbol").is_none());
    }
}
