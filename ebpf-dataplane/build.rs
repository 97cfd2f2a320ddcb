//! Refuses a prebuilt eBPF object that is older than its sources.

#[path = "prebuilt/sources.rs"]
#[expect(dead_code, reason = "xtask uses the rest")]
mod sources;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = manifest.parent().unwrap_or(manifest);
    for path in sources::SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    for name in ["espada.bpf.o", "espada.bpf.o.sha256"] {
        println!(
            "cargo::rerun-if-changed={}",
            manifest.join("prebuilt").join(name).display()
        );
    }
    match check(root, &manifest.join("prebuilt")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error}");
            ExitCode::FAILURE
        }
    }
}

fn check(root: &Path, prebuilt: &Path) -> Result<(), String> {
    const FIX: &str = "run `cargo xtask build`";
    let read = |name: &str| {
        let path = prebuilt.join(name);
        std::fs::read(&path)
            .map_err(|error| format!("cannot read {}: {error}; {FIX}", path.display()))
    };
    let object = read("espada.bpf.o")?;
    let record = read("espada.bpf.o.sha256")?;
    let record = String::from_utf8_lossy(&record);
    let actual = sources::source_hash(root)
        .map_err(|error| format!("cannot read the sources of the eBPF object: {error}"))?;
    if sources::recorded(&record, "sources") != Some(actual.as_str()) {
        return Err(format!(
            "ebpf-dataplane/prebuilt/espada.bpf.o is stale: its sources have changed since it was built; {FIX}"
        ));
    }
    if sources::recorded(&record, "object") != Some(sources::object_hash(&object).as_str()) {
        return Err(format!(
            "ebpf-dataplane/prebuilt/espada.bpf.o is not the file that espada.bpf.o.sha256 describes; {FIX}"
        ));
    }
    Ok(())
}
