use super::*;
use crate::link::scripted;
use crate::supervise::budget::SHARE;
use guestline_protocol::{
    AcceptRequest, AcceptedEvent, CancelEvent, Command, CreditEvent, DoneResponse, EndEvent,
    ExecRequest, ExecStartedEvent, FreezeRequest, HEADROOM, HelloRequest, MAX_CHANNELS,
    PingRequest, PingResponse, ReceiveCredit, SendCredit, Stream, ThawRequest, VERSION, encode,
};
use proptest::prelude::*;
use std::collections::hash_map::Entry;

const SESSION: Session = Session(7);
const EPOCH: u64 = 3;

fn say(
    state: &mut ProxyState,
    channel: u32,
    request: &Request,
) -> Result<Option<Action>, Violation> {
    let body = encode(request);
    state.on_frame(FrameHead::message(SESSION, channel), &body[HEADROOM..], Some(EPOCH))
}

fn hello() -> Request {
    Request::Hello(HelloRequest { min: 1, max: 1, build: String::new(), features: 0, bulk: true })
}

fn state() -> ProxyState {
    ProxyState::new(Arc::default())
}

/// What comes for the channel that is open under this id.
fn arrive(state: &mut ProxyState, channel: u32, arrival: &Arrival) -> Option<FrameHead> {
    let opening = state.channels.get(&channel)?.opening;
    state.on_arrival(opening, arrival)
}

/// All that has come on a channel is written.
fn written(state: &mut ProxyState, channel: u32, is_last: bool) {
    if let Some(Proxied { opening, queued, .. }) = state.channels.get(&channel) {
        state.on_written(*opening, *queued as usize, is_last);
    }
}

fn output(len: usize) -> Arrival {
    Arrival::Data { stream: Stream::Stdout, bytes: vec![0; len] }
}

fn opened() -> ProxyState {
    opened_with(Arc::default())
}

fn opened_with(budget: Arc<Budget>) -> ProxyState {
    let mut state = ProxyState::new(budget);
    let action = say(&mut state, 5, &hello()).unwrap();
    assert_eq!(action, Some(Action::Hello { session: SESSION, channel: 5 }));
    assert!(state.open(SESSION, EPOCH));
    state
}

fn exec(credit: u32) -> Request {
    let command = Command::Shell(ByteBuf::from(b"cat".to_vec()));
    Request::Exec(ExecRequest { credit, ..ExecRequest::new(command) })
}

fn started(credit: u32) -> Arrival {
    Arrival::Reply(Reply::ExecStarted(ExecStartedEvent { pid: 1, credit }))
}

fn exited(total: u64) -> Arrival {
    Arrival::Reply(scripted::exited(total))
}

fn data(state: &mut ProxyState, channel: u32, len: usize) -> Result<Option<Action>, Violation> {
    let head = FrameHead::data(SESSION, channel, Stream::Stdout);
    state.on_frame(head, &vec![0; len], Some(EPOCH))
}

fn refusal(action: Result<Option<Action>, Violation>) -> Option<ErrorKind> {
    match action {
        Ok(Some(Action::Answer { reply: Reply::Error(error), .. })) => Some(error.kind),
        _ => None,
    }
}

#[test]
fn nothing_is_done_without_a_session_of_this_boot() {
    let ping = Request::Ping(PingRequest { token: 1 });
    assert_eq!(refusal(say(&mut state(), 1, &ping)), Some(ErrorKind::NoSession));
    let mut state = opened();
    assert!(matches!(say(&mut state, 1, &ping), Ok(Some(Action::Open { .. }))));
    let body = encode(&ping);
    for epoch in [None, Some(EPOCH + 1)] {
        let action = state.on_frame(FrameHead::message(SESSION, 2), &body[HEADROOM..], epoch);
        assert_eq!(refusal(action), Some(ErrorKind::NoSession));
    }
    let newer = HelloRequest {
        min: VERSION + 1,
        max: VERSION + 2,
        build: String::new(),
        features: 0,
        bulk: false,
    };
    assert_eq!(refusal(say(&mut state, 3, &Request::Hello(newer))), Some(ErrorKind::Version));
}

