//! The template process from the inside: forks workers, reaps them, outlives the engine by as long as
//! it takes to leave nothing behind.
//!
//! It is single-threaded and mostly asleep. Three descriptors wake it: the engine's socket, a pidfd of
//! the engine (not the socket's end: a fork of the user's process may hold that open, rule 13) and a
//! signal descriptor for children that ended. It is ready with as little imported as a first task needs;
//! the rest follows, once, step by step, when nobody asks for anything and the workers leave a core for it; and
//! then what workers came to need. That is rehearsed first, in a child made for it: what an import does to a process shows there, and neither
//! the template nor anybody who wants a worker pays for it (rule 19).

use crate::sys::process::{
    adopt, child_signal_fd, close_descriptors, close_now, cpu_ns, empty_mask, ended_child,
    exit_now, reap, reset_signals,
};
use crate::template::{receive, send};
use crate::wire::{FromTemplate, ToTemplate};
use rightlane_core::Moment;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// What a freshly forked worker starts from.
#[derive(Debug)]
pub struct Seat {
    pub(crate) tasks: OwnedFd,
    pub(crate) answers: OwnedFd,
    pub(crate) keeper: OwnedFd,
    pub(crate) waiter: OwnedFd,
    pub(crate) engine: OwnedFd,
    pub(crate) arenas: Option<Arenas>,
    door: Option<OwnedFd>,
    number: u32,
}

/// The files for large buffers.
#[derive(Debug)]
pub(crate) struct Arenas {
    /// The engine's, for arguments.
    pub(crate) arguments: OwnedFd,
    /// The worker's own, for results, if it has one.
    pub(crate) results: Option<OwnedFd>,
}

impl Seat {
    /// Where this worker knocks when it needs something of the engine's process in the middle of a task. Once.
    pub fn take_door(&mut self) -> Option<OwnedFd> {
        self.door.take()
    }

    /// Which worker of its executor this is, counted from one, in the order in which they were wanted.
    pub fn number(&self) -> u32 {
        self.number
    }
}

/// What the template can't do without its interpreter.
pub trait Interpreter {
    /// Forks, with the interpreter's own hooks: zero in the child, its pid in the parent.
    fn fork(&mut self) -> io::Result<i32>;

    /// Runs `site`; false if that left this process unfit to be forked (rule 19).
    fn run_site(&mut self) -> bool;

    /// Imports something that no worker needs for its first task and most need soon. False: nothing is left.
    fn warm_up(&mut self) -> bool;

    /// Whether a lesson holds nothing that this process has not imported.
    fn knows(&mut self, lesson: &[u8]) -> bool;

    /// Imports what the lesson names; false if that left this process unfit to be forked (rule 19).
    fn learn(&mut self, lesson: &[u8]) -> bool;
}

/// What is to be imported, and how far that has come.
#[derive(Debug)]
struct Lesson {
    id: u32,
    what: Arc<[u8]>,
    rehearsed: bool,
}

/// A child that imports something, to see what comes of it. It is not reaped, so its number is its own.
#[derive(Debug)]
struct Rehearsal {
    pid: Pid,
    lesson: Lesson,
    /// When it is killed; `None` once it was.
    until: Option<Moment>,
}

/// An import may take a second (rule 19). A rehearsal that took longer says so itself, unless it takes for ever.
const REHEARSAL_NS: u64 = 1_250_000_000;

/// How long nothing must be asked of the template before it warms up: whoever makes an executor often
/// wants workers in the next moment, and should not wait for that.
const SETTLED_NS: u64 = 5_000_000;

/// How long the workers are watched, at the least, to say whether they leave a core to others.
const WATCHED_NS: u64 = 4_000_000;

/// Watched less and less often, while they do not.
const MOST_PATIENCE_NS: u64 = 320_000_000;

/// One step a second is taken all the same: it costs about a percent of a core, and a pool that never rests
/// replaces workers, too.
const HURRY_NS: u64 = 1_000_000_000;

/// What the workers do with the cores, as far as the template has to know: its own work can wait.
#[derive(Debug, Default)]
struct Leisure {
    watched_at: Moment,
    ran_ns: u64,
    busy: bool,
    /// The last step, or when there came to be something to do.
    stepped_at: Moment,
}

impl Leisure {
    /// Begins to watch anew.
    fn watch<'a>(&mut self, workers: impl Iterator<Item = &'a i32>) {
        self.watched_at = crate::sys::now();
        self.ran_ns = ran_ns(workers);
    }

    /// Whether there is a core for a step, or it has been put off for long enough.
    fn is_there<'a>(&mut self, workers: impl Iterator<Item = &'a i32>) -> bool {
        let now = crate::sys::now();
        let watched_ns = now.0.saturating_sub(self.watched_at.0);
        if watched_ns >= WATCHED_NS {
            let before_ns = self.ran_ns;
            self.watch(workers);
            self.busy = self.ran_ns.saturating_sub(before_ns) > watched_ns / 10;
        }
        let is_there = !self.busy || now.0.saturating_sub(self.stepped_at.0) >= HURRY_NS;
        if is_there {
            self.stepped_at = now;
        }
        is_there
    }
}

