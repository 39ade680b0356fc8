//! The engine's one native thread, shared by all executors of the interpreter: it sleeps until
//! something happens outside and then lets each executor look.
//!
//! It supervises the template and, by pidfd and deadline, every worker; it never takes the
//! interpreter's lock (invariant 5) and blocks all signals. The hub lives as long as it has members;
//! with the last one the template ends and then the thread, so that nothing is left.
//!
//! **Locks.** An executor's lock may be held while the hub's is taken, never the reverse: the hub
//! thread lets go of its own before it calls a member. While the hub thread works it holds [`GATE`],
//! which a fork of the user's process takes first: so no lock is held, and nothing half done, in
//! the moment of a fork (invariant 6).
//!
//! **The door.** Whatever a worker needs of the user's process in the middle of a task, such as the descriptor of
//! a resource tracker (rule 21), only that process's interpreter can give, and the hub thread never touches that.
//! So there is a socket beside the rings: every worker inherits one end of it through the template, the client
//! takes the other ([`take_door`]) and answers in a thread of its own. A request is one message with the
//! descriptor to answer on; so workers share nothing but the way in. The hub only makes the pair and, at its
//! end, shuts it.

use crate::engine::waiting::Rest;
use crate::sys::futex::{self, Scope, Waited};
use crate::sys::process::block_all_signals;
use crate::sys::spawn::Program;
use crate::template::Template;
use crate::wire::{FromTemplate, MOST_LESSON_BYTES, ToTemplate};
use rightlane_core::{Exit, Moment, WorkerId};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// An executor, as the hub sees it.
pub(crate) trait Member: Send + Sync {
    /// Takes the announcement back, reads what workers have answered and acts on it. `signalled`: something
    /// happened; else only time has passed.
    fn pump(&self, signalled: bool);
    /// Announces to the workers that the hub is about to sleep.
    fn prepare_sleep(&self, now: Moment) -> Rest;
    /// Acts on deadlines; returns the next.
    fn tick(&self, now: Moment) -> Option<Moment>;
    /// A worker's process is there.
    fn forked(&self, worker: WorkerId, pid: i32, pidfd: OwnedFd);
    /// A worker's process could not be made.
    fn not_forked(&self, worker: WorkerId, why: String);
    /// The template died; `fit` says whether it had ever been ready.
    fn template_died(&self, fit: bool);
    /// A worker's process has ended; how, the template will tell, if it lives.
    fn ended(&self, worker: WorkerId, template_lives: bool);
    /// A worker's process has ended like this.
    fn exited(&self, worker: WorkerId, exit: Exit);
    /// The living workers, for a new template to watch.
    fn hand_over(&self, each: &mut dyn FnMut(i32, BorrowedFd<'_>));
}

/// Taken by the hub thread while it works, by a thread that does its work, and by a fork of the user's process.
pub(crate) static GATE: Mutex<()> = Mutex::new(());

static HUB: Mutex<Option<Arc<Hub>>> = Mutex::new(None);

/// How the template is started; set by the client before the first executor.
static PROGRAM: Mutex<Option<Program>> = Mutex::new(None);

/// Whether templates run `site` after they have started.
static SITE: Mutex<Site> = Mutex::new(Site::Unneeded);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Site {
    Unneeded,
    Wanted,
    /// It made a template unfit to be forked: never again (rule 19).
    Harmful,
}

/// What templates are to import (rule 19). Kept for the interpreter's life, and so is what did harm.
static LESSONS: Mutex<Vec<Lesson>> = Mutex::new(Vec::new());

/// How many lessons are kept: each costs a rehearsal, and memory in the template.
const MOST_LESSONS: usize = 32;

struct Lesson {
    /// The module that makes all of it fit or unfit.
    subject: String,
    /// What tells it from others of its subject.
    key: Vec<u8>,
    what: Arc<[u8]>,
    unfit: bool,
}

const BELL: u64 = 0;
const TEMPLATE_SOCKET: u64 = 1;
const TEMPLATE_ENDED: u64 = 2;
const SIGNAL: u64 = 3;
/// Above this bit lie the pidfds of workers, by key.
const WORKER_ENDED: u64 = 1 << 63;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while a lock was held is a bug that has been reported already; the state machines under
    // these locks are checked by their own assertions, so going on beats taking the user's process down.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says how to start a template. Takes effect at its next start.
pub fn set_program(program: Program) {
    *lock(&PROGRAM) = Some(program);
}

/// The client's end of the door, for it to answer the requests that come in; once for each hub, and only while there
/// is one. A request is one message, with the descriptor to answer on. The end has come when an empty one is read.
pub fn take_door() -> Option<OwnedFd> {
    DOOR_WAITS.store(false, Ordering::Relaxed);
    let hub = lock(&HUB).clone()?;
    lock(&hub.door_inside).take()
}

/// Whether [`take_door`] may have something to give. Costs nothing: to be asked after each call that is accepted.
pub fn has_door() -> bool {
    DOOR_WAITS.load(Ordering::Relaxed)
}

/// Set by a thread that starts a hub, before its call is accepted; so the same thread sees it afterwards.
static DOOR_WAITS: AtomicBool = AtomicBool::new(false);

/// Whether a program has been set.
pub fn has_program() -> bool {
    lock(&PROGRAM).is_some()
}

/// From now on templates run `site`; a running one does so at once.
pub fn want_site() {
    {
        let mut site = lock(&SITE);
        if *site != Site::Unneeded {
            return;
        }
        *site = Site::Wanted;
    }
    let hub = lock(&HUB).clone();
    if let Some(hub) = hub
        && let Some(template) = &mut lock(&hub.inner).template
    {
        template.send(ToTemplate::RunSite, &[]);
    }
}

/// From now on templates import this when they are idle, unless it was tried and did harm. A subject may come with
/// several lessons, each only once.
pub fn learn(subject: &str, key: &[u8], what: &[u8]) {
    let lesson = {
        let mut lessons = lock(&LESSONS);
        let known =
            |lesson: &Lesson| lesson.subject == subject && (lesson.unfit || lesson.key == key);
        if lessons.len() >= MOST_LESSONS
            || what.len() > MOST_LESSON_BYTES
            || lessons.iter().any(known)
        {
            return;
        }
        lessons.push(Lesson {
            subject: subject.to_owned(),
            key: key.to_owned(),
            what: what.into(),
            unfit: false,
        });
        lessons.len() as u32 - 1
    };
    let hub = lock(&HUB).clone();
    if let Some(hub) = hub
        && let Some(template) = &mut lock(&hub.inner).template
    {
        let what = what.into();
        template.send(ToTemplate::Learn { lesson, what }, &[]);
    }
}

/// Never again, for all that is to be learned of its subject.
fn unfit(lesson: u32) {
    let mut lessons = lock(&LESSONS);
    if let Some(subject) = lessons.get(lesson as usize).map(|l| l.subject.clone()) {
        for lesson in lessons.iter_mut().filter(|l| l.subject == subject) {
            lesson.unfit = true;
        }
    }
}

/// What a subject's lessons imported is out of date: no template imports it from now on, and the one that has, of
/// this pid, may fork no more workers. Those that it forked go on, but how they end can no longer be known (rule 12).
/// Another template has been started since, without it.
pub fn unlearn(subject: &str, template_pid: i32) {
    let known = lock(&LESSONS)
        .iter()
        .position(|lesson| lesson.subject == subject);
    if let Some(lesson) = known {
        unfit(lesson as u32);
    }
    let hub = lock(&HUB).clone();
    if let Some(hub) = hub
        && let Some(template) = &lock(&hub.inner).template
        && template.pid == template_pid
    {
        template.kill();
    }
}

#[derive(Debug)]
pub(crate) struct Hub {
    epoll: OwnedFd,
    bell: OwnedFd,
    /// The workers' end of the door, kept for the next template.
    door: OwnedFd,
    /// The client's end, until it takes it.
    door_inside: Mutex<Option<OwnedFd>>,
    inner: Mutex<Inner>,
    ending: Arc<Ending>,
}

#[derive(Default)]
struct Inner {
    members: BTreeMap<u32, Arc<dyn Member>>,
    next_member: u32,
    template: Option<Template>,
    /// Starting a template makes no sense until somebody asks again: the last one never got ready.
    hopeless: bool,
    pids: HashMap<i32, (u32, WorkerId)>,
    stopping: bool,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("members", &self.members.len())
            .finish_non_exhaustive()
    }
}

fn key(member: u32, worker: WorkerId) -> u64 {
    // Members are numbered from zero, so the top bit stays free.
    u64::from(member) << 32 | u64::from(worker.0)
}

fn unkey(key: u64) -> (u32, WorkerId) {
    (((key & !WORKER_ENDED) >> 32) as u32, WorkerId(key as u32))
}

/// An executor's place in the hub.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    hub: Arc<Hub>,
    id: u32,
}

