//! Being on time: real-time priority and memory that is never paged out.

use std::fs;
use std::io;

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
