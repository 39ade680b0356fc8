//! What earlier runs have measured: what of it is kept, how it is written down, and when it is believed no more.
//!
//! A [`Book`] is text. Its first line says what it is and where it was written, each other line is a function: its key,
//! when it was written, numbers, and a checksum. Whoever reads it takes it for anybody's: another first line makes it
//! empty, and a line that is not as it should be is left out. The numbers are bounded, so that nothing overflows.

use super::choice::Known;
use super::measured::{LONG_FIRST_NS, Measured, Nature, WORDS};
use std::collections::HashMap;
use std::fmt::Write;
use std::ops::Range;

/// What is remembered counts as so many calls, and as so long a watch, at most.
const CALLS: u64 = 128;
const SEEN_NS: u64 = 64_000_000;

/// What was watched so little says nothing to later runs: as the worker decides that it knows a function. What went to
/// threads before that, and did there what was expected of it, is known as well.
const FEW_CALLS: u64 = 3;
const WATCHED_NS: u64 = 20_000_000;
const MANY_CALLS: u64 = 2_000;
const MANY_CALLS_NS: u64 = 4_000_000;

/// What takes so many times as long as it did, or so small a part, or waits for another share of its time, is another
/// function than the one that is remembered.
const FAR: f64 = 3.0;
const OTHER_SHARE: f64 = 0.4;

/// How many functions are remembered, and the longest line that one makes.
pub const MOST_FUNCTIONS: usize = 512;
const MOST_LINE: usize = 512;

/// No book is longer.
pub const MOST_BYTES: usize = MOST_FUNCTIONS * MOST_LINE;

/// Numbers of a line: when, whether it scales, pickling, size of arguments, and what was measured.
const NUMBERS: usize = 4 + WORDS;

/// What is remembered of a function that has come to its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Past {
    measured: Measured,
    pickle_ns: u64,
    argument_bytes: u64,
    scales: Option<bool>,
}

impl Past {
    /// What later runs are told. None: too little is known.
    pub fn of(known: &Known) -> Option<Past> {
        let measured = &known.in_workers;
        let moved = measured.done > 0 && known.in_threads.done >= FEW_CALLS;
        (moved || is_settled(measured)).then(|| Past {
            measured: lightened(measured),
            pickle_ns: known.pickle_ns.max(0.0) as u64,
            argument_bytes: known.argument_bytes.max(0.0) as u64,
            scales: known.scales,
        })
    }

    /// What is known of a function of which nothing has been measured yet.
    pub fn known(&self) -> Known {
        Known {
            in_workers: self.measured,
            pickle_ns: self.pickle_ns as f64,
            argument_bytes: self.argument_bytes as f64,
            scales: self.scales,
            ..Known::default()
        }
    }

    /// What was measured, as if in so many calls that what is measured now soon weighs as much.
    pub fn measured(&self) -> &Measured {
        &self.measured
    }

    /// Whether nothing of it is needed any more, because enough has been measured now; or it is not to be believed,
    /// because that says something else.
    pub fn is_over(&self, now: &Measured) -> bool {
        if is_settled(now) {
            return true;
        }
        let says_something = now.done >= FEW_CALLS || now.wall_ns >= LONG_FIRST_NS;
        let (Some(then), Some(nature)) = (Nature::of(&self.measured), Nature::of(now)) else {
            return false;
        };
        let far = |a: f64, b: f64| a > b * FAR || b > a * FAR;
        let longer = nature.wall_ns > then.wall_ns * FAR || nature.cpu_ns() > then.cpu_ns() * FAR;
        // Of a call that goes on it is known what it does, and that it takes at least so long.
        let other = (then.wait_share() - nature.wait_share()).abs() > OTHER_SHARE
            || longer
            || now.done > 0 && far(then.wall_ns, nature.wall_ns)
            || now.done > 0 && far(then.cpu_ns(), nature.cpu_ns());
        says_something && other
    }

    fn from_numbers(numbers: &[u64; NUMBERS]) -> Option<Past> {
        let bounded = |number: u64| number.min(1 << 52);
        let words: &[u64; WORDS] = numbers[4..].try_into().ok()?;
        let mut measured = lightened(&Measured::from_words(words));
        measured.done = measured.done.min(measured.begun);
        let ended = measured.done > 0 && measured.wall_ns > 0;
        ended.then_some(Past {
            measured,
            pickle_ns: bounded(numbers[2]),
            argument_bytes: bounded(numbers[3]),
            scales: match numbers[1] {
                0 => Some(false),
                1 => Some(true),
                _ => None,
            },
        })
    }