/// Makes an executor a member of the hub, which is started if need be, with its template.
pub(crate) fn join(member: Arc<dyn Member>) -> io::Result<Membership> {
    let mut slot = lock(&HUB);
    if let Some(hub) = slot.as_ref() {
        let mut inner = lock(&hub.inner);
        if !inner.stopping {
            let id = inner.admit(member);
            drop(inner);
            return Ok(Membership {
                hub: hub.clone(),
                id,
            });
        }
    }
    let hub = Hub::start()?;
    let id = lock(&hub.inner).admit(member);
    *slot = Some(hub.clone());
    Ok(Membership { hub, id })
}

impl Inner {
    fn admit(&mut self, member: Arc<dyn Member>) -> u32 {
        let id = self.next_member;
        self.next_member += 1;
        self.members.insert(id, member);
        id
    }
}

impl Membership {
    /// Has a process forked for this worker.
    pub(crate) fn fork(&self, worker: WorkerId, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut inner = lock(&self.hub.inner);
        inner.hopeless = false;
        self.hub.ensure_template(&mut inner)?;
        if let Some(template) = &mut inner.template {
            template.send(
                ToTemplate::Fork {
                    key: key(self.id, worker),
                },
                descriptors,
            );
        }
        Ok(())
    }

    /// Has the hub thread listen to what the executor's workers signal.
    pub(crate) fn listen(&self, signal: BorrowedFd<'_>) -> io::Result<()> {
        let data = EventData::new_u64(SIGNAL);
        // Edge-triggered: each write is an event of its own, and nobody has to read.
        Ok(epoll::add(
            &self.hub.epoll,
            signal,
            data,
            EventFlags::IN | EventFlags::ET,
        )?)
    }

