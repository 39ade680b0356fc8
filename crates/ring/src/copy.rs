//! Bytes in and out of ring words, one relaxed atomic word at a time.
//!
//! The other side of a ring is another process, which may write where it should not while we read.
//! Plain reads of such memory would be data races; relaxed atomic words make the worst case a wrong
//! value. Bounds are the caller's business: positions are taken modulo the ring.
#![allow(unsafe_code)]

use crate::sync::{AtomicU64, Ordering};

pub(crate) const WORD_BYTES: usize = 8;

/// The words of `data` from position `at`, `words` of them, as the run up to the end and the run
/// that continues at the beginning.
fn runs(data: &[AtomicU64], at: u64, words: usize) -> (&[AtomicU64], &[AtomicU64]) {
    let start = (at & (data.len() as u64 - 1)) as usize;
    let first = words.min(data.len() - start);
    (&data[start..start + first], &data[..words - first])
}

/// Appends the `len_bytes` bytes that begin at word position `at` to `out`.
pub(crate) fn copy_out(data: &[AtomicU64], at: u64, len_bytes: usize, out: &mut Vec<u8>) {
    let words = len_bytes.div_ceil(WORD_BYTES);
    let old_len = out.len();
    out.reserve(words * WORD_BYTES);
    let (first, second) = runs(data, at, words);
    let spare = &mut out.spare_capacity_mut()[..words * WORD_BYTES];
    // A loop per run: one over a chain of both measured slower on large records.
    let (to_first, to_second) = spare.split_at_mut(first.len() * WORD_BYTES);
    for (to, run) in [(to_first, first), (to_second, second)] {
        for (to, word) in to.chunks_exact_mut(WORD_BYTES).zip(run) {
            to.write_copy_of_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
    }
    // SAFETY: the two runs hold `words` words together, so the loop initialised `words * 8` bytes
    // of the spare capacity, and `len_bytes` is at most that.
    unsafe { out.set_len(old_len + len_bytes) };
}

/// Writes `parts`, one after the other, at word position `at`; the last word is filled with zeros.
pub(crate) fn copy_in(data: &[AtomicU64], mut at: u64, parts: &[&[u8]]) {
    // Most records are a few words in one part.
    if let [part] = parts
        && part.len() <= 4 * WORD_BYTES
    {
        let (whole, tail) = part.as_chunks::<WORD_BYTES>();
        for bytes in whole {
            store(data, at, *bytes);
            at += 1;
        }
        if !tail.is_empty() {
            let mut word = [0; WORD_BYTES];
            word[..tail.len()].copy_from_slice(tail);
            store(data, at, word);
        }
        return;
    }
    let mut word = [0; WORD_BYTES];
    let mut filled = 0;
    for &part in parts {
        let mut rest = part;
        if filled > 0 {
            let (fill, after) = rest.split_at(rest.len().min(WORD_BYTES - filled));
            word[filled..filled + fill.len()].copy_from_slice(fill);
            filled += fill.len();
            rest = after;
            if filled < WORD_BYTES {
                continue;
            }
            store(data, at, word);
            at += 1;
        }
        let (whole, tail) = rest.as_chunks::<WORD_BYTES>();
        let (first, second) = runs(data, at, whole.len());
        let (to_first, to_second) = whole.split_at(first.len());
        for (run, whole) in [(first, to_first), (second, to_second)] {
            for (slot, bytes) in run.iter().zip(whole) {
                slot.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
            }
        }
        at += whole.len() as u64;
        word = [0; WORD_BYTES];
        word[..tail.len()].copy_from_slice(tail);
        filled = tail.len();
    }
    if filled > 0 {
        store(data, at, word);
    }
}

fn store(data: &[AtomicU64], at: u64, word: [u8; WORD_BYTES]) {
    data[(at & (data.len() as u64 - 1)) as usize]
        .store(u64::from_ne_bytes(word), Ordering::Relaxed);
}
