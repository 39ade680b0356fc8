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

/// The least quota over all levels, with `root` in place of `/`.
fn tightest_quota(root: &Path) -> Option<f64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mut tightest: Option<f64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let mount: PathBuf = if controllers.is_empty() {
            root.join("sys/fs/cgroup")
        } else if controllers.split(',').any(|name| name == "cpu") {
            root.join("sys/fs/cgroup").join(controllers)
        } else {
            continue;
        };
        let mounts = [mount, root.join("sys/fs/cgroup/cpu")];
        let mount = mounts.iter().find(|mount| mount.is_dir());
        let Some(mount) = mount else { continue };
        // Inside a container the path may name a level that is not mounted here; the levels above are.
        for level in Path::new(path.trim_start_matches('/')).ancestors() {
            if let Some(quota) = quota_of(&mount.join(level)) {
                tightest = Some(tightest.map_or(quota, |least| least.min(quota)));
            }
        }
    }
    tightest
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

    #[test]
    fn workers_are_rounded_up_and_never_none() {
        let workers = |affinity, quota| CpuBudget { affinity, quota }.workers();
        assert_eq!(workers(8, Some(1.5)), 2);
        assert_eq!(workers(2, Some(64.0)), 2);
        assert_eq!(workers(4, None), 4);
        assert_eq!(workers(4, Some(0.2)), 1);
    }
}
