//! The kernel command line: what the host says before there is a channel (`banger_protocol::boot`).
//! Must never guess: a key that is needed and absent is an error that names it.

use banger_protocol::boot;

use super::error::{BootError, Result};

/// The host's word on how to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BootConfig {
    /// To set as the hostname, if given.
    pub(super) hostname: Option<String>,
    /// The read-only root's disk: a serial, or a name below `/dev`.
    pub(super) base: String,
    /// The read-only root's file system.
    pub(super) base_fs: String,
    /// The writable disk; without one, changes live in memory.
    pub(super) system: Option<String>,
    /// The disk for the user's home; without one, the home is part of the root.
    pub(super) home: Option<String>,
    /// The disk with the kernel's modules.
    pub(super) modules: Option<String>,
    /// The vsock port of the channel; without one, it is a virtio-serial port.
    pub(super) vsock: Option<u32>,
    /// Whether to leave the image's init alone.
    pub(super) rescue: bool,
    /// Whether to print how long each step took.
    pub(super) debug: bool,
}

/// Parses `/proc/cmdline`. The last of equal keys wins, as in the kernel.
pub(super) fn parse(cmdline: &str) -> Result<BootConfig> {
    let value = |key: &str| {
        cmdline
            .split_ascii_whitespace()
            .rev()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
    };
    let missing = |key: &str| BootError::Missing(format!("the kernel command line has no {key}="));
    let has = |key: &str| cmdline.split_ascii_whitespace().any(|word| word == key);
    Ok(BootConfig {
        hostname: value(boot::HOSTNAME),
        base: value(boot::BASE).ok_or_else(|| missing(boot::BASE))?,
        base_fs: value(boot::BASE_FS).ok_or_else(|| missing(boot::BASE_FS))?,
        system: value(boot::SYSTEM),
        home: value(boot::HOME),
        modules: value(boot::MODULES),
        vsock: value(boot::VSOCK).map(|port| port.parse().map_err(|_| bad_port(&port))).transpose()?,
        rescue: has(boot::RESCUE),
        debug: has(boot::DEBUG),
    })
}

fn bad_port(port: &str) -> BootError {
    BootError::Invalid(format!("{}={} is no vsock port", boot::VSOCK, port.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_whole_words_and_the_last_one_wins() {
        // Given a command line with other keys, a repeated key and one that only looks like ours
        let line = "console=ttyS0 banger.base=old banger.basefs=squashfs xbanger.system=no \
                    banger.base=base banger.hostname=calm-otter banger.debug\n";
        // When it is parsed
        let config = parse(line).unwrap();
        // Then each key has its own value
        assert_eq!(config.base, "base");
        assert_eq!(config.base_fs, "squashfs");
        assert_eq!(config.hostname.as_deref(), Some("calm-otter"));
        assert_eq!(config.system, None);
        assert_eq!(config.vsock, None);
        assert!(config.debug && !config.rescue);
    }

    #[test]
    fn the_channel_can_be_a_vsock_port() {
        let line = |port: &str| format!("banger.base=vda banger.basefs=squashfs banger.vsock={port}");
        assert_eq!(parse(&line("1024")).unwrap().vsock, Some(1024));
        assert!(parse(&line("high")).unwrap_err().to_string().contains("banger.vsock=high"));
    }

    #[test]
    fn a_missing_or_empty_key_is_named() {
        for (line, key) in [
            ("banger.basefs=squashfs", "banger.base="),
            ("banger.base= banger.basefs=x", "banger.base="),
            ("banger.base=vda", "banger.basefs="),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.ends_with(&format!(" {key}")), "{line}: {error}");
        }
    }
}
