//! Where what earlier runs have measured is kept: a file of the user's, which may be missing, full of anything, or not
//! to be written. Nothing here fails: what cannot be read is not known, and what cannot be written is not kept.

use rightlane_core::lane::past::{Book, Key, MOST_BYTES, Past, checksum, forgotten};
use rustix::fs::OFlags;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The form of a book; another one has another number.
const FORM: u32 = 1;

/// How many books there may be: for other interpreters, machines and versions.
const MOST_BOOKS: usize = 16;

/// Whoever else writes takes a millisecond. So often, and so long apart, it is seen whether he is done.
const TRIES: u32 = 20;
const APART: Duration = Duration::from_millis(5);

/// What the kernel says of processors begins with their kind.
const MOST_OF_KIND: u64 = 64;

/// A book and its place.
#[derive(Clone, Debug)]
pub struct Shelf {
    directory: PathBuf,
    file: PathBuf,
    title: String,
}

impl Shelf {
    /// The book of this interpreter on this machine, in that directory.
    pub fn new(directory: &Path, interpreter: &str) -> Shelf {
        let version = env!("CARGO_PKG_VERSION");
        let title = format!(
            "rightlane profiles, form {FORM}: version {version}, {interpreter}, {}",
            machine()
        );
        let title = title.replace(['\n', '\r'], " ");
        let name = format!("profiles-{:016x}", checksum(title.as_bytes()));
        Shelf {
            file: directory.join(name),
            directory: directory.to_owned(),
            title,
        }
    }

    /// What is written there; nothing, if that is not a file that this user alone can write.
    pub fn read(&self) -> Book {
        let text = self.open(OpenOptions::new().read(true)).and_then(|file| {
            let mut text = Vec::new();
            let read = file.take(MOST_BYTES as u64).read_to_end(&mut text);
            read.is_ok().then_some(text)
        });
        Book::read(text.unwrap_or_default(), &self.title)
    }

    /// Takes a function out of the book until it is written down again. Whether that was done.
    pub fn forget(&self, key: &Key) -> bool {
        let line = forgotten(key);
        let Some(mut file) = self.open(OpenOptions::new().append(true)) else {
            return false;
        };
        // What lies further on is not read.
        let fits = file
            .metadata()
            .is_ok_and(|about| about.len() + line.len() as u64 <= MOST_BYTES as u64);
        fits && file.write_all(&line).is_ok()
    }

    /// Writes news down, beside what others have written meanwhile. Whether that was done.
    pub fn write(&self, news: &[(Key, Option<Past>)]) -> bool {
        self.try_write(news).is_some()
    }

    fn try_write(&self, news: &[(Key, Option<Past>)]) -> Option<()> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&self.directory).ok()?;
        // Held until it is closed; who dies lets go.
        let _held = self.lock()?;
        let is_new = !self.file.exists();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_s = now.map_or(0, |since| since.as_secs());
        let text = self.read().rewritten(&self.title, news, now_s);
        // Who holds the lock is alone; what is there was left by somebody who died.
        let draft = self.file.with_extension("new");
        let _ = fs::remove_file(&draft);
        let mut options = OpenOptions::new();
        let made = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft);
        let written = made
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&draft, &self.file));
        if written.is_err() {
            let _ = fs::remove_file(&draft);
            return None;
        }
        if is_new {
            self.clear_out();
        }
        Some(())
    }

    /// None: somebody else has it for longer than anybody should. Where files cannot be locked nobody is.
    fn lock(&self) -> Option<File> {
        let directory = File::open(&self.directory).ok()?;
        for attempt in 0..TRIES {
            match directory.try_lock() {
                Err(fs::TryLockError::WouldBlock) if attempt + 1 < TRIES => {
                    std::thread::sleep(APART);
                }
                Err(fs::TryLockError::WouldBlock) => return None,
                Ok(()) | Err(fs::TryLockError::Error(_)) => break,
            }
        }
        Some(directory)
    }

    fn open(&self, options: &mut OpenOptions) -> Option<File> {
        // Whoever put a pipe there would make others wait.
        let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
        let flags = flags.bits() as i32;
        let file = options.custom_flags(flags).open(&self.file).ok()?;
        let about = file.metadata().ok()?;
        let ours = about.uid() == rustix::process::geteuid().as_raw();
        (about.is_file() && ours && about.mode() & 0o022 == 0).then_some(file)
    }

    /// Removes the books that nobody has written in for longest, if there are too many.
    fn clear_out(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        let mut books: Vec<(SystemTime, OsString)> = entries
            .flatten()
            .filter(|entry| {
                entry
                    .file_name()
                    .as_encoded_bytes()
                    .starts_with(b"profiles-")
            })
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.file_name())))
            .collect();
        books.sort();
        let surplus = books.len().saturating_sub(MOST_BOOKS);
        for (_, name) in books.into_iter().take(surplus) {
            let _ = fs::remove_file(self.directory.join(name));
        }
    }
}

