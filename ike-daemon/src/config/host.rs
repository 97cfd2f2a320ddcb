//! What a configuration takes from the host.

/// Processors that the host has or may get, the numbers below this.
pub(super) fn processors() -> u32 {
    let present = || {
        let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").ok()?;
        last(&text)?.checked_add(1)
    };
    present().unwrap_or_else(|| {
        let here = std::thread::available_parallelism().map_or(1, usize::from);
        u32::try_from(here).unwrap_or(1)
    })
}

/// The last number of a list such as `0-3,8-11`.
fn last(list: &str) -> Option<u32> {
    list.trim().rsplit([',', '-']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_end_with_the_last_processor() {
        assert_eq!(last("0\n"), Some(0));
        assert_eq!(last("0-63\n"), Some(63));
        assert_eq!(last("0-3,8-11\n"), Some(11));
        assert_eq!(last(""), None);
        assert!(processors() >= 1);
    }
}