    /// The worker is gone.
    pub(crate) fn forget(&self, pid: i32) {
        lock(&self.hub.inner).pids.remove(&pid);
    }

    /// Has the hub thread look at everything anew.
    pub(crate) fn wake(&self) {
        self.hub.wake();
    }

    /// Leaves. The last one to leave ends the hub, and may wait for that.
    pub(crate) fn leave(self, signal: Option<BorrowedFd<'_>>) -> Option<Arc<Ending>> {
        // By hand: workers, or a fork of this process, may hold it open.
        if let Some(signal) = signal {
            let _ = epoll::delete(&self.hub.epoll, signal);
        }
        let mut inner = lock(&self.hub.inner);
        inner.members.remove(&self.id);
        inner.stopping = inner.members.is_empty();
        let last = inner.stopping;
        drop(inner);
        self.hub.wake();
        last.then(|| self.hub.ending.clone())
    }
}

/// The end of a hub, for whoever waits for it.
#[derive(Debug, Default)]
pub struct Ending {
    /// Becomes one when the template is gone and every descriptor closed.
    gone: AtomicU32,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Ending {
    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.gone.load(Ordering::Acquire) != 0
    }

    /// Sleeps until it is over, a signal arrives, or the time is over.
    pub fn wait(&self, timeout: Option<std::time::Duration>) -> Waited {
        let waited = futex::wait(&self.gone, 0, timeout, Scope::Private);
        if self.is_over()
            && let Some(thread) = lock(&self.thread).take()
        {
            // It has nothing left to do: this takes as long as a thread takes to end.
            let _ = thread.join();
        }
        waited
    }
}

