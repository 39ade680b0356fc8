//! How many CPUs this process may use: the least of its affinity mask and of the quota at every
//! level of its control group, version 1 or 2 (rule 27 asks the same of memory).

use std::fs;
use std::path::{Path, PathBuf};

/// CPUs, as a fraction, and what set the limit.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuBudget {
    /// CPUs in the affinity mask.
    pub affinity: u32,
    /// The tightest quota, in CPUs, if there is one.
    pub quota: Option<f64>,
}

impl CpuBudget {
    /// Reads it.
    pub fn read() -> CpuBudget {
        let affinity = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
        CpuBudget {
            affinity: affinity.max(1),
            quota: tightest_quota(Path::new("/")),
        }
    }

    /// How many workers it makes: the fraction rounded up, at least one (rule 4).
    pub fn workers(&self) -> u32 {
        let cpus = f64::from(self.affinity);
        self.quota
            .map_or(cpus, |quota| quota.min(cpus))
            .ceil()
            .max(1.0) as u32
    }
}

/// Memory that may still be taken: the least of what the machine has available and of what is left of the limit
/// at every level of the control group, version 1 or 2 (rule 27).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    /// What the kernel says can be had without swapping; `u64::MAX` if it says nothing.
    pub machine_bytes: u64,
    /// The least that is left of a control group's limit, and that limit.
    pub group: Option<(u64, u64)>,
}

/// So much is always left over: a page that is charged beyond the limit kills instead of failing.
const LEAST_MARGIN_BYTES: u64 = 32 * 1024 * 1024;

impl MemoryBudget {
    /// Reads it.
    pub fn read() -> MemoryBudget {
        MemoryBudget::below(Path::new("/"))
    }

    fn below(root: &Path) -> MemoryBudget {
        let machine = fs::read_to_string(root.join("proc/meminfo"))
            .ok()
            .and_then(|text| {
                let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
                let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
                Some(kib * 1024)
            });
        let left = |level: &Path| {
            let read = |name: &str| -> Option<u64> {
                fs::read_to_string(level.join(name))
                    .ok()?
                    .trim()
                    .parse()
                    .ok()
            };
            let limit = read("memory.max").or_else(|| read("memory.limit_in_bytes"))?;
            let used = read("memory.current").or_else(|| read("memory.usage_in_bytes"))?;
            // What files that were read have left behind makes room when room is needed.
            let stat = fs::read_to_string(level.join("memory.stat")).unwrap_or_default();
            let inactive = |name: &str| -> Option<u64> {
                let line = stat.lines().find_map(|line| line.strip_prefix(name))?;
                line.trim().parse().ok()
            };
            let cache = inactive("total_inactive_file ").or_else(|| inactive("inactive_file "));
            let used = used.saturating_sub(cache.unwrap_or(0));
            Some((limit.saturating_sub(used), limit))
        };
        MemoryBudget {
            machine_bytes: machine.unwrap_or(u64::MAX),
            group: over_levels(root, "memory", left).min(),
        }
    }

    /// How much of it may be used, so that a margin is left.
    pub fn available_bytes(&self) -> u64 {
        let with_margin =
            |left: u64, of: u64| left.saturating_sub((of / 16).max(LEAST_MARGIN_BYTES));
        let machine = with_margin(self.machine_bytes, self.machine_bytes);
        let group = self.group.map(|(left, limit)| {
            // Version 1 says "no limit" by a number larger than any memory.
            with_margin(left, limit.min(self.machine_bytes))
        });
        group.map_or(machine, |group| group.min(machine))
    }
}

/// The least quota over all levels, with `root` in place of `/`.
fn tightest_quota(root: &Path) -> Option<f64> {
    over_levels(root, "cpu", quota_of).reduce(f64::min)
}

