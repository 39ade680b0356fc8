//! What the kernel knows of a thread of this process: its CPU time, its waits for a core, what it is doing.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

/// A thread of this process, looked at by another one. Files are kept open: opening one takes longer than all the rest.
#[derive(Debug)]
pub struct Thread {
    clock: libc::clockid_t,
    syscall: Option<File>,
    delays: Option<File>,
    children: Option<File>,
}

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It runs, or would if it had a core.
    Running,
    /// It is in this system call, with these first two arguments.
    Call(i64, [u64; 2]),
}

impl Thread {
    /// The calling thread. `clocks_only`: as if the file that tells system calls could not be read, as is the case in
    /// some containers and after `setuid`.
    pub fn current(clocks_only: bool) -> Thread {
        let id = rustix::thread::gettid().as_raw_nonzero().get();
        let open = |name: &str| File::open(format!("/proc/self/task/{id}/{name}")).ok();
        let mut thread = Thread {
            // As the kernel's `CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED` has it; `pthread_getcpuclockid` does the same.
            clock: (!id << 3) | 6,
            syscall: open("syscall").filter(|_| !clocks_only),
            delays: open("schedstat"),
            children: open("children"),
        };
        // It may open and not be readable.
        if thread.activity().is_none() {
            thread.syscall = None;
        }
        thread
    }

    /// CPU time so far.
    pub fn cpu_ns(&self) -> u64 {
        clock_ns(self.clock)
    }

    /// How long it has waited for a core so far; zero where the kernel does not count that.
    pub fn delay_ns(&self) -> u64 {
        let mut bytes = [0; 96];
        delay_in(read(self.delays.as_ref(), &mut bytes).unwrap_or_default())
    }

    /// What it is doing, where that can be known.
    pub fn activity(&self) -> Option<Activity> {
        let mut bytes = [0; 256];
        let text = read(self.syscall.as_ref(), &mut bytes)?;
        let mut words = text.split_ascii_whitespace();
        let first = words.next()?;
        if first == "running" {
            return Some(Activity::Running);
        }
        let number = first.parse().ok()?;
        let mut argument = || {
            let word = words.next()?.strip_prefix("0x")?;
            u64::from_str_radix(word, 16).ok()
        };
        let arguments = [argument().unwrap_or(0), argument().unwrap_or(0)];
        Some(Activity::Call(number, arguments))
    }

    /// The children that it has started and that are still there.
    pub fn children(&self) -> Vec<i32> {
        let mut bytes = [0; 512];
        let text = read(self.children.as_ref(), &mut bytes).unwrap_or_default();
        let numbers = text.split_ascii_whitespace();
        numbers.filter_map(|number| number.parse().ok()).collect()
    }
}

fn read<'b>(file: Option<&File>, bytes: &'b mut [u8]) -> Option<&'b str> {
    let count = rustix::io::pread(file?.as_fd(), &mut *bytes, 0).ok()?;
    str::from_utf8(&bytes[..count]).ok()
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the out-pointer is to a local. A clock that is not there leaves it as it is.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// CPU time of the calling thread.
pub fn thread_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU time of this process, all its threads included.
pub fn process_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn usage(of: libc::c_int) -> libc::rusage {
    // SAFETY: all zeros is a valid value of the struct, and the out-pointer is to a local.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(of, &mut usage);
        usage
    }
}

/// How often the calling thread has given up its core by itself, to wait for something.
pub fn own_waits() -> u64 {
    usage(libc::RUSAGE_THREAD).ru_nvcsw as u64
}

/// CPU time of the children that have ended and been reaped, theirs included.
pub fn children_cpu_ns() -> u64 {
    let usage = usage(libc::RUSAGE_CHILDREN);
    [usage.ru_utime, usage.ru_stime]
        .iter()
        .map(|time| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1_000)
        .sum()
}

/// How long the calling thread has waited for a core so far, as [`Thread::delay_ns`].
pub fn own_delay_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    delay_in(&text)
}