impl Hub {
    fn start() -> io::Result<Arc<Hub>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let bell = rustix::event::eventfd(0, flags)?;
        epoll::add(
            &epoll,
            &bell,
            EventData::new_u64(BELL),
            EventFlags::IN | EventFlags::ET,
        )?;
        let (door, inside) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        DOOR_WAITS.store(true, Ordering::Relaxed);
        let hub = Arc::new(Hub {
            epoll,
            bell,
            door,
            door_inside: Mutex::new(Some(inside)),
            inner: Mutex::default(),
            ending: Arc::default(),
        });
        hub.ensure_template(&mut lock(&hub.inner))?;
        let own = hub.clone();
        let serve = move || {
            own.run();
            let ending = own.ending.clone();
            // Closes the descriptors, unless an executor that is about to notice holds on to them.
            drop(own);
            ending.gone.store(1, Ordering::Release);
            futex::wake(&ending.gone, u32::MAX, Scope::Private);
        };
        let thread = std::thread::Builder::new()
            .name("rightlane-hub".into())
            .spawn(serve)?;
        *lock(&hub.ending.thread) = Some(thread);
        Ok(hub)
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    fn ensure_template(&self, inner: &mut Inner) -> io::Result<()> {
        if inner.template.is_some() || inner.hopeless || inner.stopping {
            return Ok(());
        }
        let program = lock(&PROGRAM).clone();
        let program = program.ok_or_else(|| io::Error::other("no template program is set"))?;
        let mut template = Template::start(&program, self.door.as_fd())?;
        let (socket, pidfd) = (&template.socket, &template.pidfd);
        epoll::add(
            &self.epoll,
            socket,
            EventData::new_u64(TEMPLATE_SOCKET),
            EventFlags::IN,
        )?;
        let once = EventFlags::IN | EventFlags::ONESHOT;
        epoll::add(&self.epoll, pidfd, EventData::new_u64(TEMPLATE_ENDED), once)?;
        if *lock(&SITE) == Site::Wanted {
            template.send(ToTemplate::RunSite, &[]);
        }
        for (at, lesson) in lock(&LESSONS).iter().enumerate() {
            if !lesson.unfit {
                let (lesson, what) = (at as u32, lesson.what.clone());
                template.send(ToTemplate::Learn { lesson, what }, &[]);
            }
        }
        inner.template = Some(template);
        Ok(())
    }

    fn members(&self) -> Vec<(u32, Arc<dyn Member>)> {
        lock(&self.inner)
            .members
            .iter()
            .map(|(id, member)| (*id, member.clone()))
            .collect()
    }

    fn member(&self, id: u32) -> Option<Arc<dyn Member>> {
        lock(&self.inner).members.get(&id).cloned()
    }

