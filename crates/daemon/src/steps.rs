//! The names of all steps of all operations, put together from the operations' own tables: what fault points and the
//! crash tests know. Must never name a step that no operation has.

use banger_image::BUILD_STAGES;

use crate::vm;

/// All steps as `operation.step`, in the order they run in.
#[must_use]
pub fn steps() -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let image_build = BUILD_STAGES.iter().copied().chain(["publish"]).map(str::to_owned).collect();
    let prepare = crate::workspace::STEPS.map(str::to_owned).into();
    let export = crate::workspace::EXPORT_STEPS.map(str::to_owned).into();
    let apply = crate::workspace::APPLY_STEPS.map(str::to_owned).into();
    let own = [("prepare", prepare), ("export", export), ("apply", apply), ("image_build", image_build)];
    let tables = vm::steps().into_iter().chain(own);
    for (operation, steps) in tables {
        for step in steps {
            let name = format!("{operation}.{step}");
            // A restart tears down twice; the first counts.
            if !all.contains(&name) {
                all.push(name);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_its_steps_once() {
        let all = steps();
        for one in [
            "start.launch",
            "stop.power_off",
            "restart.power_off",
            "restart.launch",
            "delete.forget",
            "create.reserve",
            "create.boot",
            "prepare.send",
            "image_build.pack",
            "stop.release_network",
        ] {
            assert_eq!(all.iter().filter(|name| *name == one).count(), 1, "{one}");
        }
    }
}
