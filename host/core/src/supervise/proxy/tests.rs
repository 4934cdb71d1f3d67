use super::*;
use guestline_protocol::{
    AcceptRequest, AcceptedEvent, CancelEvent, Command, CreditEvent, DoneResponse, EndEvent,
    ExecExitedEvent, ExecRequest, ExecStartedEvent, ExitStatus, FreezeRequest, HEADROOM,
    HelloRequest, PingRequest, PingResponse, ReceiveCredit, ResourceUsage, Stream, ThawRequest,
    encode,
};
use proptest::prelude::*;
use std::collections::hash_map::Entry;

const SESSION: Session = Session(7);
const BOOT: u64 = 3;

fn say(
    state: &mut ProxyState,
    channel: u32,
    request: &Request,
) -> Result<Option<Action>, Violation> {
    let body = encode(request);
    state.on_frame(FrameHead::message(SESSION, channel), &body[HEADROOM..], Some(BOOT))
}

fn hello() -> Request {
    Request::Hello(HelloRequest { min: 1, max: 1, build: String::new(), features: 0, bulk: true })
}

fn opened() -> ProxyState {
    let mut state = ProxyState::default();
    let action = say(&mut state, 5, &hello()).unwrap();
    assert_eq!(action, Some(Action::Hello { session: SESSION, channel: 5 }));
    assert!(state.open(SESSION, BOOT));
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
    Arrival::Reply(Reply::ExecExited(ExecExitedEvent {
        status: ExitStatus::Exited(0),
        output_held: false,
        cancelled: false,
        elapsed_us: 0,
        usage: ResourceUsage::default(),
        total,
    }))
}

