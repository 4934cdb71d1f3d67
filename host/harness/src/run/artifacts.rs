//! What a test leaves in its artifact folder comes back.

use super::attempt::Attempt;
use super::judge::Finding;
use super::place::Place;
use crate::text;
use guestline::guest::PullOptions;
use guestline::supervise::MachineName;
use std::time::Duration;

/// So many bytes come back at most: a guest must not fill the host's disk.
const MAX_BYTES: u64 = 1 << 30;

/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// Pulls the artifacts into `artifacts/` of the attempt's folder, if there are any. What a guest does not give is a note;
/// what the host cannot keep is a finding.
pub(super) async fn bring_back(
    place: &Place,
    from: &str,
    machine: Option<&MachineName>,
    attempt: &mut Attempt,
) -> Result<(), Finding> {
    let Some(folder) = &attempt.folder else { return Ok(()) };
    let path = match machine {
        Some(machine) => folder.path().join("artifacts").join(machine.as_str()),
        None => folder.path().join("artifacts"),
    };
    let pulling = async {
        let entries =
            place.guest().list(from.as_bytes()).await.map_err(|error| text::chain(&error))?;
        if entries.is_empty() {
            return Ok(None);
        }
        std::fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let options =
            PullOptions { into: true, max_bytes: Some(MAX_BYTES), ..PullOptions::default() };
        let pulled = place.guest().pull(from.as_bytes(), &path, options).await;
        pulled.map(Some).map_err(|error| text::chain(&error))
    };
    let pulled = tokio::select! {
        biased;
        pulled = pulling => pulled,
        _ = place.ended() => Err("the machine has ended".to_owned()),
        () = tokio::time::sleep(PATIENCE) => Err(format!("they did not come within {}", text::limit(PATIENCE))),
    };
    match pulled {
        Ok(None) => Ok(()),
        Ok(Some(pulled)) => {
            for trouble in pulled.troubles.iter().take(5) {
                let path = text::one_line(&text::escape(&trouble.path), 100);
                attempt
                    .notes
                    .push(format!("artifact `{path}` is not kept: {}", trouble.error.message));
            }
            Ok(())
        }
        Err(_) if place.lease().is_some_and(|lease| lease.machine.has_ended()) => Ok(()),
        Err(why) => {
            attempt
                .notes
                .push(format!("its artifacts are not kept: {}", text::one_line(&why, 200)));
            Ok(())
        }
    }
}