/// What `look` finds in the directories of this process's control groups, from its own to the root, where `controller`
/// is at work; with `root` in place of `/`.
fn over_levels<T>(
    root: &Path,
    controller: &str,
    look: impl Fn(&Path) -> Option<T>,
) -> impl Iterator<Item = T> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let mount: PathBuf = if controllers.is_empty() {
            root.join("sys/fs/cgroup")
        } else if controllers.split(',').any(|name| name == controller) {
            root.join("sys/fs/cgroup").join(controllers)
        } else {
            continue;
        };
        let mounts = [mount, root.join("sys/fs/cgroup").join(controller)];
        let mount = mounts.iter().find(|mount| mount.is_dir());
        let Some(mount) = mount else { continue };
        // Inside a container the path may name a level that is not mounted here; the levels above are.
        let levels = Path::new(path.trim_start_matches('/')).ancestors();
        found.extend(levels.filter_map(|level| look(&mount.join(level))));
    }
    found.into_iter()
}

fn quota_of(level: &Path) -> Option<f64> {
    let read = |name: &str| fs::read_to_string(level.join(name)).ok();
    let (quota, period) = match read("cpu.max") {
        Some(both) => {
            let mut fields = both.split_whitespace();
            (
                fields.next()?.parse::<f64>().ok()?,
                fields.next()?.parse::<f64>().ok()?,
            )
        }
        None => (
            read("cpu.cfs_quota_us")?.trim().parse().ok()?,
            read("cpu.cfs_period_us")?.trim().parse().ok()?,
        ),
    };
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> PathBuf {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "rightlane-budget-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let root = std::env::temp_dir().join(name);
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_tightest_level_counts() {
        let root = tree(&[
            ("proc/self/cgroup", "0::/outer/inner\n"),
            ("sys/fs/cgroup/outer/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n"),
        ]);
        assert_eq!(tightest_quota(&root), Some(1.5));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn version_1_is_read_too() {
        let root = tree(&[
            ("proc/self/cgroup", "3:cpu,cpuacct:/job\n2:memory:/job\n"),
            ("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "50000\n"),
            (
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us",
                "100000\n",
            ),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(tightest_quota(&root), Some(0.5));
        fs::remove_dir_all(root).unwrap();
    }

    /// rule 27
    #[test]
    fn memory_is_what_the_tightest_level_has_left() {
        let gib = 1_u64 << 30;
        let available = "MemTotal: 16777216 kB\nMemAvailable:    8388608 kB\n";
        let (limit, used) = ((4 * gib).to_string(), (3 * gib).to_string());
        let root = tree(&[
            ("proc/meminfo", available),
            ("proc/self/cgroup", "0::/outer/inner\n"),
            ("sys/fs/cgroup/outer/memory.max", &limit),
            ("sys/fs/cgroup/outer/memory.current", &used),
            (
                "sys/fs/cgroup/outer/memory.stat",
                "anon 7\ninactive_file 1073741824\n",
            ),
            ("sys/fs/cgroup/outer/inner/memory.max", "max\n"),
            ("sys/fs/cgroup/outer/inner/memory.current", &used),
        ]);
        let budget = MemoryBudget::below(&root);
        assert_eq!(budget.machine_bytes, 8 * gib);
        assert_eq!(budget.group, Some((2 * gib, 4 * gib)));
        assert_eq!(budget.available_bytes(), 2 * gib - gib / 4);
        fs::remove_dir_all(root).unwrap();
        let root = tree(&[
            ("proc/meminfo", available),
            ("proc/self/cgroup", "4:memory:/job\n"),
            (
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/memory/job/memory.usage_in_bytes", &used),
        ]);
        let budget = MemoryBudget::below(&root);
        assert_eq!(budget.available_bytes(), 8 * gib - gib / 2);
        fs::remove_dir_all(root).unwrap();
        let nothing = MemoryBudget::below(Path::new("/nowhere/at/all"));
        assert!(nothing.available_bytes() > 1 << 60);
    }

    #[test]
    fn workers_are_rounded_up_and_never_none() {
        let workers = |affinity, quota| CpuBudget { affinity, quota }.workers();
        assert_eq!(workers(8, Some(1.5)), 2);
        assert_eq!(workers(2, Some(64.0)), 2);
        assert_eq!(workers(4, None), 4);
        assert_eq!(workers(4, Some(0.2)), 1);
    }
}
