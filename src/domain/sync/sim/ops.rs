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
    /// The next lists of that kind, so many, show nothing at all.
    EmptyLists(u8, WatchedKind, u8),
    /// Nodes may not be listed, or may again.
    NodesDenied(bool),
    /// What becomes of the next request to Consul.
    Next(Fate, Pace),
    /// From now on readings of Consul take so many milliseconds a request, and fail at that one; 3 is
    /// the reading of names, 4 that of the catalog and of the cluster's identity.
    Readings {
        each: u16,
        fails_at: Option<u8>,
    },
    /// Somebody else changes what stands in Consul.
    Drift(Drift, u8),
    /// What others have in Consul.
    Foreign(Foreign, u8),
    /// Consul is given another token.
    Token,
    /// The session of the leader ends at Consul.
    SessionEnds,
    /// A leader can no longer be sure of its lock.
    LeaseEnds(u8),
    /// A process ends at once and another one is started.
    Restart(u8),
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
    pub(super) two_ports: bool,
    /// The tag `t<n>`; Consul refuses `t3`.
    pub(super) tag: u8,
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

/// Three addresses, of which each bit stands for one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Endpoints {
    pub(super) present: u8,
    pub(super) ready: u8,
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
    /// A PTR record of another cluster's.
    PtrOfOtherCluster,
    /// A PTR record of ours that no Service claims, as a former process left it.
    PtrOfOurs,
    /// A service of others on the node of a namespace, or none any more.
    OnNode,
    /// The node of a namespace is somebody else's, or no longer.
    Node,
}

/// What a sequence is run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scenario {
    pub(super) target: Target,
    /// How many endpoints stand beside the others, so that losing them all is no everyday life.
    pub(super) crowd: bool,
    /// Whether pods have PTR records too.
    pub(super) pods_have_ptr: bool,
    /// Whether Consul is read every few seconds, so that writes are often under way meanwhile.
    pub(super) reads_often: bool,
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
    let others = (prop::bool::weighted(0.15), prop::bool::weighted(0.3), prop::bool::weighted(0.4));
    (targets, others).prop_map(|(target, (crowd, pods_have_ptr, reads_often))| Scenario {
        target,
        crowd,
        pods_have_ptr,
        reads_often,
    })
}

pub(super) fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        30 => kubernetes(),
        22 => (fates(), paces()).prop_map(|(fate, pace)| Op::Next(fate, pace)),
        10 => watches(),
        8 => consul(),
        6 => leads(),
        24 => times(),
    ]
}

fn kubernetes() -> impl Strategy<Value = Op> {
    let n = || 0..5_u8;
    prop_oneof![
        6 => (n(), shapes()).prop_map(|(n, shape)| Op::Service(n, shape)),
        3 => n().prop_map(Op::DeleteService),
        6 => (n(), 0..2_u8, endpoints()).prop_map(|(n, of, it)| Op::Slice(n, of, it)),
        2 => (n(), 0..2_u8).prop_map(|(n, of)| Op::DeleteSlice(n, of)),
        2 => (0..3_u8, any::<bool>()).prop_map(|(n, ready)| Op::Node(n, ready)),
        1 => (0..3_u8).prop_map(Op::DeleteNode),
        2 => (kinds(), n()).prop_map(|(kind, n)| Op::Undecodable(kind, n)),
    ]
}

fn shapes() -> impl Strategy<Value = Shape> {
    let modes = prop_oneof![
        6 => Just(Mode::ClusterIp),
        3 => Just(Mode::Headless),
        2 => Just(Mode::NodePort),
        1 => Just(Mode::Off),
    ];
    let names = prop_oneof![
        6 => Just(Name::Own),
        2 => Just(Name::Shared),
        1 => Just(Name::OfAnother),
        2 => Just(Name::OfMachines),
    ];
    let tags = prop_oneof![8 => 0..3_u8, 1 => Just(3)];
    (0..4_u8, modes, names, prop::bool::weighted(0.3), tags).prop_map(
        |(address, mode, name, two_ports, tag)| Shape { address, mode, name, two_ports, tag },
    )
}

fn endpoints() -> impl Strategy<Value = Endpoints> {
    (0..8_u8, 0..8_u8).prop_map(|(present, ready)| Endpoints { present, ready })
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

fn watches() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (any::<u8>(), kinds()).prop_map(|(of, kind)| Op::WatchEnds(of, kind)),
        3 => (any::<u8>(), kinds(), 1..9000_u16)
            .prop_map(|(of, kind, ms)| Op::WatchStalls(of, kind, ms)),
        2 => (any::<u8>(), kinds(), 1..3_u8)
            .prop_map(|(of, kind, lists)| Op::EmptyLists(of, kind, lists)),
        1 => prop::bool::weighted(0.7).prop_map(Op::NodesDenied),
    ]
}

fn consul() -> impl Strategy<Value = Op> {
    let drifts = prop_oneof![
        3 => Just(Drift::Deregistered),
        2 => Just(Drift::Changed),
        1 => Just(Drift::Stray),
        2 => Just(Drift::PtrRemoved),
        1 => Just(Drift::NodeRemoved),
        1 => Just(Drift::MarkerChanged),
        1 => Just(Drift::AllLost),
    ];
    let foreign = prop_oneof![
        3 => Just(Foreign::Machines),
        2 => Just(Foreign::Ptr),
        1 => Just(Foreign::PtrOfOtherCluster),
        1 => Just(Foreign::PtrOfOurs),
        1 => Just(Foreign::OnNode),
        1 => Just(Foreign::Node),
    ];
    let fails = prop_oneof![2 => Just(None), 1 => (0..5_u8).prop_map(Some)];
    prop_oneof![
        3 => (prop_oneof![Just(1_u16), 1..3000_u16], fails)
            .prop_map(|(each, fails_at)| Op::Readings { each, fails_at }),
        3 => (drifts, any::<u8>()).prop_map(|(drift, n)| Op::Drift(drift, n)),
        3 => (foreign, any::<u8>()).prop_map(|(foreign, n)| Op::Foreign(foreign, n)),
        2 => Just(Op::Token),
    ]
}

fn leads() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => Just(Op::SessionEnds),
        3 => any::<u8>().prop_map(Op::LeaseEnds),
        2 => any::<u8>().prop_map(Op::Restart),
    ]
}

fn times() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => 1..10_u32,
        4 => 10..3000_u32,
        2 => 3000..35_000_u32,
        1 => 60_000..100_000_u32,
    ]
    .prop_map(Op::Pass)
}