    fn to_numbers(self, when_s: u64) -> [u64; NUMBERS] {
        let mut numbers = [0; NUMBERS];
        let scales = self.scales.map_or(2, u64::from);
        numbers[..4].copy_from_slice(&[when_s, scales, self.pickle_ns, self.argument_bytes]);
        numbers[4..].copy_from_slice(&self.measured.to_words());
        numbers
    }
}

fn is_settled(measured: &Measured) -> bool {
    let watched_ns = measured.watched_ns();
    measured.done > 0
        && (measured.wall_ns / measured.done >= LONG_FIRST_NS
            || watched_ns >= SEEN_NS
            || measured.done >= FEW_CALLS && watched_ns >= WATCHED_NS
            || measured.done >= MANY_CALLS && measured.wall_ns >= MANY_CALLS_NS)
}

/// The same averages over no more than [`CALLS`] calls and [`SEEN_NS`] of watching.
fn lightened(measured: &Measured) -> Measured {
    let scale = |word: u64, sum: u64, most: u64| {
        if sum <= most {
            return word;
        }
        let scaled = u128::from(word) * u128::from(most) / u128::from(sum);
        u64::try_from(scaled).unwrap_or(u64::MAX)
    };
    let (calls, watched_ns) = (measured.begun, measured.watched_ns());
    let mut words = measured.to_words();
    let (sums, seen) = words.split_at_mut(WORDS - measured.seen_ns.len());
    for word in sums {
        *word = scale(*word, calls, CALLS);
    }
    for word in seen {
        *word = scale(*word, watched_ns, SEEN_NS);
    }
    Measured::from_words(&words)
}

/// A function in a book: 16 bytes, in hexadecimal digits.
pub type Key = [u8; 32];

/// What is put after the last line of a book when a function is to be forgotten, unless it is written down again.
pub fn forgotten(key: &Key) -> Vec<u8> {
    [b"\n", &key[..], b" -\n"].concat()
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Book {
    text: Vec<u8>,
    /// Where the line of each function is. Nobody has looked what it says.
    lines: HashMap<Key, Range<usize>>,
}

impl Book {
    /// What may be anything.
    pub fn read(mut text: Vec<u8>, title: &str) -> Book {
        let mut lines = HashMap::new();
        text.truncate(MOST_BYTES);
        let mut at = 0;
        for (row, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let range = at..at + line.len();
            at = range.end + 1;
            if row == 0 && line != title.as_bytes() {
                return Book::default();
            }
            if row > 0
                && line.len() <= MOST_LINE
                && let Some(key) = line.first_chunk::<32>()
            {
                lines.insert(*key, range);
            }
        }
        Book { text, lines }
    }

    /// What is remembered of a function.
    pub fn find(&self, key: &Key) -> Option<Past> {
        Past::from_numbers(&self.numbers(key)?)
    }

    /// How many functions may be in it.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    fn numbers(&self, key: &Key) -> Option<[u64; NUMBERS]> {
        let line = self.text.get(self.lines.get(key)?.clone())?;
        let line = str::from_utf8(line).ok()?;
        let (told, sum) = line.rsplit_once(' ')?;
        if sum != format!("{:016x}", checksum(told.as_bytes())) {
            return None;
        }
        let mut fields = told.split(' ').skip(1);
        let mut numbers = [0; NUMBERS];
        for number in &mut numbers {
            *number = fields.next()?.parse().ok()?;
        }
        fields.next().is_none().then_some(numbers)
    }

    /// The text of a book with this news in it: what is known now of functions, or that nothing is to be remembered
    /// of them. Those that were written down longest ago go when there are too many.
    pub fn rewritten(&self, title: &str, news: &[(Key, Option<Past>)], now_s: u64) -> Vec<u8> {
        let mut all: HashMap<Key, [u64; NUMBERS]> = HashMap::new();
        for key in self.lines.keys() {
            if is_key(key)
                && let Some(mut numbers) = self.numbers(key)
                && Past::from_numbers(&numbers).is_some()
            {
                // Whoever's clock was wrong does not stay for ever.
                numbers[0] = numbers[0].min(now_s);
                all.insert(*key, numbers);
            }
        }
        for (key, past) in news {
            match past {
                Some(past) => all.insert(*key, past.to_numbers(now_s)),
                None => all.remove(key),
            };
        }
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort_by_key(|(key, numbers)| (u64::MAX - numbers[0], *key));
        all.truncate(MOST_FUNCTIONS);
        let mut text = format!("{title}\n");
        for (key, numbers) in all {
            let mut line = String::from_utf8_lossy(&key).into_owned();
            for number in numbers {
                let _ = write!(line, " {number}");
            }
            let sum = checksum(line.as_bytes());
            let _ = writeln!(text, "{line} {sum:016x}");
        }
        text.into_bytes()
    }
}

