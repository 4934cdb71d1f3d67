//! `guestline ping`: signs of life of a named machine.

use crate::args::PingArgs;
use crate::error::CommandError;
use crate::machines;
use guestline::guest::PingStatistics;
use std::time::Duration;

pub(crate) fn run(args: &PingArgs) -> Result<u8, CommandError> {
    machines::run(|dirs| async move {
        let attached = machines::attach(dirs, &args.name).await?;
        let mut times = Vec::new();
        for number in 1..=args.count {
            if number > 1 {
                tokio::time::sleep(args.interval).await;
            }
            match attached.guest.ping().await {
                Ok(time) => {
                    println!("{number}: {}", ms(time));
                    times.push(time);
                }
                Err(error) => return Err(attached.up.explain(error).await),
            }
        }
        if let Some(PingStatistics { count, min, median, p99, max, mean }) =
            PingStatistics::of(times)
        {
            let [min, median, p99, max, mean] = [min, median, p99, max, mean].map(ms);
            println!(
                "{count} answers: min {min}, median {median}, mean {mean}, p99 {p99}, max {max}"
            );
        }
        Ok(0)
    })
}

fn ms(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}
