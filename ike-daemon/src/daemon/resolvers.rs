//! The name servers that come with virtual addresses, for whoever manages the host's: one file for
//! each connection that has any, in the format of resolv.conf(5).

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The folder with the files.
pub struct Resolvers {
    folder: PathBuf,
}

impl Resolvers {
    /// `resolv` below the runtime directory; what an earlier daemon left there is removed.
    pub fn new(runtime_directory: &Path) -> Self {
        let folder = runtime_directory.join("resolv");
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(folder = %folder.display(), %error, "old name servers stay behind");
            }
            _ => {}
        }
        Self { folder }
    }

    /// Writes a connection's name servers; without any its file goes.
    pub fn write(&self, connection: &str, servers: &[IpAddr]) {
        let path = self.folder.join(format!("{connection}.conf"));
        let done = if servers.is_empty() {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        } else {
            let mut text = format!("# From the peer of connection {connection}.\n");
            for server in servers {
                let _ = writeln!(text, "nameserver {server}");
            }
            // Whoever watches the folder sees whole files only.
            let new = self.folder.join(format!(".{connection}.new"));
            std::fs::create_dir_all(&self.folder)
                .and_then(|()| std::fs::write(&new, text))
                .and_then(|()| std::fs::rename(&new, &path))
        };
        if let Err(error) = done {
            tracing::warn!(connection, file = %path.display(), %error, "cannot write the name servers");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_for_each_connection_that_has_name_servers() {
        let folder = std::env::temp_dir().join(format!("espada-resolv-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("resolv")).unwrap();
        std::fs::write(folder.join("resolv/old.conf"), "nameserver 192.0.2.1\n").unwrap();
        let resolvers = Resolvers::new(&folder);
        assert!(!folder.join("resolv/old.conf").exists());
        resolvers.write(
            "site",
            &["10.9.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        );
        let text = std::fs::read_to_string(folder.join("resolv/site.conf")).unwrap();
        assert!(
            text.ends_with("nameserver 10.9.0.1\nnameserver 2001:db8::1\n"),
            "{text}"
        );
        resolvers.write("site", &[]);
        assert!(!folder.join("resolv/site.conf").exists());
        resolvers.write("site", &[]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
