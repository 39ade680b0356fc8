//! Raw futex waits: interruptible by signals (rule 18) and usable between processes.

use rustix::io::Errno;
use rustix::thread::futex;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Waited {
    /// Somebody woke us, or the word had changed already: look again.
    Woken,
    /// The time is over.
    TimedOut,
    /// A signal arrived; its handler may have to run before the wait goes on.
    Interrupted,
}

/// Whether the word is seen by threads of this process only, or through a shared mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Within this process: cheaper.
    Private,
    /// Between processes; never on a private mapping, which is never woken (rule 16).
    Shared,
}

impl Scope {
    fn flags(self) -> futex::Flags {
        match self {
            Scope::Private => futex::Flags::PRIVATE,
            Scope::Shared => futex::Flags::empty(),
        }
    }
}

/// Sleeps while `word` holds `expected`.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>, scope: Scope) -> Waited {
    let timeout = timeout.map(|t| futex::Timespec {
        tv_sec: t.as_secs().min(i64::MAX as u64) as i64,
        tv_nsec: i64::from(t.subsec_nanos()),
    });
    match futex::wait(word, scope.flags(), expected, timeout.as_ref()) {
        Ok(()) | Err(Errno::AGAIN) => Waited::Woken,
        Err(Errno::TIMEDOUT) => Waited::TimedOut,
        Err(Errno::INTR) => Waited::Interrupted,
        // The word lies in memory that is there for as long as we hold it; nothing else can go wrong.
        Err(_) => Waited::Woken,
    }
}

/// Wakes up to `count` sleepers.
pub fn wake(word: &AtomicU32, count: u32, scope: Scope) {
    // The kernel takes the count for a signed number, and wakes one for a negative one.
    let _ = futex::wake(word, scope.flags(), count.min(i32::MAX as u32));
}