fn ran_ns<'a>(workers: impl Iterator<Item = &'a i32>) -> u64 {
    workers.filter_map(|pid| cpu_ns(*pid)).sum()
}

/// See the module.
#[derive(Debug)]
pub struct Nursery {
    socket: OwnedFd,
    engine: OwnedFd,
    door: OwnedFd,
    children_ended: OwnedFd,
    /// Workers of ours, and of templates before us, by pid.
    workers: HashMap<i32, OwnedFd>,
    lessons: VecDeque<Lesson>,
    rehearsal: Option<Rehearsal>,
    leisure: Leisure,
}

impl Nursery {
    /// Takes up the descriptors 3 (socket), 4 (the engine's pidfd) and 5 (the door) that the engine left, closes
    /// all others, and makes this process a session of its own and a subreaper.
    pub fn open() -> io::Result<Nursery> {
        reset_signals();
        close_descriptors(6, &[]);
        let [socket, engine, door] = adopt([3, 4, 5]);
        for fd in [&socket, &engine, &door] {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
        }
        // Fails only if this process leads a group already, and then it is its own session's business.
        let _ = rustix::process::setsid();
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        Ok(Nursery {
            socket,
            engine,
            door,
            children_ended: child_signal_fd()?,
            workers: HashMap::new(),
            lessons: VecDeque::new(),
            rehearsal: None,
            leisure: Leisure {
                stepped_at: crate::sys::now(),
                ..Leisure::default()
            },
        })
    }

    /// Serves until the engine says quit (`None`), or returns in a forked worker with its seat. If the
    /// engine dies, everything it left behind is killed first.
    pub fn run(&mut self, interpreter: &mut impl Interpreter) -> Option<Seat> {
        self.tell(FromTemplate::Ready, &[]);
        let mut connected = true;
        let mut warm = false;
        let mut quiet_ns = SETTLED_NS;
        loop {
            // A socket that has come to its end says nothing: whether the engine lives, its pidfd says,
            // which may be a moment later.
            let listen = if connected {
                PollFlags::IN
            } else {
                PollFlags::empty()
            };
            let mut fds = [
                PollFd::new(&self.engine, PollFlags::IN),
                PollFd::new(&self.children_ended, PollFlags::IN),
                PollFd::new(&self.socket, listen),
            ];
            let watched = if connected { 3 } else { 2 };
            let prepares = !warm || !self.lessons.is_empty();
            let patience = match &self.rehearsal {
                Some(rehearsal) => rehearsal.until.map(until),
                None => prepares.then(|| until(crate::sys::now().after_ns(quiet_ns))),
            };
            match poll(&mut fds[..watched], patience.as_ref()) {
                Ok(0) => {
                    if let Some(rehearsal) = &mut self.rehearsal {
                        if rehearsal.until.is_some_and(|by| by <= crate::sys::now()) {
                            rehearsal.until = None;
                            rehearsal.kill();
                        }
                    } else if !self.leisure.is_there(self.workers.keys()) {
                        quiet_ns = (2 * quiet_ns).clamp(SETTLED_NS, MOST_PATIENCE_NS);
                    } else if warm {
                        self.study(interpreter);
                        quiet_ns = 0;
                    } else {
                        warm = !interpreter.warm_up();
                        quiet_ns = 0;
                    }
                    continue;
                }
                Ok(_) => {
                    quiet_ns = SETTLED_NS;
                    if prepares {
                        self.leisure.watch(self.workers.keys());
                    }
                }
                Err(_) => continue,
            }
            let woken = |at: usize| !fds[at].revents().is_empty();
            let (engine_died, child_ended, message) = (woken(0), woken(1), woken(2));
            if engine_died {
                self.clear_up();
                return None;
            }
            if child_ended {
                let mut buffer = [0_u8; 1024];
                let _ = rustix::io::read(&self.children_ended, &mut buffer);
                self.reap_all();
            }
            if message {
                match self.serve(interpreter) {
                    Served::On => {}
                    Served::Quit => {
                        if let Some(rehearsal) = &self.rehearsal {
                            rehearsal.kill();
                        }
                        return None;
                    }
                    Served::End => connected = false,
                    Served::Child(seat) => return Some(seat),
                }
            }
        }
    }