    fn run(&self) {
        block_all_signals();
        let mut events = Vec::with_capacity(64);
        loop {
            let timeout = {
                let _gate = lock(&GATE);
                let members = self.members();
                if members.is_empty() && lock(&self.inner).stopping {
                    break;
                }
                let now = crate::sys::now();
                let deadline = members
                    .iter()
                    .filter_map(|(_, member)| member.tick(now))
                    .min();
                let rests: Vec<Rest> = members
                    .iter()
                    .map(|(_, member)| member.prepare_sleep(now))
                    .collect();
                let naps = rests.iter().filter_map(|rest| rest.until);
                match deadline.into_iter().chain(naps).min() {
                    _ if rests.iter().any(|rest| rest.busy) => Some(0),
                    None => None,
                    Some(at) => Some(at.0.saturating_sub(now.0)),
                }
            };
            let timeout = timeout.map(|ns| rustix::event::Timespec {
                tv_sec: (ns / 1_000_000_000) as i64,
                tv_nsec: (ns % 1_000_000_000) as i64,
            });
            events.clear();
            let _ = epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            );
            let _gate = lock(&GATE);
            for (_, member) in self.members() {
                member.pump(!events.is_empty());
            }
            for event in &events {
                match event.data.u64() {
                    BELL | SIGNAL => {}
                    TEMPLATE_SOCKET => self.hear_template(),
                    TEMPLATE_ENDED => self.template_ended(),
                    ended => {
                        let (member, worker) = unkey(ended);
                        let template_lives = lock(&self.inner).template.is_some();
                        if let Some(member) = self.member(member) {
                            member.ended(worker, template_lives);
                        }
                    }
                }
            }
        }
        self.end_template();
        // Who answers there sees its end, although descriptors of this one may live on in processes that a task
        // left behind.
        let _ = rustix::net::shutdown(&self.door, rustix::net::Shutdown::Both);
        let _gate = lock(&GATE);
        let mut current = lock(&HUB);
        if current
            .as_ref()
            .is_some_and(|hub| std::ptr::eq(&**hub, self))
        {
            *current = None;
        }
    }

    fn hear_template(&self) {
        loop {
            let received = {
                let mut inner = lock(&self.inner);
                let Some(template) = &mut inner.template else {
                    return;
                };
                template.flush();
                match template.receive() {
                    Ok(Some((FromTemplate::Ready, _))) => {
                        template.ready = true;
                        continue;
                    }
                    Ok(Some((FromTemplate::Learning { lesson }, _))) => {
                        template.learning = Some(lesson);
                        continue;
                    }
                    Ok(Some((FromTemplate::Learned { .. }, _))) => {
                        template.learning = None;
                        continue;
                    }
                    Ok(Some((FromTemplate::Unfit { lesson, spoiled }, _))) => {
                        unfit(lesson);
                        if spoiled {
                            template.kill();
                        }
                        continue;
                    }
                    Ok(Some(received)) => received,
                    Ok(None) => return,
                    // It is our own program: whatever it says that we can't read, it is broken.
                    Err(_) => return template.kill(),
                }
            };
            match received {
                (FromTemplate::Forked { key, pid }, descriptors) => {
                    if let Some(pidfd) = descriptors.into_iter().next() {
                        self.forked(key, pid, pidfd);
                    } else {
                        // Our descriptor table is full: the kernel could not hand it over.
                        let (member, worker) = unkey(key);
                        if let Some(member) = self.member(member) {
                            let why = "no descriptor is left for a worker's pidfd";
                            member.not_forked(worker, why.into());
                        }
                    }
                }
                (FromTemplate::NotForked { key, errno }, _) => {
                    let (member, worker) = unkey(key);
                    if let Some(member) = self.member(member) {
                        let why = format!("fork: {}", io::Error::from_raw_os_error(errno));
                        member.not_forked(worker, why);
                    }
                }
                (FromTemplate::Exited { pid, status, .. }, _) => {
                    let Some((member, worker)) = lock(&self.inner).pids.remove(&pid) else {
                        continue;
                    };
                    if let Some(member) = self.member(member) {
                        member.exited(worker, exit_of(status));
                    }
                }
                (FromTemplate::Spoiled, _) => {
                    // Workers run `site` themselves where they need it; a fresh template does without.
                    *lock(&SITE) = Site::Harmful;
                    if let Some(template) = &lock(&self.inner).template {
                        template.kill();
                    }
                }
                // Taken care of above.
                (
                    FromTemplate::Ready
                    | FromTemplate::Learning { .. }
                    | FromTemplate::Learned { .. }
                    | FromTemplate::Unfit { .. },
                    _,
                ) => {}
            }
        }
    }

    fn forked(&self, key: u64, pid: i32, pidfd: OwnedFd) {
        let (id, worker) = unkey(key);
        let member = {
            let mut inner = lock(&self.inner);
            inner.pids.insert(pid, (id, worker));
            inner.members.get(&id).cloned()
        };
        let once = EventFlags::IN | EventFlags::ONESHOT;
        let watched = epoll::add(
            &self.epoll,
            &pidfd,
            EventData::new_u64(WORKER_ENDED | key),
            once,
        );
        match member {
            Some(member) if watched.is_ok() => member.forked(worker, pid, pidfd),
            // Nobody waits for it any more, or it can't be supervised.
            _ => {
                let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
                if let Some(member) = member {
                    member.not_forked(worker, "a worker's process can't be watched".into());
                }
            }
        }
    }

    fn template_ended(&self) {
        // What it said last counts.
        self.hear_template();
        let fit = {
            let mut inner = lock(&self.inner);
            let Some(template) = inner.template.take() else {
                return;
            };
            template.reap();
            let _ = epoll::delete(&self.epoll, &template.socket);
            inner.hopeless = !template.ready;
            template.learning.into_iter().for_each(unfit);
            template.ready
        };
        for (_, member) in self.members() {
            member.template_died(fit);
        }
        let mut inner = lock(&self.inner);
        if inner.members.is_empty() || self.ensure_template(&mut inner).is_err() {
            return;
        }
        drop(inner);
        for (_, member) in self.members() {
            member.hand_over(&mut |pid, pidfd| {
                if let Some(template) = &mut lock(&self.inner).template {
                    template.send(ToTemplate::Watch { pid }, &[pidfd]);
                }
            });
        }
    }

    /// Asks the template to end and sees to it.
    fn end_template(&self) {
        let template = {
            let _gate = lock(&GATE);
            self.hear_template();
            lock(&self.inner).template.take()
        };
        let Some(mut template) = template else { return };
        if template.learning.is_some() {
            // Nobody is to wait for an import that nobody will use.
            template.kill();
        }
        template.send(ToTemplate::Quit, &[]);
        let mut fds = [rustix::event::PollFd::new(
            &template.pidfd,
            rustix::event::PollFlags::IN,
        )];
        let grace = rustix::event::Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let _ = rustix::event::poll(&mut fds, Some(&grace));
        if fds[0].revents().is_empty() {
            template.kill();
            let _ = rustix::event::poll(
                &mut [rustix::event::PollFd::new(
                    &template.pidfd,
                    rustix::event::PollFlags::IN,
                )],
                None,
            );
        }
        template.reap();
    }
}