fn data(state: &mut ProxyState, channel: u32, len: usize) -> Result<Option<Action>, Violation> {
    let head = FrameHead::data(SESSION, channel, Stream::Stdout);
    state.on_frame(head, &vec![0; len], Some(BOOT))
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
    assert_eq!(refusal(say(&mut ProxyState::default(), 1, &ping)), Some(ErrorKind::NoSession));
    let mut state = opened();
    assert!(matches!(say(&mut state, 1, &ping), Ok(Some(Action::Open { .. }))));
    let body = encode(&ping);
    for boot in [None, Some(BOOT + 1)] {
        let action = state.on_frame(FrameHead::message(SESSION, 2), &body[HEADROOM..], boot);
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
fn a_channel_lives_from_its_request_to_its_last_reply() {
    let mut state = opened();
    let action = say(&mut state, 1, &exec(100)).unwrap();
    assert!(matches!(action, Some(Action::Open { channel: 1, window: 100, .. })), "{action:?}");
    assert_eq!(state.on_arrival(1, &started(10)), Some(FrameHead::message(SESSION, 1)));
    assert_eq!(data(&mut state, 1, 10), Ok(Some(Action::Data { channel: 1, last: false })));
    let end = Request::End(EndEvent { total: 10 });
    assert_eq!(say(&mut state, 1, &end), Ok(Some(Action::End { channel: 1 })));
    let output = Arrival::Data { stream: Stream::Stderr, bytes: vec![0; 60] };
    let head = FrameHead::data(SESSION, 1, Stream::Stderr);
    assert_eq!(state.on_arrival(1, &output), Some(head));
    assert_eq!(state.granted, 40);
    let credit = Request::Credit(CreditEvent { bytes: 60 });
    assert_eq!(say(&mut state, 1, &credit), Ok(Some(Action::Grant { channel: 1, bytes: 60 })));
    assert!(state.on_arrival(1, &exited(60)).is_some());
    assert_eq!((state.granted, state.channels.len()), (0, 0));
    // What crosses the last reply is nobody's fault.
    assert_eq!(say(&mut state, 1, &credit), Ok(None));
    assert_eq!(data(&mut state, 1, 1000), Ok(None));
    assert_eq!(say(&mut state, 1, &Request::Cancel(CancelEvent {})), Ok(None));
    assert_eq!(state.on_arrival(1, &output), None);
}

#[test]
fn who_breaks_the_rules_is_told_apart() {
    type Breaks = fn(&mut ProxyState) -> Result<Option<Action>, Violation>;
    let broken: [Breaks; 5] = [
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
        |state| say(state, 1, &Request::Credit(CreditEvent { bytes: u32::MAX })),
    ];
    for (number, breaks) in broken.iter().enumerate() {
        let mut state = opened();
        say(&mut state, 1, &exec(100)).unwrap();
        state.on_arrival(1, &started(10));
        assert!(breaks(&mut state).is_err(), "{number}");
    }
}

#[test]
fn an_end_that_overtakes_its_data_waits_for_it() {
    let mut state = opened();
    say(&mut state, 1, &exec(100)).unwrap();
    state.on_arrival(1, &started(10));
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
    state.on_arrival(1, &Arrival::Reply(Reply::Accepted(AcceptedEvent { connection: 9 })));
    assert!(matches!(say(&mut state, 2, &accept), Ok(Some(Action::Open { .. }))));
    assert_eq!(refusal(say(&mut state, 3, &accept)), Some(ErrorKind::Invalid));
}

#[test]
fn a_restart_ends_the_session_once_and_a_new_one_is_not_harmed() {
    let mut state = opened();
    say(&mut state, 1, &exec(1)).unwrap();
    say(&mut state, 2, &exec(1)).unwrap();
    let (head, reply) = state.on_restart(1, BOOT).unwrap();
    assert_eq!(head, FrameHead::message(SESSION, 1));
    assert!(matches!(reply, Reply::Error(error) if error.kind == ErrorKind::NoSession));
    assert_eq!(state.on_restart(2, BOOT), None);
    state.open(Session(8), BOOT + 1);
    assert_eq!(state.on_restart(2, BOOT), None);
    assert_eq!((state.session, state.boot()), (Session(8), BOOT + 1));
}

#[test]
fn what_a_client_froze_is_known_when_it_is_gone() {
    let mut state = opened();
    for (channel, path) in [(1, "/a"), (2, "/b")] {
        let path = ByteBuf::from(path.as_bytes());
        say(&mut state, channel, &Request::Freeze(FreezeRequest { path })).unwrap();
        state.on_arrival(channel, &Arrival::Reply(Reply::Done(DoneResponse {})));
    }
    let path = ByteBuf::from(b"/a".to_vec());
    say(&mut state, 3, &Request::Thaw(ThawRequest { path })).unwrap();
    assert_eq!(state.frozen(), [ByteBuf::from(b"/b".to_vec())]);
}

#[test]
fn too_many_channels_are_refused_by_name() {
    let mut state = opened();
    let ping = Request::Ping(PingRequest { token: 1 });
    for channel in 1..=MAX_CHANNELS as u32 {
        say(&mut state, channel, &ping).unwrap();
    }
    assert_eq!(refusal(say(&mut state, 1000, &ping)), Some(ErrorKind::Busy));
    state.on_arrival(1, &Arrival::Reply(Reply::Ping(PingResponse { token: 1, clock_us: 0 })));
    assert!(matches!(say(&mut state, 1000, &ping), Ok(Some(Action::Open { .. }))));
}

#[derive(Debug, Clone)]
enum Step {
    Open(u32),
    Guest(u32, usize),
    Use(u32, usize),
    GuestGrants(u32, u32),
    Client(u32, usize),
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
        channel.prop_map(Step::Exit),
    ]
}

proptest! {
    /// A client and a guest that keep to the credit they were given are never cut off, whatever the order of things;
    /// and what is kept for the client is what it granted and has not got.
    #[test]
    fn who_keeps_the_rules_is_served(steps in prop::collection::vec(step(), 0..200)) {
        const WINDOW: u32 = 4000;
        let mut state = opened();
        // Of each channel: the client's account of what it receives, the guest's of what it may send, the client's of
        // what it may send.
        let mut model: HashMap<u32, (ReceiveCredit, SendCredit, SendCredit)> = HashMap::new();
        for step in steps {
            match step {
                Step::Open(channel) => {
                    if let Entry::Vacant(vacant) = model.entry(channel) {
                        prop_assert!(say(&mut state, channel, &exec(WINDOW)).is_ok());
                        let accounts = (ReceiveCredit::new(WINDOW), SendCredit::new(WINDOW), SendCredit::default());
                        vacant.insert(accounts);
                    }
                }
                Step::Guest(channel, len) => if let Some((receive, guest, _)) = model.get_mut(&channel) {
                    let len = len.min(guest.left());
                    guest.spend(len);
                    let arrival = Arrival::Data { stream: Stream::Stdout, bytes: vec![0; len] };
                    prop_assert!(state.on_arrival(channel, &arrival).is_some());
                    prop_assert_eq!(receive.receive(len), Ok(()));
                },
                Step::Use(channel, len) => if let Some((receive, guest, _)) = model.get_mut(&channel)
                    && let Some(credit) = receive.use_up(len.min(receive.held() as usize)) {
                    let action = say(&mut state, channel, &Request::Credit(credit.clone()));
                    prop_assert_eq!(action, Ok(Some(Action::Grant { channel, bytes: credit.bytes })));
                    guest.grant(credit.bytes);
                },
                Step::GuestGrants(channel, bytes) => if let Some((_, _, client)) = model.get_mut(&channel) {
                    let arrival = Arrival::Reply(Reply::Credit(CreditEvent { bytes }));
                    prop_assert!(state.on_arrival(channel, &arrival).is_some());
                    client.grant(bytes);
                },
                Step::Client(channel, len) => if let Some((_, _, client)) = model.get_mut(&channel) {
                    let len = len.min(client.left());
                    client.spend(len);
                    prop_assert_eq!(data(&mut state, channel, len), Ok(Some(Action::Data { channel, last: false })));
                },
                Step::Exit(channel) => if let Some((_, guest, _)) = model.remove(&channel) {
                    prop_assert!(state.on_arrival(channel, &exited(guest.sent())).is_some());
                },
            }
            let granted: u64 = model.values().map(|(_, guest, _)| guest.left() as u64).sum();
            prop_assert_eq!(state.granted, granted);
            prop_assert_eq!(state.channels.len(), model.len());
        }
    }
}
