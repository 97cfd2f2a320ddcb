// What the prebuilt eBPF object is made of and how it is compiled. Included by `build.rs` of
// espada-dataplane, which refuses a stale object, and by xtask, which makes it.

/// The linker whose output is committed; another makes other bytes.
pub const BPF_LINKER_VERSION: &str = "0.10.0";
/// Flags of every crate in the object: the instruction set of Linux 5.4 and later, BTF for maps
/// and functions, and one architecture name whatever the build machine's (no program reads
/// registers of its host).
pub const RUSTFLAGS: [&str; 4] = [
    "--cfg=bpf_target_arch=\"x86_64\"",
    "-Ctarget-cpu=v3",
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
];

/// Files and folders that end up in the object, from the root of the tree.
pub const SOURCES: [&str; 13] = [
    "common/src/abi",
    "common/src/abi.rs",
    "common/src/chacha20.rs",
    "common/src/drops.rs",
    "common/src/keystream.rs",
    "common/src/poly1305.rs",
    "common/src/replay.rs",
    "common/src/shared_window.rs",
    "common/src/wire",
    "ebpf-dataplane/ebpf/Cargo.lock",
    "ebpf-dataplane/ebpf/Cargo.toml",
    "ebpf-dataplane/ebpf/src",
    "ebpf-dataplane/prebuilt/sources.rs",
];

/// Files in those folders that only tests compile.
const TEST_ONLY: [&str; 2] = ["sample.rs", "tests.rs"];

/// Every source file, sorted, as paths from `root`.
pub fn source_files(root: &std::path::Path) -> std::io::Result<Vec<std::path::PathBuf>> {
    let mut pending: Vec<_> = SOURCES.iter().map(std::path::PathBuf::from).collect();
    let mut files = Vec::new();
    while let Some(path) = pending.pop() {
        if root.join(&path).is_dir() {
            for entry in std::fs::read_dir(root.join(&path))? {
                pending.push(path.join(entry?.file_name()));
            }
        } else if !TEST_ONLY.iter().any(|name| path.ends_with(name)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// SHA-256 over names, lengths and contents of all sources, in hexadecimal.
pub fn source_hash(root: &std::path::Path) -> std::io::Result<String> {
    use sha2::Digest;
    let mut hash = sha2::Sha256::new();
    for path in source_files(root)? {
        let content = std::fs::read(root.join(&path))?;
        hash.update(path.to_string_lossy().as_bytes());
        hash.update([0]);
        hash.update(
            u64::try_from(content.len())
                .unwrap_or(u64::MAX)
                .to_be_bytes(),
        );
        hash.update(&content);
    }
    Ok(hex(&hash.finalize()))
}

/// SHA-256 of an object, in hexadecimal.
pub fn object_hash(object: &[u8]) -> String {
    use sha2::Digest;
    hex(&sha2::Sha256::digest(object))
}

/// The line `NAME VALUE` of the file beside the object.
pub fn recorded<'a>(record: &'a str, name: &str) -> Option<&'a str> {
    record
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