fn is_key(key: &Key) -> bool {
    key.iter().all(u8::is_ascii_hexdigit)
}

/// FNV-1a: against accidents, not against anybody.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::Doing;
    use proptest::prelude::*;

    const TITLE: &str = "a title";

    fn waits(calls: u64) -> Known {
        let mut measured = Measured {
            begun: calls,
            done: calls,
            wall_ns: calls * 10_000_000,
            cpu_ns: calls * 100_000,
            ..Measured::default()
        };
        measured.see(Doing::Sleep, calls * 10_000_000);
        Known {
            in_workers: measured,
            pickle_ns: 1_234.5,
            argument_bytes: 77.0,
            scales: Some(true),
            ..Known::default()
        }
    }

    fn key(number: usize) -> Key {
        let digits = format!("{number:032x}");
        *digits.as_bytes().first_chunk().expect("32 digits")
    }

    fn book(entries: &[(Key, Option<Past>)]) -> Vec<u8> {
        Book::default().rewritten(TITLE, entries, 1_000)
    }

    #[test]
    fn what_is_written_is_read() {
        let past = Past::of(&waits(5)).expect("settled");
        let text = book(&[(key(1), Some(past)), (key(2), None)]);
        let read = Book::read(text, TITLE);
        assert_eq!((read.len(), read.find(&key(1))), (1, Some(past)));
        assert_eq!(read.find(&key(2)), None);
        let known = past.known();
        assert_eq!(known.in_workers, waits(5).in_workers);
        assert_eq!((known.pickle_ns, known.scales), (1_234.0, Some(true)));
    }

    #[test]
    fn averages_stay_and_weigh_little() {
        let past = Past::of(&waits(1_000_000)).expect("settled");
        assert_eq!(past.measured().begun, CALLS);
        assert_eq!(past.measured().watched_ns(), SEEN_NS);
        let natures = [waits(1_000_000).in_workers, *past.measured()].map(|m| Nature::of(&m));
        assert_eq!(natures[0], natures[1]);
    }

    #[test]
    fn too_little_is_not_kept() {
        let mut known = waits(1);
        assert_eq!(Past::of(&known), None);
        known.in_threads.done = FEW_CALLS;
        assert!(Past::of(&known).is_some(), "it has gone to threads");
        let mut unended = waits(1_000);
        unended.in_workers.done = 0;
        assert_eq!(Past::of(&unended), None);
    }

    #[test]
    fn it_is_believed_until_something_else_is_measured() {
        let past = Past::of(&waits(10)).expect("settled");
        assert!(!past.is_over(&Measured::default()));
        let mut few = waits(3).in_workers;
        few.seen_ns = few.seen_ns.map(|ns| ns / 2);
        assert!(!past.is_over(&few), "as it was");
        assert!(past.is_over(&waits(3).in_workers), "enough is known now");
        let mut burns = few;
        burns.cpu_ns = burns.wall_ns;
        burns.seen_ns = [0; Doing::ALL.len()];
        burns.see(Doing::Holding, 15_000_000);
        assert!(past.is_over(&burns), "it burns");
        let mut longer = few;
        longer.wall_ns *= 4;
        assert!(past.is_over(&longer), "it takes longer");
        (longer.begun, longer.done) = (1, 0);
        assert!(past.is_over(&longer), "and has not ended");
        (burns.begun, burns.done, burns.wall_ns) = (1, 1, 9_000_000);
        assert!(!past.is_over(&burns), "one short call may be imports");
    }

    #[test]
    fn the_oldest_go_first() {
        let past = Past::of(&waits(10));
        let old: Vec<_> = (0..MOST_FUNCTIONS).map(|at| (key(at), past)).collect();
        let read = Book::read(book(&old), TITLE);
        let text = read.rewritten(TITLE, &[(key(9_999), past)], 2_000);
        assert!(text.len() <= MOST_BYTES);
        let read = Book::read(text, TITLE);
        assert_eq!(read.len(), MOST_FUNCTIONS);
        assert!(read.find(&key(9_999)).is_some() && read.find(&key(0)).is_some());
        assert!(read.find(&key(MOST_FUNCTIONS - 1)).is_none());
    }

    #[test]
    fn what_is_forgotten_may_be_written_again() {
        let past = Past::of(&waits(10));
        let mut text = book(&[(key(1), past), (key(2), past)]);
        text.extend(forgotten(&key(1)));
        let read = Book::read(text, TITLE);
        assert_eq!((read.find(&key(1)), read.find(&key(2))), (None, past));
        let again = Book::read(read.rewritten(TITLE, &[], 1), TITLE);
        assert_eq!((again.len(), again.find(&key(2))), (1, past));
        let again = Book::read(read.rewritten(TITLE, &[(key(1), past)], 1), TITLE);
        assert_eq!((again.len(), again.find(&key(1))), (2, past));
    }

    #[test]
    fn a_foreign_title_makes_it_empty() {
        let text = book(&[(key(1), Past::of(&waits(10)))]);
        assert!(Book::read(text.clone(), "another").is_empty());
        assert!(Book::read(Vec::new(), TITLE).is_empty());
        assert_eq!(Book::read(text, TITLE).len(), 1);
    }

    /// A book whose checksums are right, and whose numbers are anything.
    fn forged(numbers: &[u64]) -> Vec<u8> {
        let digits = key(1);
        let mut line = String::from_utf8_lossy(&digits).into_owned();
        for number in numbers {
            let _ = write!(line, " {number}");
        }
        format!("{TITLE}\n{line} {:016x}\n", checksum(line.as_bytes())).into_bytes()
    }

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), Just(u64::MAX), 0..1_000_u64, any::<u64>()]
    }

    proptest! {
        #[test]
        fn bytes_are_anybodys(bytes in prop::collection::vec(any::<u8>(), 0..2_000), titled: bool) {
            let mut text = if titled { format!("{TITLE}\n").into_bytes() } else { Vec::new() };
            text.extend_from_slice(&bytes);
            let read = Book::read(text, TITLE);
            for at in read.lines.keys() {
                prop_assert_eq!(read.find(at), None);
            }
            read.rewritten(TITLE, &[], 1);
        }

        #[test]
        fn a_cut_or_changed_line_is_left_out(cut in 0..600_usize, at in 0..600_usize, to: u8) {
            let past = Past::of(&waits(10));
            let text = book(&[(key(1), past), (key(2), past)]);
            let mut short = text.clone();
            short.truncate(cut);
            let mut changed = text.clone();
            if let Some(byte) = changed.get_mut(at) {
                *byte = to;
            }
            for text in [short, changed] {
                let read = Book::read(text, TITLE);
                for key in [key(1), key(2)] {
                    let found = read.find(&key);
                    prop_assert!(found.is_none() || found == past);
                }
            }
        }

        #[test]
        fn huge_numbers_never_overflow(
            numbers in prop::collection::vec(number(), NUMBERS..=NUMBERS),
            more in prop::collection::vec(number(), WORDS..=WORDS),
        ) {
            let read = Book::read(forged(&numbers), TITLE);
            if let Some(past) = read.find(&key(1)) {
                let measured = *past.measured();
                prop_assert!(measured.begun <= CALLS && measured.done <= measured.begun);
                let words: [u64; WORDS] = more.try_into().expect("as many");
                let now = Measured::from_words(&words);
                past.is_over(&now);
                let known = Known { in_workers: measured.plus(&now), ..past.known() };
                if let Some(nature) = Nature::of(&known.in_workers) {
                    prop_assert!(nature.wall_ns.is_finite() && nature.wait_ns.is_finite());
                }
                Past::of(&known);
                let again = Book::read(read.rewritten(TITLE, &[], u64::MAX), TITLE);
                prop_assert!(again.find(&key(1)).is_some());
            }
        }
    }
}