#[test]
fn a_channel_lives_from_its_request_until_its_last_reply_is_written() {
    let mut state = opened();
    let action = say(&mut state, 1, &exec(100)).unwrap();
    let Some(Action::Open { opening, window: 100, .. }) = action else { panic!("{action:?}") };
    assert_eq!(state.on_arrival(opening, &started(10)), Some(FrameHead::message(SESSION, 1)));
    assert_eq!(data(&mut state, 1, 10), Ok(Some(Action::Data { channel: 1, last: false })));
    let end = Request::End(EndEvent { total: 10 });
    assert_eq!(say(&mut state, 1, &end), Ok(Some(Action::End { channel: 1 })));
    let errors = Arrival::Data { stream: Stream::Stderr, bytes: vec![0; 60] };
    let head = FrameHead::data(SESSION, 1, Stream::Stderr);
    assert_eq!(state.on_arrival(opening, &errors), Some(head));
    let credit = Request::Credit(CreditEvent { bytes: 60 });
    assert_eq!(say(&mut state, 1, &credit), Ok(Some(Action::Grant { channel: 1, bytes: 60 })));
    assert!(state.on_arrival(opening, &exited(60)).is_some());
    assert!(!state.budget.is_untouched());
    state.on_written(opening, 60, false);
    state.on_written(opening, 0, true);
    assert!(state.budget.is_untouched());
    // What crosses the last reply is nobody's fault.
    assert_eq!(say(&mut state, 1, &credit), Ok(None));
    assert_eq!(data(&mut state, 1, 1000), Ok(None));
    assert_eq!(say(&mut state, 1, &Request::Cancel(CancelEvent {})), Ok(None));
    assert_eq!(state.on_arrival(opening, &errors), None);
}

#[test]
fn what_is_late_for_a_channel_is_not_taken_for_the_next_one_of_its_id() {
    let mut state = opened();
    let mut openings = Vec::new();
    for session in [SESSION, Session(8)] {
        state.open(session, EPOCH);
        let body = encode(&exec(100));
        let head = FrameHead::message(session, 1);
        let action = state.on_frame(head, &body[HEADROOM..], Some(EPOCH)).unwrap();
        let Some(Action::Open { opening, .. }) = action else { panic!("{action:?}") };
        openings.push(opening);
    }
    assert_eq!(state.on_arrival(openings[0], &output(5)), None);
    assert_eq!(state.on_arrival(openings[0], &exited(5)), None);
    assert!(state.on_arrival(openings[1], &output(5)).is_some());
}

#[test]
fn clients_together_hold_what_the_budget_has_and_nobody_stands_still() {
    const WINDOW: u32 = 1024 * 1024;
    let budget = Arc::<Budget>::default();
    let mut clients: Vec<ProxyState> = (0..50).map(|_| opened_with(budget.clone())).collect();
    let mut granted = 0;
    for state in &mut clients {
        for channel in [1, 2] {
            let action = say(state, channel, &exec(WINDOW)).unwrap();
            let Some(Action::Open { request, window, .. }) = action else { panic!("{action:?}") };
            assert!(window >= SHARE as u32);
            assert!(matches!(*request, Request::Exec(exec) if exec.credit == window));
            granted += u64::from(window);
        }
    }
    // A hundred windows of a megabyte.
    assert!((24 << 20..40 << 20).contains(&granted), "{granted}");
    let last = clients.last_mut().unwrap();
    assert!(last.is_short() && last.pass_on().is_empty());
    // It gets on by its own share.
    assert!(arrive(last, 1, &output(SHARE as usize)).is_some());
    assert!(last.pass_on().is_empty());
    written(last, 1, false);
    assert_eq!(last.pass_on(), [(1, SHARE as u32)]);
    // And by all that it wants when others have left.
    let mut last = clients.pop().unwrap();
    clients.clear();
    let more: u32 = last.pass_on().iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(u64::from(more), u64::from(2 * WINDOW) - 3 * SHARE);
    assert!(!last.is_short());
    drop(last);
    assert!(budget.is_untouched());
}

