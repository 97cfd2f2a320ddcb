//! BPF: the table of features, and whether the kernel takes our programs.

use espada_dataplane::features::{self, EBPF_ENGINE, FRONT_END, TABLE};
use espada_dataplane::frontend::inspect;
use espada_dataplane::frontend::pin::BPFFS;
use serde::Serialize;

use super::fact::{Answer, Fact};

/// BPF.
#[derive(Clone, Debug, Serialize)]
pub struct Bpf {
    /// Every feature that some part of Espada uses.
    pub features: Vec<Feature>,
    /// Whether a BPF file system is mounted where the daemon pins its maps.
    pub file_system: Fact,
    /// The front end's programs, loaded into the kernel and let go again.
    pub front_end: FrontEnd,
}

/// A feature.
#[derive(Clone, Debug, Serialize)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// What Espada does with it.
    pub purpose: &'static str,
    /// The first Linux release that has it.
    pub since: &'static str,
    /// The kernel's build option, where there is one of its own.
    pub option: Option<&'static str>,
    /// Whether it is there.
    pub present: Answer,
    /// Why that is not known.
    pub detail: Option<String>,
    /// Which parts cannot do without it.
    pub needed_by: Vec<&'static str>,
}

/// The front end's programs.
#[derive(Clone, Debug, Serialize)]
pub struct FrontEnd {
    /// Whether the verifier accepted all of them.
    pub accepted: Fact,
    /// Each.
    pub programs: Vec<Program>,
}

/// A program that the kernel accepted.
#[derive(Clone, Debug, Serialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Instructions that the verifier went through, where the kernel counts them (5.16).
    pub verified_instructions: Option<u32>,
    /// Milliseconds that loading took.
    pub load_ms: f64,
}

impl Bpf {
    /// Looks.
    pub fn look() -> Self {
        Self {
            features: TABLE.iter().map(feature).collect(),
            file_system: file_system(&std::fs::read_to_string("/proc/mounts").unwrap_or_default()),
            front_end: front_end(),
        }
    }
}

fn feature(info: &'static features::FeatureInfo) -> Feature {
    let fact = Fact::from(info.feature.presence());
    let needed_by = [("front end", FRONT_END), ("ebpf engine", EBPF_ENGINE)]
        .into_iter()
        .filter(|(_, list)| list.contains(&info.feature))
        .map(|(name, _)| name)
        .collect();
    Feature {
        name: info.name,
        purpose: info.purpose,
        since: info.since,
        option: info.option,
        present: fact.answer,
        detail: fact.detail,
        needed_by,
    }
}

pub(super) fn file_system(mounts: &str) -> Fact {
    let mounted = mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(BPFFS) && words.next() == Some("bpf")
    });
    if mounted {
        Fact::yes(format!("mounted at {BPFFS}"))
    } else {
        Fact::no(format!("not mounted; the daemon mounts it at {BPFFS}"))
    }
}

fn front_end() -> FrontEnd {
    if let Some(refusal) = features::refusal(&features::missing(FRONT_END)) {
        return FrontEnd {
            accepted: Fact::no(refusal),
            programs: Vec::new(),
        };
    }
    if let Some(why) = features::unknown(FRONT_END) {
        return FrontEnd {
            accepted: Fact::unknown(why),
            programs: Vec::new(),
        };
    }
    match inspect::verify() {
        Err(error) => FrontEnd {
            accepted: Fact::no(error.to_string()),
            programs: Vec::new(),
        },
        Ok(verified) => FrontEnd {
            accepted: Fact::yes(format!("{} programs", verified.len())),
            programs: verified
                .into_iter()
                .map(|program| Program {
                    name: program.name,
                    verified_instructions: program.instructions,
                    load_ms: (program.took.as_secs_f64() * 1e5).round() / 100.0,
                })
                .collect(),
        },
    }
}
