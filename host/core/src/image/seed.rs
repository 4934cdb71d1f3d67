//! A disk that cloud-init takes its instructions from (NoCloud: cloud-init `doc/rtd/reference/datasources/nocloud.rst`):
//! they put the agent into a cloud image that is used as it is.
//!
//! A small FAT file system labelled CIDATA: `meta-data`, `user-data`, and the agent with what starts it as files of their
//! own, so that nothing has to be encoded. `bootcmd` is the first of cloud-init's stages that can run something.

use super::Agent;
use super::embed::{AGENT_PATH, ServiceManager};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use std::io::{self, Cursor, Write};

/// In the name of a file system (FAT: eleven characters).
const LABEL: [u8; 11] = *b"CIDATA     ";

/// The file system has so much more than its files, and is a multiple of that, in bytes.
const ROUND: usize = 1 << 20;

const USER_DATA: &str = "\
#cloud-config
# Written by `guestline image embed --nocloud`.
bootcmd:
  - 'd=$(mktemp -d) && mount -o ro LABEL=CIDATA \"$d\" && { sh \"$d/install.sh\" \"$d\"; umount \"$d\"; rmdir \"$d\"; }'
";

/// Cloud-init runs it at each boot.
const INSTALL: &str = "\
# Puts the Guestline agent in place, and has it started now and at each boot.
set -e
put() {
    cmp -s \"$1\" \"$2\" && return
    mkdir -p \"${2%/*}\"
    cp \"$1\" \"$2.new\"
    chmod \"$3\" \"$2.new\"
    mv \"$2.new\" \"$2\"
}
put \"$1/agent\" @PATH@ 755
if command -v systemctl >/dev/null; then
    put \"$1/agent.service\" /etc/systemd/system/guestline-agent.service 644
    systemctl daemon-reload
    systemctl enable guestline-agent.service
    systemctl start --no-block guestline-agent.service
else
    put \"$1/agent.openrc\" /etc/init.d/guestline-agent 755
    rc-update add guestline-agent boot
    rc-service guestline-agent start
fi
";

/// The disk's bytes; the same for the same agent.
///
/// # Errors
/// What writing the file system gives.
pub fn nocloud_seed(agent: &Agent) -> io::Result<Vec<u8>> {
    // Another agent is another instance.
    let meta_data = format!("instance-id: guestline-{}\n", agent.digest().short());
    let install = INSTALL.replace("@PATH@", AGENT_PATH);
    let (service, openrc) =
        (ServiceManager::Systemd.unit(AGENT_PATH), ServiceManager::OpenRc.unit(AGENT_PATH));
    let files: [(&str, &[u8]); 6] = [
        ("meta-data", meta_data.as_bytes()),
        ("user-data", USER_DATA.as_bytes()),
        ("install.sh", install.as_bytes()),
        ("agent", agent.bytes()),
        ("agent.service", service.as_bytes()),
        ("agent.openrc", openrc.as_bytes()),
    ];
    let len: usize = files.iter().map(|(_, content)| content.len()).sum();
    let mut disk = Cursor::new(vec![0; (len.div_ceil(ROUND) + 1) * ROUND]);
    let id = u32::from_str_radix(agent.digest().as_str().get(..8).unwrap_or("0"), 16).unwrap_or(0);
    format_volume(&mut disk, FormatVolumeOptions::new().volume_label(LABEL).volume_id(id))?;
    {
        let system = FileSystem::new(&mut disk, FsOptions::new().update_accessed_date(false))?;
        for (name, content) in files {
            let mut file = system.root_dir().create_file(name)?;
            file.write_all(content)?;
            file.flush()?;
        }
        system.unmount()?;
    }
    Ok(disk.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::Command;

    #[test]
    fn it_holds_the_agent_and_is_the_same_again() {
        let agent = Agent::for_tests(vec![7; 600_000]);
        let bytes = nocloud_seed(&agent).unwrap();
        assert_eq!(nocloud_seed(&agent).unwrap(), bytes);
        assert_eq!(bytes.len() % 512, 0);
        let system = FileSystem::new(Cursor::new(bytes.clone()), FsOptions::new()).unwrap();
        assert_eq!(system.read_volume_label_from_root_dir().unwrap().as_deref(), Some("CIDATA"));
        let root = system.root_dir();
        let read = |name: &str| {
            let mut content = Vec::new();
            root.open_file(name).unwrap().read_to_end(&mut content).unwrap();
            content
        };
        assert_eq!(read("agent"), agent.bytes());
        let text = |name: &str| String::from_utf8(read(name)).unwrap();
        insta::assert_snapshot!(["meta-data", "user-data", "install.sh"].map(text).join("────\n"));
        // As the system that is to mount it sees it.
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let said = Command::new("blkid").args(["-p", "-o", "export"]).arg(file.path()).output();
        let said = String::from_utf8(said.unwrap().stdout).unwrap();
        assert!(said.contains("LABEL=CIDATA\n") && said.contains("TYPE=vfat\n"), "{said}");
    }
}
