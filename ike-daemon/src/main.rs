//! The `espada` program; see [`espada::cli`].

fn main() -> std::process::ExitCode {
    espada::cli::main()
}