fn delay_in(schedstat: &str) -> u64 {
    let second = schedstat.split(' ').nth(1);
    second.and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

/// Whether this descriptor of the process is a socket or a pipe.
pub fn is_stream(descriptor: u64) -> io::Result<bool> {
    let target = std::fs::read_link(format!("/proc/self/fd/{descriptor}"))?;
    let target = target.as_os_str().as_encoded_bytes();
    Ok(target.starts_with(b"socket:") || target.starts_with(b"pipe:"))
}

/// What a system call is, as far as somebody cares what a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// Sleeping until a time.
    Sleep,
    /// Waiting for streams.
    Streams,
    /// Reading or writing the descriptor that is its first argument.
    Descriptor,
    /// Waiting for a child.
    Child,
    /// Waiting on a word of memory, its first argument.
    Futex,
    /// Not waiting at all.
    Yield,
    /// Anything else.
    Other,
}

/// Sorts a system call by its number.
pub fn call_kind(number: i64, first: u64) -> CallKind {
    #[cfg(target_arch = "x86_64")]
    match number {
        libc::SYS_select if first == 0 => return CallKind::Sleep,
        libc::SYS_poll | libc::SYS_select | libc::SYS_epoll_wait => return CallKind::Streams,
        _ => {}
    }
    match number {
        libc::SYS_nanosleep | libc::SYS_clock_nanosleep => CallKind::Sleep,
        libc::SYS_pselect6 if first == 0 => CallKind::Sleep,
        libc::SYS_ppoll
        | libc::SYS_pselect6
        | libc::SYS_epoll_pwait
        | libc::SYS_epoll_pwait2
        | libc::SYS_recvfrom
        | libc::SYS_recvmsg
        | libc::SYS_recvmmsg
        | libc::SYS_sendto
        | libc::SYS_sendmsg
        | libc::SYS_accept
        | libc::SYS_accept4
        | libc::SYS_connect => CallKind::Streams,
        libc::SYS_read | libc::SYS_readv | libc::SYS_write | libc::SYS_writev => {
            CallKind::Descriptor
        }
        libc::SYS_wait4 | libc::SYS_waitid => CallKind::Child,
        libc::SYS_futex => CallKind::Futex,
        libc::SYS_sched_yield => CallKind::Yield,
        _ => CallKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    /// A thread that sleeps until it is told to end, and what it is called here.
    fn asleep() -> (Thread, Thread, mpsc::Sender<()>) {
        let (end, ended) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let _ = tell.send((Thread::current(false), Thread::current(true)));
            while ended.try_recv() == Err(mpsc::TryRecvError::Empty) {
                std::thread::sleep(Duration::from_secs(3600).min(Duration::from_millis(50)));
            }
        });
        let (with_file, without) = told.recv().expect("told");
        (with_file, without, end)
    }

    #[test]
    fn another_thread_is_seen_sleeping() {
        let (thread, clocks_only, _end) = asleep();
        let sleeps = |activity| matches!(activity, Some(Activity::Call(number, [first, _])) if call_kind(number, first) == CallKind::Sleep);
        if thread.activity().is_some() {
            while !sleeps(thread.activity()) {
                std::thread::yield_now();
            }
        }
        assert_eq!(clocks_only.activity(), None);
        let (mine, before) = (thread_cpu_ns(), thread.cpu_ns());
        while thread_cpu_ns() - mine < 30_000_000 {}
        assert!(
            thread.cpu_ns() - before < 20_000_000,
            "it does not burn what another thread does"
        );
    }

    #[test]
    fn own_time_is_counted_by_each_clock() {
        let thread = Thread::current(true);
        let before = [thread.cpu_ns(), thread_cpu_ns(), process_cpu_ns()];
        while thread_cpu_ns() - before[1] < 5_000_000 {}
        let after = [thread.cpu_ns(), thread_cpu_ns(), process_cpu_ns()];
        for (before, after) in before.into_iter().zip(after) {
            assert!(after - before >= 4_900_000);
        }
        assert!(thread.children().is_empty());
    }
}
