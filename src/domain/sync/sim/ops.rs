//! What may happen in a sequence, and how often each of it does.

use std::time::Duration;

use proptest::prelude::*;

/// One thing that happens. Numbers are taken modulo what there is, so that any sequence of
/// operations is one that can be run: what is left of it while it is shrunk, too.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Op {
    /// Service `s<n>` is created or changed.
    Service(u8, Shape),
    DeleteService(u8),
    /// The Services of the crowd of which this mask has the bit.
    Crowd(u8, Crowd),
    /// A slice of Service `s<n>` is created or changed: the second number tells its slices apart.
    Slice(u8, u8, Endpoints),
    DeleteSlice(u8, u8),
    /// Node `n<n>`, ready or not.
    Node(u8, bool),
    DeleteNode(u8),
    /// From now on, and until its next change, the object does not decode.
    Undecodable(WatchedKind, u8),
    /// A watch ends: its kind is listed again.
    WatchEnds(u8, WatchedKind),
    /// A watch says nothing for so many milliseconds.
    WatchStalls(u8, WatchedKind, u16),
    /// The next lists of that kind, so many, lack the objects that this mask hides; 255: all.
    Lists(u8, WatchedKind, u8, u8),
    /// Nodes may not be listed, or may again.
    NodesDenied(bool),
    /// What becomes of the next request to Consul.
    Next(Fate, Pace),
    /// For so many milliseconds this becomes of every request.
    Outage(Fate, u16),
    /// From now on readings of Consul take so many milliseconds a request, and fail at that one; 3 is
    /// the reading of names, 4 that of the catalog and of the cluster's identity.
    Readings {
        each: u16,
        fails_at: Option<u8>,
    },
    /// Somebody else changes what stands in Consul.
    Drift(Drift, u8),
    /// Somebody does this to the same record each so many milliseconds, so many times.
    Fight(Drift, u8, u16, u8),
    /// What others have in Consul.
    Foreign(Foreign, u8),
    /// Consul is given another token.
    Token,
    /// The session of the leader ends at Consul.
    SessionEnds,
    /// A leader can no longer be sure of its lock.
    LeaseEnds(u8),
    /// A process ends at once, and another one is started after so many milliseconds.
    Restart(u8, u16),
    /// Time passes: so many milliseconds.
    Pass(u32),
}

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatchedKind {
    Services,
    Slices,
    Nodes,
}

/// A Service.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    /// Which of four addresses: two Services may share one, and with it a PTR record.
    pub(super) address: u8,
    pub(super) mode: Mode,
    pub(super) name: Name,
    pub(super) second: Second,
    /// The tag `t<n>`; Consul refuses `t3`, and fails at `t4` each time.
    pub(super) tag: u8,
    /// Whether it may join a name that others hold.
    pub(super) joins: bool,
}

/// The port that a Service may have beside `http` 80.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Second {
    None,
    /// `admin` 81.
    Tcp,
    /// The same number as the first, and another protocol.
    Udp,
}

/// What becomes of Services of the crowd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crowd {
    /// All its endpoints are there and ready.
    Ready,
    NotReady,
    /// Few endpoints are left.
    Few,
    /// It is not to be registered.
    Off,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    ClusterIp,
    Headless,
    NodePort,
    /// Not registered.
    Off,
}

/// The Consul name that a Service wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Own,
    /// By annotation, as others do.
    Shared,
    /// By annotation that of Service `s1`.
    OfAnother,
    /// By annotation one that machines may have.
    OfMachines,
}

/// Three addresses, of which each bit stands for one. Two slices of a Service share them: they
/// tell its ports apart.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Endpoints {
    pub(super) present: u8,
    pub(super) ready: u8,
    /// Whether they serve another port than they used to.
    pub(super) moved: bool,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Applied,
    Denied,
    Failed,
    /// No answer, and never applied.
    Lost,
    /// No answer, and applied all the same.
    AppliedUnanswered,
    /// No answer, and applied so many milliseconds later.
    AppliedLate(u16),
    /// The first half is applied, the other one fails.
    HalfFailed,
    /// The first half is applied, the other one gets no answer.
    HalfUnanswered,
}

/// How many milliseconds a request and its answer are on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace(pub(super) u16, pub(super) u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drift {
    /// One of our registrations is removed.
    Deregistered,
    /// One of our registrations is changed.
    Changed,
    /// One with our mark appears that no Service has.
    Stray,
    /// One of our PTR records is removed.
    PtrRemoved,
    /// The node of a namespace goes with all that is on it.
    NodeRemoved,
    /// The marker, which has all be read at once.
    MarkerChanged,
    /// All is lost, the marker too.
    AllLost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// Machines come, or go, under the name [`Name::OfMachines`], or under that of Service `s1`.
    Machines,
    /// A PTR record of somebody's, or none any more.
    Ptr,
    /// The bridge of another cluster claims a PTR key, or does no longer: it writes the record where
    /// there is none, and removes only its own.
    PtrOfOtherCluster,
    /// A check on a registration of ours: maintenance mode, say.
    Check,
    /// A PTR record of ours that no Service claims, as a former process left it.
    PtrOfOurs,
    /// A service of others on the node of a namespace, or none any more.
    OnNode,
    /// The node of a namespace is somebody else's, or no longer.
    Node,
}

