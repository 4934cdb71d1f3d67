//! `guestline down`: takes named machines down.

use crate::args::DownArgs;
use crate::error::CommandError;
use crate::machines::{self, FAILED, Failure};
use guestline::dirs::Dirs;
use guestline::supervise::{self, How, MachineName};
use std::time::Instant;
use tokio::task::JoinSet;

pub(crate) fn run(args: &DownArgs) -> Result<u8, CommandError> {
    machines::run(|dirs| async move {
        let names = match args.all {
            true => supervise::list(&dirs).into_iter().map(|(name, _)| name).collect(),
            false => args.names.clone(),
        };
        let mut going = JoinSet::new();
        for name in names {
            going.spawn(take_down(dirs.clone(), name, args.force));
        }
        let mut status = 0;
        while let Some(done) = going.join_next().await {
            match done {
                Ok(Ok(line)) => println!("{line}"),
                Ok(Err(failure)) => {
                    failure.print();
                    status = FAILED;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(status)
    })
}

pub(super) async fn take_down(
    dirs: Dirs,
    name: MachineName,
    force: bool,
) -> Result<String, Failure> {
    let began = Instant::now();
    let Some(folder) = supervise::find(&dirs, &name) else {
        return Err(machines::not_up(&dirs, &name));
    };
    let ended = supervise::down(&folder, force).await?;
    let how = match ended.how {
        How::Down => "powered off",
        How::Killed => "killed",
        How::LetGo => "let go, and left as it is",
        How::NeverUp => "taken down while it booted",
        // It ended by itself meanwhile.
        _ => &ended.why,
    };
    Ok(format!("{name} is down: {how}, {:.1} s", began.elapsed().as_secs_f64()))
}