    fn tell(&self, message: FromTemplate, descriptors: &[std::os::fd::BorrowedFd<'_>]) {
        // A full socket means that the engine is behind by hundreds of messages: wait for it.
        while let Ok(false) = send(self.socket.as_fd(), &message.to_bytes(), descriptors) {
            let mut fds = [
                PollFd::new(&self.socket, PollFlags::OUT),
                PollFd::new(&self.engine, PollFlags::IN),
            ];
            let _ = poll(&mut fds, None);
            if !fds[1].revents().is_empty() {
                return;
            }
        }
    }

    fn serve(&mut self, interpreter: &mut impl Interpreter) -> Served {
        let (bytes, len, descriptors) = match receive(self.socket.as_fd()) {
            Ok(Some((_, 0, _))) | Err(_) => return Served::End,
            Ok(Some(received)) => received,
            Ok(None) => return Served::On,
        };
        match ToTemplate::from_bytes(&bytes[..len]) {
            Ok(ToTemplate::Fork { key }) => self.fork(key, descriptors, interpreter),
            Ok(ToTemplate::Watch { pid }) => {
                if let Some(pidfd) = descriptors.into_iter().next() {
                    self.workers.insert(pid, pidfd);
                }
                Served::On
            }
            Ok(ToTemplate::RunSite) => {
                if !interpreter.run_site() {
                    self.tell(FromTemplate::Spoiled, &[]);
                }
                Served::On
            }
            Ok(ToTemplate::Learn { lesson, what }) => {
                if self.lessons.is_empty() {
                    self.leisure.stepped_at = crate::sys::now();
                }
                self.lessons.push_back(Lesson {
                    id: lesson,
                    what,
                    rehearsed: false,
                });
                Served::On
            }
            Ok(ToTemplate::Quit) => Served::Quit,
            Err(_) => Served::On,
        }
    }

    fn fork(
        &mut self,
        key: u64,
        descriptors: Vec<OwnedFd>,
        interpreter: &mut impl Interpreter,
    ) -> Served {
        let mut descriptors = descriptors.into_iter();
        let four = [(); 4].map(|()| descriptors.next());
        let [Some(tasks), Some(answers), Some(keeper), Some(waiter)] = four else {
            self.tell(
                FromTemplate::NotForked {
                    key,
                    errno: rustix::io::Errno::MFILE.raw_os_error(),
                },
                &[],
            );
            return Served::On;
        };
        let copy = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3);
        let (engine, door) = match (copy(&self.engine), copy(&self.door)) {
            (Ok(engine), Ok(door)) => (engine, door),
            (Err(errno), _) | (_, Err(errno)) => {
                self.tell(
                    FromTemplate::NotForked {
                        key,
                        errno: errno.raw_os_error(),
                    },
                    &[],
                );
                return Served::On;
            }
        };
        let arenas = descriptors.next().map(|arguments| Arenas {
            arguments,
            results: descriptors.next(),
        });
        match interpreter.fork() {
            Ok(0) => {
                let _ = rustix::process::setpgid(None, None);
                return Served::Child(Seat {
                    tasks,
                    answers,
                    keeper,
                    waiter,
                    engine,
                    arenas,
                    door: Some(door),
                    number: (key as u32).wrapping_add(1),
                });
            }
            Ok(pid) => {
                let Some(id) = Pid::from_raw(pid) else {
                    return Served::On;
                };
                // From both sides: whoever comes first, the group is there before anyone signals it.
                let _ = rustix::process::setpgid(Some(id), Some(id));
                // Our child, not reaped yet: its number can't be anyone else's (rule 12).
                match rustix::process::pidfd_open(id, PidfdFlags::empty()) {
                    Ok(pidfd) => {
                        self.tell(FromTemplate::Forked { key, pid }, &[pidfd.as_fd()]);
                        self.workers.insert(pid, pidfd);
                    }
                    Err(errno) => {
                        let _ = rustix::process::kill_process(id, Signal::KILL);
                        self.tell(
                            FromTemplate::NotForked {
                                key,
                                errno: errno.raw_os_error(),
                            },
                            &[],
                        );
                    }
                }
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(0);
                self.tell(FromTemplate::NotForked { key, errno }, &[]);
            }
        }
        Served::On
    }

    /// The next step of the next lesson: its rehearsal, or after that the import itself.
    fn study(&mut self, interpreter: &mut impl Interpreter) {
        let Some(lesson) = self.lessons.pop_front() else {
            return;
        };
        let Lesson { id, ref what, .. } = lesson;
        if lesson.rehearsed {
            self.tell(FromTemplate::Learning { lesson: id }, &[]);
            let fit = interpreter.learn(what);
            self.tell(
                if fit {
                    FromTemplate::Learned { lesson: id }
                } else {
                    FromTemplate::Unfit {
                        lesson: id,
                        spoiled: true,
                    }
                },
                &[],
            );
        } else if !interpreter.knows(what) {
            self.rehearse(lesson, interpreter);
        }
    }