/// What tells machines apart on which a function behaves differently: the kind of its processors, and how many of them
/// this process may use. Not from `/proc/cpuinfo`, which measures the clock of each first: 10 ms on some kernels.
fn machine() -> String {
    let mut kind = String::new();
    for file in ["modalias", "cpu0/regs/identification/midr_el1"] {
        let mut text = Vec::new();
        if let Ok(file) = File::open(Path::new("/sys/devices/system/cpu").join(file)) {
            let _ = file.take(MOST_OF_KIND).read_to_end(&mut text);
        }
        let text = String::from_utf8_lossy(&text);
        kind += text.trim().split(":feature").next().unwrap_or_default();
    }
    let cores = crate::cores();
    format!("{} {kind}, {cores} cores", std::env::consts::ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rightlane_core::lane::{Doing, Known, Measured};
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Place(PathBuf);

    impl Place {
        fn new() -> Place {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("rightlane-past-{}-{number}", std::process::id());
            Place(std::env::temp_dir().join(name))
        }

        fn shelf(&self, interpreter: &str) -> Shelf {
            Shelf::new(&self.0.join("rightlane"), interpreter)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn past() -> Option<Past> {
        let mut in_workers = Measured {
            begun: 10,
            done: 10,
            wall_ns: 50_000_000,
            ..Measured::default()
        };
        in_workers.see(Doing::Sleep, 50_000_000);
        Past::of(&Known {
            in_workers,
            ..Known::default()
        })
    }

    fn key(number: usize) -> Key {
        let digits = format!("{number:032x}");
        *digits.as_bytes().first_chunk().expect("32 digits")
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777
    }

    #[test]
    fn a_book_is_private_and_belongs_to_one_interpreter() {
        let place = Place::new();
        let shelf = place.shelf("one");
        assert!(shelf.read().is_empty(), "none yet");
        assert!(!shelf.forget(&key(1)), "nothing to forget it in");
        assert!(shelf.write(&[(key(1), past())]));
        assert_eq!(shelf.read().find(&key(1)), past());
        assert_eq!((mode(&shelf.directory), mode(&shelf.file)), (0o700, 0o600));
        let other = place.shelf("other");
        assert!(other.read().is_empty());
        fs::copy(&shelf.file, &other.file).expect("copied");
        assert!(other.read().is_empty(), "another title");
        assert!(shelf.forget(&key(1)));
        assert_eq!(shelf.read().find(&key(1)), None);
    }

    #[test]
    fn what_is_no_file_of_ours_is_not_read() {
        let place = Place::new();
        let shelf = place.shelf("one");
        assert!(shelf.write(&[(key(1), past())]));
        fs::set_permissions(&shelf.file, fs::Permissions::from_mode(0o666)).expect("changed");
        assert!(shelf.read().is_empty(), "anybody may have written it");
        let aside = shelf.file.with_extension("aside");
        fs::set_permissions(&shelf.file, fs::Permissions::from_mode(0o600)).expect("changed");
        fs::rename(&shelf.file, &aside).expect("moved");
        std::os::unix::fs::symlink(&aside, &shelf.file).expect("linked");
        assert!(shelf.read().is_empty(), "a link");
        fs::remove_file(&shelf.file).expect("removed");
        fs::create_dir(&shelf.file).expect("made");
        assert!(shelf.read().is_empty(), "a directory");
        assert!(!shelf.write(&[(key(1), past())]));
        fs::remove_dir(&shelf.file).expect("removed");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &shelf.file,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .expect("a pipe");
        assert!(shelf.read().is_empty(), "a pipe, and nobody waits for it");
        assert!(shelf.write(&[(key(1), past())]), "it is replaced");
        assert_eq!(shelf.read().len(), 1);
    }

    #[test]
    fn writers_at_once_lose_nothing() {
        let place = Place::new();
        let shelf = place.shelf("one");
        std::thread::scope(|scope| {
            for at in 0..4 {
                let shelf = &shelf;
                scope.spawn(move || {
                    for more in 0..8 {
                        // A test waits for the others as long as it takes.
                        while !shelf.write(&[(key(at * 8 + more), past())]) {}
                    }
                });
            }
        });
        assert_eq!(shelf.read().len(), 32);
    }

    #[test]
    fn whoever_holds_the_lock_for_long_costs_the_news() {
        let place = Place::new();
        let shelf = place.shelf("one");
        assert!(shelf.write(&[(key(1), past())]));
        let held = shelf.lock().expect("nobody has it");
        assert!(!shelf.write(&[(key(2), past())]));
        drop(held);
        assert!(shelf.write(&[(key(2), past())]));
    }

    #[test]
    fn there_are_only_so_many_books() {
        let place = Place::new();
        for at in 0..MOST_BOOKS + 3 {
            assert!(
                place
                    .shelf(&format!("number {at}"))
                    .write(&[(key(1), past())])
            );
        }
        let left = fs::read_dir(place.0.join("rightlane")).expect("there");
        assert_eq!(left.count(), MOST_BOOKS);
    }
}