#[test]
fn who_was_granted_much_at_first_gets_it_again_whoever_else_came_meanwhile() {
    const WINDOW: u64 = 1 << 20;
    let budget = Arc::<Budget>::default();
    let mut state = opened_with(budget.clone());
    say(&mut state, 1, &exec(WINDOW as u32)).unwrap();
    arrive(&mut state, 1, &output(WINDOW as usize));
    let mut greedy = opened_with(budget);
    for channel in 1..100 {
        say(&mut greedy, channel, &exec(WINDOW as u32)).unwrap();
    }
    assert!(greedy.is_short());
    written(&mut state, 1, false);
    let credit = Request::Credit(CreditEvent { bytes: WINDOW as u32 });
    let action = say(&mut state, 1, &credit);
    assert_eq!(action, Ok(Some(Action::Grant { channel: 1, bytes: WINDOW as u32 })));
}

#[test]
fn what_is_not_written_is_not_granted_again() {
    let mut state = opened();
    say(&mut state, 1, &exec(1 << 20)).unwrap();
    let mut got = 0;
    // The client grants as if it read all that comes, and reads nothing.
    for _ in 0..1000 {
        let lent = state.channels[&1].lent as usize;
        if lent == 0 {
            break;
        }
        got += lent;
        assert!(arrive(&mut state, 1, &output(lent)).is_some());
        let credit = Request::Credit(CreditEvent { bytes: lent as u32 });
        say(&mut state, 1, &credit).unwrap();
    }
    assert!(got <= 25 << 20, "{got}");
    assert!(state.is_short());
}

#[test]
fn who_breaks_the_rules_is_told_apart() {
    type Breaks = fn(&mut ProxyState) -> Result<Option<Action>, Violation>;
    let broken: [Breaks; 4] = [
        |state| data(state, 1, 11),
        |state| say(state, 1, &exec(1)),
        |state| {
            data(state, 1, 2)?;
            say(state, 1, &Request::End(EndEvent { total: 1 }))
        },
        |state| {
            say(state, 1, &Request::End(EndEvent { total: 0 }))?;
            data(state, 1, 1)
        },
    ];
    for (number, breaks) in broken.iter().enumerate() {
        let mut state = opened();
        say(&mut state, 1, &exec(100)).unwrap();
        arrive(&mut state, 1, &started(10));
        assert!(breaks(&mut state).is_err(), "{number}");
    }
}

#[test]
fn an_end_that_overtakes_its_data_waits_for_it() {
    let mut state = opened();
    say(&mut state, 1, &exec(100)).unwrap();
    arrive(&mut state, 1, &started(10));
    assert_eq!(say(&mut state, 1, &Request::End(EndEvent { total: 10 })), Ok(None));
    assert_eq!(data(&mut state, 1, 4), Ok(Some(Action::Data { channel: 1, last: false })));
    assert_eq!(data(&mut state, 1, 6), Ok(Some(Action::Data { channel: 1, last: true })));
    assert!(say(&mut state, 1, &Request::End(EndEvent { total: 10 })).is_err());
}

#[test]
fn a_connection_is_accepted_by_whoever_was_told_of_it() {
    let mut state = opened();
    let accept = Request::Accept(AcceptRequest { connection: 9, credit: 1 });
    assert_eq!(refusal(say(&mut state, 2, &accept)), Some(ErrorKind::Invalid));
    let listen = guestline_protocol::ListenRequest {
        address: guestline_protocol::SocketAddress::Unix(ByteBuf::from(b"/s".to_vec())),
    };
    say(&mut state, 1, &Request::Listen(listen)).unwrap();
    arrive(&mut state, 1, &Arrival::Reply(Reply::Accepted(AcceptedEvent { connection: 9 })));
    assert!(matches!(say(&mut state, 2, &accept), Ok(Some(Action::Open { .. }))));
    assert_eq!(refusal(say(&mut state, 3, &accept)), Some(ErrorKind::Invalid));
}