    fn rehearse(&mut self, lesson: Lesson, interpreter: &mut impl Interpreter) {
        match interpreter.fork() {
            Ok(0) => {
                let _ = rustix::process::setpgid(None, None);
                // Not a worker, so nobody minds if it goes with us (rule 13).
                let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
                // Nothing drops what is closed here: this process ends below.
                let ours = [&self.socket, &self.engine, &self.door, &self.children_ended];
                close_now(ours.map(|fd| fd.as_fd()));
                empty_mask();
                let fit = interpreter.learn(&lesson.what);
                exit_now(i32::from(!fit));
            }
            Ok(pid) => {
                if let Some(pid) = Pid::from_raw(pid) {
                    let _ = rustix::process::setpgid(Some(pid), Some(pid));
                    self.rehearsal = Some(Rehearsal {
                        pid,
                        lesson,
                        until: Some(crate::sys::now().after_ns(REHEARSAL_NS)),
                    });
                }
            }
            // There is no room for a process: then this is no time to prepare for more.
            Err(_) => {}
        }
    }

    fn rehearsed(&mut self, rehearsal: Rehearsal, well: bool) {
        // What the import started has no business any more.
        rehearsal.kill();
        let mut lesson = rehearsal.lesson;
        if well && rehearsal.until.is_some() {
            lesson.rehearsed = true;
            self.lessons.push_front(lesson);
        } else {
            self.tell(
                FromTemplate::Unfit {
                    lesson: lesson.id,
                    spoiled: false,
                },
                &[],
            );
        }
    }

    fn reap_all(&mut self) {
        while let Some(ended) = ended_child() {
            let ours = self.workers.remove(&ended.pid).is_some();
            let its = |rehearsal: &mut Rehearsal| rehearsal.pid.as_raw_nonzero().get() == ended.pid;
            if let Some(rehearsal) = self.rehearsal.take_if(its) {
                self.rehearsed(rehearsal, ended.well);
            }
            if ours && !ended.well {
                // What a crashed or killed worker started goes with it. Now, while its zombie still
                // holds the number of the group.
                if let Some(group) = Pid::from_raw(ended.pid) {
                    let _ = rustix::process::kill_process_group(group, Signal::KILL);
                }
            }
            let Some(reaped) = reap(ended.pid) else {
                return;
            };
            if ours {
                let message = FromTemplate::Exited {
                    pid: reaped.pid,
                    status: reaped.status,
                    cpu_us: reaped.cpu_us,
                };
                self.tell(message, &[]);
            }
        }
    }

    /// The engine is gone: kill every worker's group and everything that was left to us, until nothing
    /// is left (rule 13).
    fn clear_up(&mut self) {
        for (pid, pidfd) in self.workers.drain() {
            if rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).is_ok()
                && let Some(group) = Pid::from_raw(pid)
            {
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
            }
        }
        // As children die, theirs come to us.
        loop {
            let children = children_of_this_process();
            for child in &children {
                let _ = rustix::process::kill_process(*child, Signal::KILL);
            }
            let mut reaped_any = false;
            while ended_child().and_then(|ended| reap(ended.pid)).is_some() {
                reaped_any = true;
            }
            if children.is_empty() && !reaped_any {
                return;
            }
            let mut fds = [PollFd::new(&self.children_ended, PollFlags::IN)];
            let at_most = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 20_000_000,
            };
            let _ = poll(&mut fds, Some(&at_most));
            let mut buffer = [0_u8; 1024];
            let _ = rustix::io::read(&self.children_ended, &mut buffer);
        }
    }
}

impl Rehearsal {
    fn kill(&self) {
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
    }
}

fn until(at: Moment) -> rustix::event::Timespec {
    let ns = at.0.saturating_sub(crate::sys::now().0);
    rustix::event::Timespec {
        tv_sec: (ns / 1_000_000_000) as i64,
        // Rounded up, so as not to come back too early.
        tv_nsec: (ns % 1_000_000_000).min(999_000_000) as i64 + 1_000,
    }
}

enum Served {
    On,
    End,
    Quit,
    Child(Seat),
}

fn children_of_this_process() -> Vec<Pid> {
    let me = rustix::process::getpid();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| parent_of(*pid) == Some(me.as_raw_nonzero().get()))
        .filter_map(Pid::from_raw)
        .collect()
}

/// The parent's pid of a process, from its `stat` file.
pub(crate) fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything, parentheses too.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}
