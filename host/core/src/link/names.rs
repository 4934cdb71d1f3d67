//! What messages are called in errors, and what of the guest's own words may be shown.

use super::LinkError;
use crate::text::printable;
use guestline_protocol::{RemoteError, Reply, Request};

/// The reply is of the wrong kind for its request.
pub(crate) fn unexpected(reply: &Reply) -> LinkError {
    LinkError::broken(format!("a {} reply to another request", name_of_reply(reply)))
}

fn name_of_reply(reply: &Reply) -> &'static str {
    match reply {
        Reply::Hello(_) => "hello",
        Reply::Attach(_) => "attach",
        Reply::Ping(_) => "ping",
        Reply::Credit(_) => "credit",
        Reply::Done(_) => "done",
        Reply::Error(_) => "error",
        Reply::End(_) => "end",
        Reply::LinkTrouble(_) => "link-trouble",
        Reply::ExecStarted(_) => "exec-started",
        Reply::ExecExited(_) => "exec-exited",
        Reply::PushStarted(_) => "push-started",
        Reply::PushDone(_) => "push-done",
        Reply::PullDone(_) => "pull-done",
        Reply::Stat(_) => "stat",
        Reply::List(_) => "list",
        Reply::Facts(_) => "facts",
        Reply::Sample(_) => "sample",
        Reply::SetClock(_) => "set-clock",
        Reply::Leaving(_) => "leaving",
        Reply::Connected(_) => "connected",
        Reply::Listening(_) => "listening",
        Reply::Accepted(_) => "accepted",
    }
}

/// As in "ping".
pub(super) fn name_of_request(request: &Request) -> &'static str {
    match request {
        Request::Hello(_) => "hello",
        Request::Attach(_) => "attach",
        Request::Ping(_) => "ping",
        Request::Cancel(_) => "cancel",
        Request::Credit(_) => "credit",
        Request::End(_) => "end",
        Request::Exec(_) => "exec",
        Request::Signal(_) => "signal",
        Request::Resize(_) => "resize",
        Request::Push(_) => "push",
        Request::Pull(_) => "pull",
        Request::Stat(_) => "stat",
        Request::List(_) => "list",
        Request::MakeFolder(_) => "make-folder",
        Request::Remove(_) => "remove",
        Request::Follow(_) => "follow",
        Request::Facts(_) => "facts",
        Request::Sample(_) => "sample",
        Request::SetClock(_) => "set-clock",
        Request::AddEntropy(_) => "add-entropy",
        Request::Identity(_) => "identity",
        Request::Power(_) => "power",
        Request::Freeze(_) => "freeze",
        Request::Thaw(_) => "thaw",
        Request::Connect(_) => "connect",
        Request::Listen(_) => "listen",
        Request::Accept(_) => "accept",
    }
}

/// A remote error whose message may be shown.
pub(crate) fn clean(mut error: RemoteError) -> RemoteError {
    error.message = printable(&error.message);
    error
}
