//! Clock, power, freezing and facts.

use super::super::{LinkError, clean};
use super::{MAX_ANSWER, QgaHandle, unsupported};
use guestline_protocol::{ErrorKind, PowerAction, RemoteError};
use qapi::qga::{
    GuestNetworkInterface, GuestShutdownMode, guest_fsfreeze_freeze_list, guest_fsfreeze_thaw,
    guest_get_host_name, guest_get_osinfo, guest_get_time, guest_get_vcpus,
    guest_network_get_interfaces, guest_set_time, guest_shutdown,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long the agent is given to refuse a shutdown: what it carries out has no answer.
const REFUSAL: Duration = Duration::from_secs(1);

impl QgaHandle {
    /// The guest's wall clock, microseconds since 1970.
    pub(crate) async fn clock_us(&self) -> Result<u64, LinkError> {
        let nanos = self.ask(&guest_get_time {}).await?;
        Ok(u64::try_from(nanos / 1000).unwrap_or(0))
    }

    /// Sets the guest's wall clock.
    pub(crate) async fn set_clock(&self, clock_us: u64) -> Result<(), LinkError> {
        let time = i64::try_from(clock_us.saturating_mul(1000)).unwrap_or(i64::MAX);
        self.ask(&guest_set_time { time: Some(time) }).await.map(drop)
    }

    /// Ends the guest; returns before that.
    pub(crate) async fn power(&self, action: &PowerAction, force: bool) -> Result<(), LinkError> {
        let mode = match action {
            _ if force => return Err(unsupported("end a guest past its init")),
            PowerAction::Off => GuestShutdownMode::Powerdown,
            PowerAction::Reboot => GuestShutdownMode::Reboot,
            PowerAction::Kexec { .. } => return Err(unsupported("start another kernel")),
        };
        self.tell(&guest_shutdown { mode: Some(mode) }, REFUSAL).await
    }

    /// Stops writing to the file system that is mounted at a path.
    pub(crate) async fn freeze(&self, path: &[u8]) -> Result<(), LinkError> {
        let path = String::from_utf8(path.to_vec())
            .map_err(|_| unsupported("name file systems that are no UTF-8"))?;
        let mountpoints = Some(vec![path.clone()]);
        match self.ask(&guest_fsfreeze_freeze_list { mountpoints }).await? {
            1.. => Ok(()),
            _ => {
                let message = format!("no file system that can be frozen is mounted at `{path}`");
                Err(LinkError::Refused(clean(RemoteError::new(ErrorKind::NotFound, message))))
            }
        }
    }

    /// Goes on writing, to all that is frozen: the agent knows no other way.
    pub(crate) async fn thaw(&self) -> Result<(), LinkError> {
        self.ask(&guest_fsfreeze_thaw {}).await.map(drop)
    }

    /// What the guest is, as the texts that our own agent sends; what this one does not tell is absent.
    pub(crate) async fn facts(&self) -> Result<BTreeMap<String, String>, LinkError> {
        let os = self.ask(&guest_get_osinfo {}).await?;
        let mut facts = BTreeMap::new();
        let mut add = |name: &str, text: Option<String>| {
            if let Some(text) = text {
                facts.insert(name.to_owned(), text);
            }
        };
        let release = [
            ("ID", &os.id),
            ("NAME", &os.name),
            ("PRETTY_NAME", &os.pretty_name),
            ("VARIANT", &os.variant),
            ("VARIANT_ID", &os.variant_id),
            ("VERSION", &os.version),
            ("VERSION_ID", &os.version_id),
        ];
        let release = release.iter().filter_map(|(key, value)| {
            value.as_ref().map(|value| format!("{key}={}\n", value.replace('\n', " ")))
        });
        add("/etc/os-release", Some(release.collect()));
        add("kernel.release", os.kernel_release);
        add("kernel.version", os.kernel_version);
        add("machine", os.machine);
        add(
            "hostname",
            absent(self.ask(&guest_get_host_name {}).await)?.map(|name| name.host_name),
        );
        let interfaces = self.ask_value(&guest_network_get_interfaces {}, MAX_ANSWER).await;
        add("nics", absent(interfaces)?.map(|value| nics(&value)));
        let vcpus = absent(self.ask(&guest_get_vcpus {}).await)?;
        add(
            "cpus",
            vcpus.map(|cpus| {
                let online = cpus.iter().filter(|cpu| cpu.online);
                online.map(|cpu| cpu.logical_id.to_string()).collect::<Vec<_>>().join(",")
            }),
        );
        Ok(facts)
    }
}

/// What an agent refuses to tell is not known.
fn absent<T>(answer: Result<T, LinkError>) -> Result<Option<T>, LinkError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(LinkError::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A line for each interface. One that the schema cannot read is known by its name at least.
fn nics(interfaces: &Value) -> String {
    let mut lines = String::new();
    for interface in interfaces.as_array().into_iter().flatten() {
        let known = serde_json::from_value::<GuestNetworkInterface>(interface.clone()).ok();
        let name = match &known {
            Some(known) => known.name.clone(),
            None => interface["name"].as_str().unwrap_or_default().to_owned(),
        };
        let mac = known.and_then(|known| known.hardware_address);
        // Names of Windows have blanks in them.
        let name = name.replace(char::is_whitespace, "_");
        let mac = mac.map_or("-".to_owned(), |mac| mac.replace(char::is_whitespace, ""));
        lines.push_str(&format!("{name} {mac} unknown -\n"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_interface_of_the_future_is_still_named() {
        let later = json!([{ "name": "x", "ip-addresses": [{ "ip-address-type": "ipv9", "ip-address": "", "prefix": 1 }] },
            { "name": "Ethernet 2", "hardware-address": "52:54:00:00:00:01" }]);
        assert_eq!(nics(&later), "x - unknown -\nEthernet_2 52:54:00:00:00:01 unknown -\n");
        assert_eq!(nics(&json!("nothing")), "");
    }
}