/// What a sequence is run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent")]
pub(super) struct Scenario {
    pub(super) target: Target,
    /// How many endpoints stand beside the others, so that losing them all is no everyday life.
    pub(super) crowd: bool,
    /// Whether pods have PTR records too.
    pub(super) pods_have_ptr: bool,
    /// Whether Consul is read every few seconds, so that writes are often under way meanwhile.
    pub(super) reads_often: bool,
    /// Whether namespace `b` is trusted: its Services come first for a name.
    pub(super) trusts: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Agent,
    Catalog,
    /// Several bridges that elect a leader.
    Elected,
}

// === impl Scenario ===

impl Scenario {
    /// Between two readings of Consul.
    pub(super) fn resync(self) -> Duration {
        Duration::from_secs(if self.reads_often { 2 } else { 60 })
    }
}

pub(super) fn scenarios() -> impl Strategy<Value = Scenario> {
    let targets = prop_oneof![
        2 => Just(Target::Agent),
        2 => Just(Target::Catalog),
        3 => Just(Target::Elected),
    ];
    let flag = prop::bool::weighted;
    let others = (flag(0.2), flag(0.3), flag(0.4), flag(0.3));
    (targets, others).prop_map(|(target, (crowd, pods_have_ptr, reads_often, trusts))| Scenario {
        target,
        crowd,
        pods_have_ptr,
        reads_often,
        trusts,
    })
}

/// How much more often than usual each kind of event happens in a sequence: some do not happen in
/// it at all and others all the time, so that what is rare together meets.
pub(super) fn preferences() -> impl Strategy<Value = Vec<u32>> {
    let one = prop_oneof![2 => Just(0_u32), 4 => Just(2), 3 => Just(6), 1 => Just(20)];
    prop::collection::vec(one, kinds_of_ops().len())
}

/// Operations of which each kind is as frequent as [`preferences`] say.
pub(super) fn ops(preferences: &[u32]) -> impl Strategy<Value = Op> + use<> {
    let kinds = kinds_of_ops().into_iter().zip(preferences);
    let weighted = kinds.map(|((weight, kind), preferred)| (weight * preferred, kind));
    // Time passes in any sequence.
    let kinds: Vec<_> = weighted.chain([(10, times())]).filter(|(weight, _)| *weight > 0).collect();
    prop::strategy::Union::new_weighted(kinds)
}

/// What may happen, and how often it usually does.
fn kinds_of_ops() -> Vec<(u32, BoxedStrategy<Op>)> {
    let n = || 0..5_u8;
    let of = any::<u8>;
    vec![
        (10, (n(), shapes()).prop_map(|(n, shape)| Op::Service(n, shape)).boxed()),
        (4, n().prop_map(Op::DeleteService).boxed()),
        (9, (n(), 0..2_u8, endpoints()).prop_map(|(n, of, it)| Op::Slice(n, of, it)).boxed()),
        (3, (n(), 0..2_u8).prop_map(|(n, of)| Op::DeleteSlice(n, of)).boxed()),
        (2, (0..3_u8, any::<bool>()).prop_map(|(n, ready)| Op::Node(n, ready)).boxed()),
        (1, (0..3_u8).prop_map(Op::DeleteNode).boxed()),
        (5, (kinds(), n()).prop_map(|(kind, n)| Op::Undecodable(kind, n)).boxed()),
        (5, crowds().boxed()),
        (20, (fates(), paces()).prop_map(|(fate, pace)| Op::Next(fate, pace)).boxed()),
        (2, (fates(), 1..20_000_u16).prop_map(|(fate, ms)| Op::Outage(fate, ms)).boxed()),
        (3, (of(), kinds()).prop_map(|(of, kind)| Op::WatchEnds(of, kind)).boxed()),
        (
            3,
            (of(), kinds(), 1..9000_u16)
                .prop_map(|(of, kind, ms)| Op::WatchStalls(of, kind, ms))
                .boxed(),
        ),
        (
            2,
            (of(), kinds(), 1..3_u8, prop_oneof![Just(255_u8), any::<u8>()])
                .prop_map(|(of, kind, lists, hidden)| Op::Lists(of, kind, lists, hidden))
                .boxed(),
        ),
        (2, prop::bool::weighted(0.7).prop_map(Op::NodesDenied).boxed()),
        (3, readings().boxed()),
        (3, (drifts(), of()).prop_map(|(drift, n)| Op::Drift(drift, n)).boxed()),
        (
            1,
            (drifts(), of(), 1000..30_000_u16, 2..40_u8)
                .prop_map(|(drift, n, each, times)| Op::Fight(drift, n, each, times))
                .boxed(),
        ),
        (4, (foreign(), of()).prop_map(|(foreign, n)| Op::Foreign(foreign, n)).boxed()),
        (2, Just(Op::Token).boxed()),
        (2, Just(Op::SessionEnds).boxed()),
        (3, of().prop_map(Op::LeaseEnds).boxed()),
        (
            5,
            (of(), prop_oneof![1 => Just(1_u16), 1 => 1..30_000_u16])
                .prop_map(|(n, ms)| Op::Restart(n, ms))
                .boxed(),
        ),
        (14, times()),
    ]
}