#[test]
fn a_restart_ends_the_session_once_and_a_new_one_is_not_harmed() {
    let mut state = opened();
    say(&mut state, 1, &exec(1)).unwrap();
    say(&mut state, 2, &exec(1)).unwrap();
    let (head, reply) = state.on_restart(1, EPOCH).unwrap();
    assert_eq!(head, FrameHead::message(SESSION, 1));
    assert!(matches!(reply, Reply::Error(error) if error.kind == ErrorKind::NoSession));
    assert_eq!(state.on_restart(2, EPOCH), None);
    state.open(Session(8), EPOCH + 1);
    assert_eq!(state.on_restart(2, EPOCH), None);
    assert_eq!((state.session, state.epoch()), (Session(8), EPOCH + 1));
}

#[test]
fn what_came_before_a_restart_is_kept_count_of_until_it_is_written() {
    let mut state = opened();
    say(&mut state, 1, &exec(1 << 20)).unwrap();
    say(&mut state, 2, &exec(1 << 20)).unwrap();
    let opening = state.channels[&1].opening;
    assert!(state.on_arrival(opening, &output(100_000)).is_some());
    assert!(state.on_restart(2, EPOCH).is_some());
    assert_eq!(state.on_arrival(opening, &output(1)), None);
    assert_eq!(state.budget.pooled(), 100_000);
    assert!(!state.is_short());
    state.on_written(opening, 100_000, false);
    assert!(state.budget.is_untouched());
}

fn freeze(state: &mut ProxyState, channel: u32, path: &str) -> Opening {
    let path = ByteBuf::from(path.as_bytes());
    match say(state, channel, &Request::Freeze(FreezeRequest { path })).unwrap() {
        Some(Action::Open { opening, .. }) => opening,
        other => panic!("{other:?}"),
    }
}

fn done() -> Arrival {
    Arrival::Reply(Reply::Done(DoneResponse {}))
}

fn refused() -> Arrival {
    Arrival::Reply(Reply::Error(RemoteError::new(ErrorKind::System, "it is frozen already")))
}

#[test]
fn what_a_client_froze_is_known_when_it_is_gone() {
    let mut state = opened();
    for (channel, path) in [(1, "/a"), (2, "/b")] {
        let opening = freeze(&mut state, channel, path);
        state.on_arrival(opening, &done());
    }
    // Somebody else froze that.
    let opening = freeze(&mut state, 3, "/others");
    state.on_arrival(opening, &refused());
    let path = ByteBuf::from(b"/a".to_vec());
    say(&mut state, 4, &Request::Thaw(ThawRequest { path })).unwrap();
    assert_eq!(state.leave(), [ByteBuf::from(b"/b".to_vec())]);
    assert!(state.budget.is_untouched());
}

#[test]
fn what_is_frozen_only_when_the_client_is_gone_is_known_too() {
    let mut state = opened();
    let openings = [freeze(&mut state, 1, "/a"), freeze(&mut state, 2, "/others")];
    // A new session of the same client does not forget it.
    state.open(Session(8), EPOCH);
    assert_eq!(state.leave(), Vec::<ByteBuf>::new());
    assert_eq!(state.on_arrival(openings[1], &refused()), None);
    assert_eq!(state.frozen_late(), Vec::<ByteBuf>::new());
    assert_eq!(state.on_arrival(openings[0], &done()), None);
    assert_eq!(state.frozen_late(), [ByteBuf::from(b"/a".to_vec())]);
}

#[test]
fn too_many_channels_of_all_clients_are_refused_by_name() {
    let budget = Arc::<Budget>::default();
    let (mut state, mut other) = (opened_with(budget.clone()), opened_with(budget));
    let ping = Request::Ping(PingRequest { token: 1 });
    for channel in 1..=MAX_CHANNELS as u32 {
        say(&mut state, channel, &ping).unwrap();
    }
    assert_eq!(refusal(say(&mut other, 1, &ping)), Some(ErrorKind::Busy));
    let pong = Reply::Ping(PingResponse { token: 1, clock_us: 0 });
    arrive(&mut state, 1, &Arrival::Reply(pong));
    written(&mut state, 1, true);
    assert!(matches!(say(&mut other, 1, &ping), Ok(Some(Action::Open { .. }))));
}

