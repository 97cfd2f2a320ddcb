//! Configurations that are refused, and what is said about them.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use espada_tests::espada::{self, Espada};
use espada_tests::process::WorkDir;
use espada_tests::scenario::config_a;
use espada_tests::topology::{Line, Wan};
use espada_tests::{cmd, skip_unless_possible};

/// What `espada check` says about a configuration, and whether it accepts it.
fn check(config: &str) -> Result<(bool, String)> {
    let work = WorkDir::new()?;
    Espada::write_files(work.path(), config, SECRETS)?;
    let binary = espada::binary()?.display().to_string();
    let file = work.file("espada.toml").display().to_string();
    let output = cmd::output(&[&binary, "check", &file])?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok((output.status.success(), said))
}

const SECRETS: &str = r#"
[[psk]]
ids = ["40.113.59.156", "20.240.192.55"]
secret = "an owl in the belfry"
"#;

const GOOD: &str = r#"
[dataplane]
wan = ["eth0"]

[connection.azure]
local  = { address = "%default", id = "40.113.59.156", subnets = ["10.0.0.0/24"] }
remote = { address = "20.240.192.55", id = "20.240.192.55", subnets = ["10.240.10.0/24"] }
auth = "psk"
ike = "aes256-sha256-modp2048"
esp = "aes256-sha256"
dpd = { delay = "30s", action = "restart" }
start = "start"
"#;

#[test]
fn a_good_configuration_passes() -> Result<()> {
    let (good, said) = check(GOOD)?;
    ensure!(good, "{said}");
    ensure!(said.contains("azure"), "{said}");
    Ok(())
}

#[test]
fn mistakes_are_named_with_their_line() -> Result<()> {
    for (right, wrong, expected) in [
        (
            "start = \"start\"",
            "strat = \"start\"",
            ["espada.toml:12", "strat", "start"],
        ),
        ("wan = ", "wam = ", ["espada.toml:3", "wam", "wan"]),
        (
            "aes256-sha256-modp2048",
            "aes256-sha265-modp2048",
            ["espada.toml:9", "sha265", "sha256"],
        ),
        (
            "aes256-sha256-modp2048",
            "aes256-sha1-modp1024",
            ["espada.toml:9", "modp1024", "insecure"],
        ),
        (
            "10.0.0.0/24",
            "10.0.0.0/33",
            ["espada.toml:6", "10.0.0.0/33", "32"],
        ),
    ] {
        let (good, said) = check(&GOOD.replace(right, wrong))?;
        ensure!(!good, "{wrong} was accepted:\n{said}");
        for text in expected {
            ensure!(
                said.contains(text),
                "about {wrong}, \"{text}\" is not in:\n{said}"
            );
        }
    }
    Ok(())
}

#[test]
fn weak_groups_need_a_word_and_are_warned_of() -> Result<()> {
    let insecure = GOOD
        .replace("aes256-sha256-modp2048", "aes256-sha1-modp1024")
        .replace("auth = \"psk\"", "auth = \"psk\"\ninsecure = true");
    let (good, said) = check(&insecure)?;
    ensure!(good, "{said}");
    ensure!(
        said.contains("warning") && said.contains("modp1024"),
        "{said}"
    );
    Ok(())
}

#[test]
fn secrets_that_others_can_read_are_refused() -> Result<()> {
    skip_unless_possible!("secrets_that_others_can_read_are_refused");
    let line = Line::new(Wan::Direct)?;
    let work = WorkDir::new()?;
    let files = work.file("gateway");
    let config = config_a(&line);
    Espada::write_files(&files, &config.render(), &config.render_secrets())?;
    for mode in [0o604, 0o640, 0o660] {
        let secrets = files.join("secrets.toml");
        std::fs::set_permissions(&secrets, std::fs::Permissions::from_mode(mode))?;
        let mut daemon = Espada::launch(&line.gw_a, &files, false)?;
        let status = daemon.wait_end(Duration::from_secs(5))?;
        let log = daemon.log();
        ensure!(!status.success(), "started with secrets of mode {mode:o}");
        ensure!(
            log.contains("secrets.toml") && log.contains("chmod"),
            "{log}"
        );
        ensure!(!log.contains(config.psk), "the secret is in the log");
    }
    Ok(())
}

#[test]
fn one_daemon_for_each_runtime_directory() -> Result<()> {
    skip_unless_possible!("one_daemon_for_each_runtime_directory");
    let line = Line::new(Wan::Direct)?;
    let work = WorkDir::new()?;
    let first = Espada::start(&line.gw_a, &work, &config_a(&line), false)?;
    let mut second = Espada::launch(&line.gw_a, first.files(), false)?;
    let status = second.wait_end(Duration::from_secs(5))?;
    ensure!(status.code() == Some(3), "{status}\n{}", second.log());
    first.status()?;
    Ok(())
}
