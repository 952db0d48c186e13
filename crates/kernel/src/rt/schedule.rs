//! Being on time: real-time priority and memory that is never paged out.

use std::fs;
use std::io;
use std::mem;

use crate::sys::check;

/// Keeps all memory of the process, now and later, in RAM. The error says in words what was not permitted.
pub fn lock_memory() -> Result<(), String> {
    // Only root may raise this one; where that fails, the present limit may still do.
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is initialised.
    let _ = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) };
    // Pages are locked once they are used. Locking all that is mapped would take the whole stack of every
    // thread, used or not.
    // SAFETY: no pointers.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) })
        .map(drop)
        .map_err(|error| format!("memory could not be locked ({error}); raise RLIMIT_MEMLOCK or give CAP_IPC_LOCK"))
}

/// Gives the calling thread real-time priority (SCHED_FIFO), but not the processes and threads that it
/// starts. The error says in words what was not permitted.
pub fn set_fifo_priority(priority: u8) -> Result<(), String> {
    let parameters = libc::sched_param { sched_priority: priority.into() };
    // SAFETY: 0 is the calling thread; the parameters are initialised.
    let result =
        check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &parameters) });
    result.map(drop).map_err(|error| explain(priority, &error))
}

/// As long as this is kept, the calling thread stays on its present processor, and the real-time threads of the process stay
/// off it, if they may use another: for system calls during which many kernels (PREEMPT_NONE, PREEMPT_VOLUNTARY) let nobody
/// else have the processor. A real-time thread that wakes up there would wait for them, and not look for another.
#[derive(Debug)]
pub struct Aside(Vec<(libc::pid_t, libc::cpu_set_t)>);

impl Aside {
    /// Begins. What is not permitted is left as it is.
    pub fn step() -> Self {
        // SAFETY: no pointers.
        let (own, here) = unsafe { (libc::gettid(), libc::sched_getcpu()) };
        let Ok(here) = usize::try_from(here) else { return Self(Vec::new()) };
        let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let threads = threads.filter_map(|entry| entry.file_name().to_str()?.parse::<libc::pid_t>().ok());
        let is_real_time = |thread: &libc::pid_t| {
            // SAFETY: no pointers.
            let policy = unsafe { libc::sched_getscheduler(*thread) };
            policy & !libc::SCHED_RESET_ON_FORK == libc::SCHED_FIFO
        };
        let mut moved = Vec::new();
        for thread in threads.filter(|thread| *thread == own || is_real_time(thread)) {
            let Ok(before) = affinity(thread) else { continue };
            let mut after = before;
            // SAFETY: the kernel has told a processor that fits the set.
            unsafe {
                if thread == own {
                    libc::CPU_ZERO(&mut after);
                    libc::CPU_SET(here, &mut after);
                } else {
                    libc::CPU_CLR(here, &mut after);
                }
            }
            // Without any other processor, the set is refused.
            if set_affinity(thread, &after).is_ok() {
                moved.push((thread, before));
            }
        }
        Self(moved)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        for (thread, before) in &self.0 {
            // One that has ended needs no processor.
            let _ = set_affinity(*thread, before);
        }
    }
}

/// The processors that a thread may use.
fn affinity(thread: libc::pid_t) -> io::Result<libc::cpu_set_t> {
    // SAFETY: all zeroes is an empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: pointer and length are of the same value.
    check(unsafe { libc::sched_getaffinity(thread, mem::size_of_val(&set), &raw mut set) })?;
    Ok(set)
}

fn set_affinity(thread: libc::pid_t, set: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: pointer and length are of the same value, which the kernel only reads.
    check(unsafe { libc::sched_setaffinity(thread, mem::size_of_val(set), &raw const *set) }).map(drop)
}

fn explain(priority: u8, error: &io::Error) -> String {
    // With RT_GROUP_SCHED, a control group other than the root has no real-time budget until given one.
    let has_budget =
        fs::read_to_string("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").map_or(true, |budget| budget.trim() != "0");
    let advice = match (error.raw_os_error(), has_budget) {
        (Some(libc::EINVAL), _) => "priorities are 1 to 99",
        (_, false) => "the service's control group has no real-time budget: set cpu.rt_runtime_us",
        (_, true) => "give CAP_SYS_NICE, or take the service out of its CPU control group",
    };
    format!("real-time priority {priority} was refused ({error}); {advice}")
}