#[derive(Debug, Clone)]
enum Step {
    Open(u32),
    Guest(u32, usize),
    Use(u32, usize),
    GuestGrants(u32, u32),
    Client(u32, usize),
    Written(u32),
    Exit(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let channel = 1..4_u32;
    prop_oneof![
        channel.clone().prop_map(Step::Open),
        (channel.clone(), 0..5000_usize).prop_map(|(channel, len)| Step::Guest(channel, len)),
        (channel.clone(), 0..5000_usize).prop_map(|(channel, len)| Step::Use(channel, len)),
        (channel.clone(), 0..5000_u32).prop_map(|(channel, len)| Step::GuestGrants(channel, len)),
        (channel.clone(), 0..5000_usize).prop_map(|(channel, len)| Step::Client(channel, len)),
        channel.clone().prop_map(Step::Written),
        channel.prop_map(Step::Exit),
    ]
}

proptest! {
    /// A client and a guest that keep to the credit they were given are never cut off, whatever the order of things;
    /// what the guest may send never exceeds what the client granted; and all is given back at the end.
    #[test]
    fn who_keeps_the_rules_is_served(
        window in prop_oneof![Just(4000_u32), Just(200_000_u32)],
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut state = opened();
        let budget = state.budget.clone();
        // Of each channel: the client's account of what it receives, the guest's of what it may send, the client's of
        // what it may send.
        let mut model: HashMap<u32, (ReceiveCredit, SendCredit, SendCredit)> = HashMap::new();
        for step in steps {
            match step {
                Step::Open(channel) => {
                    if let Entry::Vacant(vacant) = model.entry(channel)
                        && !state.channels.contains_key(&channel)
                    {
                        let action = say(&mut state, channel, &exec(window)).unwrap();
                        let Some(Action::Open { window: passed, .. }) = action else { panic!() };
                        let (receive, send) = (ReceiveCredit::new(window), SendCredit::new(passed));
                        vacant.insert((receive, send, SendCredit::default()));
                    }
                }
                Step::Guest(channel, len) => if let Some((receive, guest, _)) = model.get_mut(&channel) {
                    let len = len.min(guest.left());
                    guest.spend(len);
                    prop_assert!(arrive(&mut state, channel, &output(len)).is_some());
                    prop_assert_eq!(receive.receive(len), Ok(()));
                },
                Step::Use(channel, len) => if let Some((receive, guest, _)) = model.get_mut(&channel)
                    && let Some(credit) = receive.use_up(len.min(receive.held() as usize)) {
                    match say(&mut state, channel, &Request::Credit(credit)) {
                        Ok(Some(Action::Grant { bytes, .. })) => guest.grant(bytes),
                        other => prop_assert_eq!(other, Ok(None)),
                    }
                },
                Step::GuestGrants(channel, bytes) => if let Some((_, _, client)) = model.get_mut(&channel) {
                    let arrival = Arrival::Reply(Reply::Credit(CreditEvent { bytes }));
                    prop_assert!(arrive(&mut state, channel, &arrival).is_some());
                    client.grant(bytes);
                },
                Step::Client(channel, len) => if let Some((_, _, client)) = model.get_mut(&channel) {
                    let len = len.min(client.left());
                    client.spend(len);
                    prop_assert_eq!(data(&mut state, channel, len), Ok(Some(Action::Data { channel, last: false })));
                },
                Step::Written(channel) => {
                    let is_over = !model.contains_key(&channel);
                    written(&mut state, channel, is_over);
                    for (channel, bytes) in state.pass_on() {
                        if let Some((_, guest, _)) = model.get_mut(&channel) {
                            guest.grant(bytes);
                        }
                    }
                }
                Step::Exit(channel) => if let Some((_, guest, _)) = model.remove(&channel) {
                    prop_assert!(arrive(&mut state, channel, &exited(guest.sent())).is_some());
                },
            }
            for (channel, (receive, guest, _)) in &model {
                prop_assert_eq!(state.channels[channel].lent, guest.left() as u64);
                prop_assert!(guest.sent() + guest.left() as u64 <= receive.granted());
            }
            for open in state.channels.values() {
                prop_assert!(open.lent + open.queued <= SHARE + open.pooled);
            }
            let pooled: u64 = state.channels.values().map(|open| open.pooled).sum();
            prop_assert_eq!(pooled, budget.pooled());
        }
        drop(state);
        prop_assert!(budget.is_untouched());
    }
}
