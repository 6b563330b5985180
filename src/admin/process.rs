//! What every Prometheus client library tells of its process (`process_*`), from `/proc`. The library
//! that makes our metrics has no collector for it.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Ticks a second in `/proc/*/stat`: Linux has told user space 100 on every architecture since 2.6.
const TICKS: f64 = 100.0;

/// Reads `/proc` whenever it is asked; where there is none it shows nothing.
#[derive(Debug)]
pub struct Process;

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Usage {
    cpu_seconds: f64,
    start_seconds: f64,
    resident: u64,
    virtual_: u64,
    open_files: u64,
    /// None: without a limit.
    max_files: Option<u64>,
}

// === impl Process ===

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(usage) = Usage::read() else { return Ok(()) };
        let e = &mut encoder;
        show(
            e,
            "process_cpu_seconds",
            "Total user and system CPU time spent in seconds",
            &ConstCounter::new(usage.cpu_seconds),
        )?;
        show(
            e,
            "process_start_time_seconds",
            "Start time of the process since the Unix epoch in seconds",
            &ConstGauge::new(usage.start_seconds),
        )?;
        let gauge = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        let resident = gauge(usage.resident);
        show(e, "process_resident_memory_bytes", "Resident memory size in bytes", &resident)?;
        let size = gauge(usage.virtual_);
        show(e, "process_virtual_memory_bytes", "Virtual memory size in bytes", &size)?;
        show(e, "process_open_fds", "Number of open file descriptors", &gauge(usage.open_files))?;
        let most = gauge(usage.max_files.unwrap_or(u64::MAX));
        show(e, "process_max_fds", "Maximum number of open file descriptors", &most)
    }
}

fn show(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

// === impl Usage ===

impl Usage {
    fn read() -> Option<Self> {
        let read = |name: &str| fs::read_to_string(format!("/proc/{name}")).ok();
        let open_files = fs::read_dir("/proc/self/fd").ok()?.count();
        Self::of(
            &read("self/stat")?,
            &read("self/status")?,
            &read("self/limits")?,
            &read("stat")?,
            // The directory itself is open while it is read.
            (open_files as u64).saturating_sub(1),
        )
    }

    /// From `/proc/self/stat`, `status` and `limits`, and the machine's `/proc/stat`.
    fn of(stat: &str, status: &str, limits: &str, machine: &str, open_files: u64) -> Option<Self> {
        // The name of the program is in parentheses and may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok().map(|it| it / TICKS);
        let line = |text: &str, name: &str| -> Option<String> {
            Some(text.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned())
        };
        let kibibytes = |name: &str| -> Option<u64> {
            Some(line(status, name)?.split_whitespace().next()?.parse::<u64>().ok()? << 10)
        };
        let booted: f64 = line(machine, "btime ")?.parse().ok()?;
        let most = line(limits, "Max open files")?;
        Some(Self {
            // By proc(5), the fields 14, 15 and 22; the first here is the third.
            cpu_seconds: ticks(11)? + ticks(12)?,
            start_seconds: booted + ticks(19)?,
            resident: kibibytes("VmRSS:")?,
            virtual_: kibibytes("VmSize:")?,
            open_files,
            max_files: most.split_whitespace().next()?.parse().ok(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_proc_are_read_by_their_format() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1 0 3000 0 0";
        let status = "Name:\ta\nVmSize:\t   2048 kB\nVmRSS:\t    1024 kB\n";
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files   1024   4096   files\n";
        let usage = Usage::of(stat, status, limits, "cpu 1 2\nbtime 1000\n", 9);
        let expected = Usage {
            cpu_seconds: 2.0,
            start_seconds: 1030.0,
            resident: 1 << 20,
            virtual_: 2 << 20,
            open_files: 9,
            max_files: Some(1024),
        };
        assert_eq!(usage, Some(expected));
        let unlimited = limits.replace("1024", "unlimited");
        let usage = Usage::of(stat, status, &unlimited, "btime 1000\n", 9);
        assert_eq!(usage.and_then(|usage| usage.max_files), None);
    }

    #[test]
    fn this_process_is_read() {
        let usage = Usage::read().unwrap();
        assert!(usage.resident > 1 << 20 && usage.open_files > 2, "{usage:?}");
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        assert!((0.0..86_400.0).contains(&(now - usage.start_seconds)), "{usage:?}");
    }
}
