//! The effective defaults, and where each came from.

use std::path::PathBuf;

use banger_protocol::api::Check;

use super::{ok, warn};
use crate::config::{Config, Setting};

pub(super) fn check(config: &Config) -> Check {
    fn line<T: ToString>(name: &str, setting: &Setting<T>) -> String {
        format!("{name} {} ({})", setting.value.to_string(), setting.origin)
    }
    let program = |name: &str, setting: &Setting<Option<PathBuf>>| {
        let path = setting.value.as_ref().map_or_else(|| "from PATH".to_owned(), |p| p.display().to_string());
        format!("{name} {path} ({})", setting.origin)
    };
    let mut parts = vec![
        line("vcpu", &config.vcpu),
        line("memory", &config.memory),
        line("disk", &config.disk),
        line("image", &config.image),
        line("kernel", &config.kernel),
        line("driver", &config.driver),
        line("network", &config.network),
        format!("boot timeout {} s ({})", config.boot_timeout.value.as_secs(), config.boot_timeout.origin),
        program("qemu", &config.qemu),
        program("firecracker", &config.firecracker),
        format!("warm start {} ({})", if config.warm.value { "on" } else { "off" }, config.warm.origin),
        line("template budget", &config.warm_budget),
        line("spares", &config.warm_spares),
    ];
    parts.extend(
        config.image_drivers.iter().map(|(image, driver)| format!("driver of '{image}' {driver} (config)")),
    );
    if let Some(file) = &config.file {
        parts.push(format!("config file {}", file.display()));
    }
    if let Some(file) = &config.absent {
        parts.push(format!("BANGER_CONFIG names {}, which is not there", file.display()));
        let hint = "correct BANGER_CONFIG or write that file, then 'banger daemon stop'; the next command starts a daemon with it";
        return warn("defaults", parts.join(", "), hint.to_owned());
    }
    ok("defaults", parts.join(", "))
}