fn exit_of(status: i32) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    let status = std::process::ExitStatus::from_raw(status);
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Unknown,
    }
}

/// Holds off the hub thread while the user's process is forked.
#[derive(Debug)]
pub struct ForkGuard {
    _gate: MutexGuard<'static, ()>,
}

/// To be called before the user's process is forked; `None` while the hub thread is at work or another
/// thread is about to fork: then [`wait_for_fork`], without the interpreter's lock, and ask again. In the
/// parent, drop what it returns; in the child, hand it to [`crate::forked_child`].
pub fn try_before_fork() -> Option<ForkGuard> {
    let gate = match GATE.try_lock() {
        Ok(gate) => gate,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return None,
    };
    crate::harvest::before_fork();
    crate::homes::before_fork();
    crate::arena::before_fork();
    Some(ForkGuard { _gate: gate })
}

/// Waits until it makes sense to ask again.
pub fn wait_for_fork() {
    drop(lock(&GATE));
}

/// In a forked child: there is no hub here, and its descriptors are closed.
pub(crate) fn forget_in_child(guard: ForkGuard) {
    if let Some(hub) = lock(&HUB).take() {
        let inner = std::mem::take(&mut *lock(&hub.inner));
        drop(inner);
        // The hub thread does not exist here, but its reference does: close what it would have.
        let fds = [hub.epoll.as_fd(), hub.bell.as_fd(), hub.door.as_fd()];
        crate::sys::process::close_now(fds);
        drop(lock(&hub.door_inside).take());
        // Whoever waits for its end here waits for nothing.
        hub.ending.gone.store(1, Ordering::Release);
        std::mem::forget(hub);
    }
    drop(guard);
}
