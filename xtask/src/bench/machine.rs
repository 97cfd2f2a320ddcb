//! What measured: kernel and processor.

use serde_json::{Value, json};

/// Release of the kernel.
pub fn kernel() -> String {
    read("/proc/sys/kernel/osrelease")
}

/// Name of the processor.
pub fn processor() -> String {
    read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("?", |(_, model)| model)
        .to_owned()
}

/// How many processors there are for us.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// All of it in one JSON object.
pub fn to_json() -> Value {
    json!({"kernel": kernel(), "processor": processor(), "processors": processors()})
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map_or_else(|_| "?".to_owned(), |text| text.trim().to_owned())
}
