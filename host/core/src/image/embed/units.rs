//! What starts the agent under the service managers of others.

/// Where the agent is put.
pub const AGENT_PATH: &str = "/usr/local/sbin/guestline-agent";

/// What starts services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceManager {
    /// systemd: a unit (systemd.unit(5)).
    Systemd,
    /// OpenRC: an init script (openrc-run(8)).
    OpenRc,
    /// An inittab(5), or a start script.
    Plain,
}

/// The agent must be there as early as it can, whatever else fails, and may not be killed for memory that others use.
const SYSTEMD: &str = "\
[Unit]
Description=Guestline agent
DefaultDependencies=no
After=systemd-udevd.service
Before=sysinit.target
Conflicts=shutdown.target
StartLimitIntervalSec=0

[Service]
ExecStart=@PATH@
Restart=always
RestartSec=1
OOMScoreAdjust=-1000
Delegate=yes
KillMode=process
TasksMax=infinity
LimitNOFILE=65536
Nice=-5

[Install]
WantedBy=sysinit.target
";

const OPENRC: &str = "\
#!/sbin/openrc-run

description=\"Guestline agent\"
supervisor=supervise-daemon
command=\"@PATH@\"
respawn_delay=1
respawn_max=0
oom_score_adj=-1000

depend() {
    need dev
    after modules
    keyword -shutdown
}
";

const PLAIN: &str = "\
# A line for /etc/inittab, where init is sysvinit (busybox wants `::respawn:@PATH@` instead):
gl:2345:respawn:@PATH@

# Or, where nothing starts it again, a line for a start script:
( while :; do \"@PATH@\"; sleep 1; done ) </dev/null >/dev/null 2>&1 &
";

impl ServiceManager {
    /// The text that has the agent at `path` started; a path without anything that the text would take for something else.
    pub fn unit(self, path: &str) -> String {
        let text = match self {
            Self::Systemd => SYSTEMD,
            Self::OpenRc => OPENRC,
            Self::Plain => PLAIN,
        };
        text.replace("@PATH@", path)
    }
}