fn shapes() -> impl Strategy<Value = Shape> {
    let modes = prop_oneof![
        6 => Just(Mode::ClusterIp),
        3 => Just(Mode::Headless),
        3 => Just(Mode::NodePort),
        1 => Just(Mode::Off),
    ];
    let names = prop_oneof![
        6 => Just(Name::Own),
        2 => Just(Name::Shared),
        1 => Just(Name::OfAnother),
        2 => Just(Name::OfMachines),
    ];
    let seconds =
        prop_oneof![5 => Just(Second::None), 2 => Just(Second::Tcp), 1 => Just(Second::Udp)];
    let tags = prop_oneof![16 => 0..3_u8, 2 => Just(3), 1 => Just(4)];
    let shapes = (0..4_u8, modes, names, seconds, tags, prop::bool::weighted(0.1));
    shapes.prop_map(|(address, mode, name, second, tag, joins)| Shape {
        address,
        mode,
        name,
        second,
        tag,
        joins,
    })
}

fn endpoints() -> impl Strategy<Value = Endpoints> {
    (0..8_u8, 0..8_u8, prop::bool::weighted(0.2)).prop_map(|(present, ready, moved)| Endpoints {
        present,
        ready,
        moved,
    })
}

fn crowds() -> impl Strategy<Value = Op> {
    let states = prop_oneof![
        3 => Just(Crowd::Ready),
        1 => Just(Crowd::NotReady),
        1 => Just(Crowd::Few),
        2 => Just(Crowd::Off),
        1 => Just(Crowd::Gone),
    ];
    (prop_oneof![Just(255_u8), any::<u8>()], states)
        .prop_map(|(which, state)| Op::Crowd(which, state))
}

fn kinds() -> impl Strategy<Value = WatchedKind> {
    prop_oneof![
        3 => Just(WatchedKind::Services),
        3 => Just(WatchedKind::Slices),
        1 => Just(WatchedKind::Nodes),
    ]
}

fn fates() -> impl Strategy<Value = Fate> {
    prop_oneof![
        5 => Just(Fate::Applied),
        2 => Just(Fate::Failed),
        1 => Just(Fate::Denied),
        1 => Just(Fate::Lost),
        2 => Just(Fate::AppliedUnanswered),
        2 => (1000..29_000_u16).prop_map(Fate::AppliedLate),
        1 => Just(Fate::HalfFailed),
        1 => Just(Fate::HalfUnanswered),
    ]
}

fn paces() -> impl Strategy<Value = Pace> {
    let one = || prop_oneof![3 => Just(1_u16), 2 => 2..100_u16, 1 => 100..9000_u16];
    (one(), one()).prop_map(|(there, back)| Pace(there, back))
}

fn readings() -> impl Strategy<Value = Op> {
    let fails = prop_oneof![2 => Just(None), 1 => (0..5_u8).prop_map(Some)];
    (prop_oneof![Just(1_u16), 1..3000_u16], fails)
        .prop_map(|(each, fails_at)| Op::Readings { each, fails_at })
}

fn drifts() -> impl Strategy<Value = Drift> {
    prop_oneof![
        3 => Just(Drift::Deregistered),
        2 => Just(Drift::Changed),
        1 => Just(Drift::Stray),
        2 => Just(Drift::PtrRemoved),
        1 => Just(Drift::NodeRemoved),
        1 => Just(Drift::MarkerChanged),
        1 => Just(Drift::AllLost),
    ]
}

fn foreign() -> impl Strategy<Value = Foreign> {
    prop_oneof![
        3 => Just(Foreign::Machines),
        2 => Just(Foreign::Ptr),
        2 => Just(Foreign::PtrOfOtherCluster),
        1 => Just(Foreign::PtrOfOurs),
        1 => Just(Foreign::OnNode),
        1 => Just(Foreign::Node),
        1 => Just(Foreign::Check),
    ]
}

fn times() -> BoxedStrategy<Op> {
    prop_oneof![
        5 => 1..10_u32,
        4 => 10..3000_u32,
        2 => 3000..35_000_u32,
        1 => 60_000..300_000_u32,
    ]
    .prop_map(Op::Pass)
    .boxed()
}
