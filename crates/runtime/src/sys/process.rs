//! What a process may ask of itself and of others that rustix does not offer.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// The umask. The kernel tells it quickly only to who sets it, so it is set to what it was last seen to be: usually
/// that is what it is, and nothing changes. If it is not, it is set back at once; a file that another thread
/// makes in that moment gets the mask of before the change. (`/proc` would take six microseconds.)
pub fn umask(expected: u32) -> u32 {
    use rustix::fs::Mode;
    let found = rustix::process::umask(Mode::from_bits_truncate(expected));
    if found.bits() != expected {
        rustix::process::umask(found);
    }
    found.bits()
}

/// Blocks every signal in the calling thread: native threads of the engine take none (rule 17).
pub fn block_all_signals() {
    // SAFETY: both sets are local and initialised by sigfillset before use.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
    }
}

/// Sets the calling thread's signal mask to empty and every signal's action to the default (rule 15).
pub fn reset_signals() {
    // SAFETY: the set is local; `signal` with SIG_DFL installs no handler of ours. Real-time signals and
    // the two that can't be changed return an error, which changes nothing.
    unsafe {
        for number in 1..32 {
            libc::signal(number, libc::SIG_DFL);
        }
        // What the interpreter itself ignores at start.
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        empty_mask();
    }
}

/// Blocks SIGCHLD and returns a descriptor that becomes readable when a child ends.
pub fn child_signal_fd() -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: the set is local; the descriptor is fresh, so nobody else owns it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(std::os::fd::OwnedFd::from_raw_fd(fd))
    }
}

/// Sets the calling thread's signal mask to empty.
pub fn empty_mask() {
    // SAFETY: the set is local.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Closes every descriptor from `first` on but those in `keep`.
pub fn close_descriptors(first: RawFd, keep: &[RawFd]) {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd >= first).collect();
    keep.sort_unstable();
    let mut from = first;
    for fd in keep.into_iter().chain([RawFd::MAX]) {
        if from < fd {
            close_range(from, fd - 1);
        }
        from = fd.saturating_add(1);
    }
}

fn close_range(first: RawFd, last: RawFd) {
    // SAFETY: called at the start of a fresh process, before anything that owns a descriptor in the
    // range exists; `close_descriptors` spares those that do.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first as u32, last as u32, 0u32) };
    if done == 0 {
        return;
    }
    // Sandboxes refuse system calls they do not know; the list of open descriptors serves as well.
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open: Vec<RawFd> = open
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| (first..=last).contains(fd)) {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
}

/// User and system time of a living process, all its threads included, in nanoseconds.
pub fn cpu_ns(pid: i32) -> Option<u64> {
    // SAFETY: both out-pointers are to locals, and the second call reads nothing unless the first succeeded.
    unsafe {
        let (mut clock, mut time) = std::mem::zeroed();
        let found = libc::clock_getcpuclockid(pid, &mut clock) == 0
            && libc::clock_gettime(clock, &mut time) == 0;
        found.then(|| time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }
}

/// What `wait4` tells of a child that ended.
#[derive(Clone, Copy, Debug)]
pub struct Reaped {
    /// The child.
    pub pid: i32,
    /// As `waitpid` gives it.
    pub status: i32,
    /// User and system time, in microseconds, its own reaped children included.
    pub cpu_us: u64,
}

/// A child that has ended and still holds its number, because nobody has reaped it.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// The child.
    pub pid: i32,
    /// Whether it ended by itself and with code zero.
    pub well: bool,
}

/// Looks for a child that has ended, without reaping it.
pub fn ended_child() -> Option<Ended> {
    // SAFETY: the out-pointer is to a local, zeroed so that a pid of zero says "none"; the fields read
    // are those that waitid fills in for an exited child.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let failed = libc::waitid(
            libc::P_ALL,
            0,
            &mut info,
            libc::WEXITED | libc::WNOHANG | libc::WNOWAIT,
        );
        let pid = info.si_pid();
        let well = info.si_code == libc::CLD_EXITED && info.si_status() == 0;
        (failed == 0 && pid > 0).then_some(Ended { pid, well })
    }
}

/// Reaps this child, which has ended.
pub fn reap(pid: i32) -> Option<Reaped> {
    let mut status = 0;
    // SAFETY: both out-pointers are to locals of the right type.
    let (pid, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (
            libc::wait4(pid, &mut status, libc::WNOHANG, &mut usage),
            usage,
        )
    };
    let us = |t: libc::timeval| t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64;
    (pid > 0).then(|| Reaped {
        pid,
        status,
        cpu_us: us(usage.ru_utime) + us(usage.ru_stime),
    })
}

/// Takes ownership of descriptors that whoever started this process left under these numbers.
pub fn adopt<const N: usize>(numbers: [RawFd; N]) -> [std::os::fd::OwnedFd; N] {
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: called once, at the start of a program whose contract with its parent is that these
    // descriptors are its own.
    numbers.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

static FORKED: AtomicBool = AtomicBool::new(false);

/// From now on [`forked`] tells whether this process is a fork of the one that called this.
pub fn watch_forks() {
    extern "C" fn in_child() {
        FORKED.store(true, Ordering::Relaxed);
    }
    extern "C" fn before() {
        crate::borrowed::before_fork();
        crate::homes::before_fork();
    }
    // SAFETY: the handler of the child only stores to an atomic, which is all that is allowed in a forked child; the
    // other one runs before the fork, where anything is, and does not panic.
    unsafe { libc::pthread_atfork(Some(before), None, Some(in_child)) };
}

/// Whether this process was forked since [`watch_forks`].
pub fn forked() -> bool {
    FORKED.load(Ordering::Relaxed)
}

/// Ends the process at once: no handlers, no flushing.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}

/// Closes descriptors whose owner is leaked on purpose, in a forked child.
pub fn close_now<const N: usize>(descriptors: [std::os::fd::BorrowedFd<'_>; N]) {
    use std::os::fd::AsRawFd;
    for fd in descriptors {
        // SAFETY: the owner is never dropped (the caller leaks it), so nobody closes it a second time.
        unsafe { libc::close(fd.as_raw_fd()) };
    }
}
