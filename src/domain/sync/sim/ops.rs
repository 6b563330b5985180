//! What may happen in a sequence, and how often each of it does.

use std::time::Duration;

use proptest::prelude::*;

/// One thing that happens. Numbers are taken modulo what there is, so that any sequence of
/// operations is one that can be run: what is left of it while it is shrunk, too.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Op {
    /// Service `s<n>` is created or changed.
    Service(u8, Shape),
    /// One thing of Service `s<n>` changes, if there is one.
    Alter(u8, Aspect),
    DeleteService(u8),
    /// The Services of the crowd of which this mask has the bit.
    Crowd(u8, Crowd),
    /// A slice of Service `s<n>` is created or changed: the second number tells its slices apart.
    Slice(u8, u8, Endpoints),
    DeleteSlice(u8, u8),
    /// Node `n<n>`, ready or not.
    Node(u8, bool),
    DeleteNode(u8),
    /// From now on, and until its next change, the object does not decode; [`ALL`]: all of its kind.
    Undecodable(WatchedKind, u8),
    /// A watch ends: so many milliseconds later its kind is listed again.
    WatchEnds(u8, WatchedKind, u16),
    /// A watch says nothing for so many milliseconds, and then all that has happened at once.
    WatchStalls(u8, WatchedKind, u16),
    /// The next lists of that kind, so many, lack the objects that this mask hides; 255: all.
    Lists(u8, WatchedKind, u8, u8),
    /// Nodes may not be listed, or may again.
    NodesDenied(bool),
    /// What becomes of the next request to Consul.
    Next(Fate, Pace),
    /// What becomes of the next removal of a namespace's node.
    NextNode(Fate, Pace),
    /// For so many milliseconds this becomes of every request.
    Outage(Fate, u16),
    /// For so many milliseconds every request takes that long.
    Slow(Pace, u16),
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
    /// Consul is asked at another address: all is read at once.
    Address,
    /// The session of the leader ends at Consul.
    SessionEnds,
    /// A leader can no longer be sure of its lock.
    LeaseEnds(u8),
    /// A process ends at once, and another one is started after so many milliseconds.
    Restart(u8, u16),
    /// Time passes: so many milliseconds.
    Pass(u32),
}

/// In place of the number of one object.
pub(super) const ALL: u8 = 255;

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

/// One thing of a [`Shape`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aspect {
    Address(u8),
    Mode(Mode),
    Name(Name),
    Second(Second),
    Tag(u8),
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
    let others = (flag(0.3), flag(0.3), flag(0.4), flag(0.3));
    (targets, others).prop_map(|(target, (crowd, pods_have_ptr, reads_often, trusts))| Scenario {
        target,
        crowd,
        pods_have_ptr,
        reads_often,
        trusts,
    })
}

/// How much more often than usual each choice of a sequence is made: some things do not happen in it
/// at all and others all the time, so that what is rare together meets. That holds for the kinds of
/// events, and within them for Services, shapes, faults and times.
pub(super) fn preferences() -> impl Strategy<Value = Vec<u32>> {
    let one = prop_oneof![2 => Just(0_u32), 4 => Just(2), 3 => Just(6), 1 => Just(FAVOURITE)];
    prop::collection::vec(one, PREFERENCES)
}

/// What is chosen most often, and at times alone.
const FAVOURITE: u32 = 20;

/// Parts of a sequence, at most: each is one event or some.
const LONGEST: usize = 45;

/// More than there are choices.
const PREFERENCES: usize = 200;

/// Preferences, each of which is for one choice.
struct Preferences<'p>(std::slice::Iter<'p, u32>);

// === impl Preferences ===

impl Preferences<'_> {
    /// One of these: each with how often it usually is chosen. As usual if all are out of favour.
    fn among<T: std::fmt::Debug + 'static>(
        &mut self,
        usual: Vec<(u32, BoxedStrategy<T>)>,
    ) -> BoxedStrategy<T> {
        let usual: Vec<_> = usual.into_iter().filter(|(weight, _)| *weight > 0).collect();
        let has_favourites = self.0.next() == Some(&FAVOURITE);
        let preferred = usual.iter().zip(self.0.by_ref());
        let preferred = preferred.map(|((weight, it), preferred)| {
            let is_out = has_favourites && *preferred != FAVOURITE;
            (if is_out { 0 } else { weight * preferred }, it.clone())
        });
        let preferred: Vec<_> = preferred.filter(|(weight, _)| *weight > 0).collect();
        let chosen = if preferred.is_empty() { usual } else { preferred };
        prop::strategy::Union::new_weighted(chosen).boxed()
    }

    /// The same for plain values.
    fn one_of<T: Clone + std::fmt::Debug + 'static>(
        &mut self,
        usual: impl IntoIterator<Item = (u32, T)>,
    ) -> BoxedStrategy<T> {
        self.among(usual.into_iter().map(|(weight, it)| (weight, Just(it).boxed())).collect())
    }
}

/// What happens in a sequence, of which each thing is as frequent as [`preferences`] say: most things
/// happen alone, and some while another one goes on.
pub(super) fn ops(
    preferences: &[u32],
    scenario: Scenario,
) -> impl Strategy<Value = Vec<Op>> + use<> {
    let preferred = &mut Preferences(preferences.iter());
    let times = times(preferred);
    let changes = kinds_of_changes(preferred, scenario);
    let whiles = kinds_of_whiles(preferred, scenario);
    let others = kinds_of_others(preferred, scenario);
    let alone = whiles.iter().cloned().chain(others);
    let alone = alone.map(|(weight, it)| (weight, it.prop_map(|op| vec![op]).boxed()));
    let one = |(weight, it): &(u32, BoxedStrategy<Op>)| (*weight, it.clone());
    let changes = preferred.among(changes.iter().map(one).collect());
    let alone = preferred.among(alone.collect());
    let meetings = meetings(changes.clone(), preferred.among(whiles));
    let each = |it: BoxedStrategy<Op>| it.prop_map(|op| vec![op]);
    let parts = prop_oneof![
        6 => each(changes),
        6 => alone,
        // Time passes in any sequence.
        3 => each(times),
        3 => meetings,
    ];
    prop::collection::vec(parts, 1..=LONGEST).prop_map(|parts| parts.concat())
}

/// What changes while something else goes on, most often until that is over.
fn meetings(
    changes: BoxedStrategy<Op>,
    whiles: BoxedStrategy<Op>,
) -> impl Strategy<Value = Vec<Op>> {
    let moment = (1..10_u32).prop_map(Op::Pass);
    let changes = prop::collection::vec(prop_oneof![4 => changes, 1 => moment], 1..7);
    let whiles = prop::collection::vec(whiles, 1..3);
    let percent = prop_oneof![3 => Just(100_u32), 2 => 1..150_u32, 1 => Just(0)];
    (whiles, changes, percent).prop_map(|(mut ops, changes, percent)| {
        let longest = ops.iter().map(goes_on_for).max().unwrap_or_default();
        ops.extend(changes);
        ops.push(Op::Pass(longest * percent / 100 + 5));
        ops
    })
}

/// For about how many milliseconds what has happened goes on.
fn goes_on_for(op: &Op) -> u32 {
    match *op {
        Op::WatchEnds(.., ms)
        | Op::WatchStalls(.., ms)
        | Op::Outage(_, ms)
        | Op::Restart(_, ms)
        | Op::Next(Fate::AppliedLate(ms), _)
        | Op::NextNode(Fate::AppliedLate(ms), _) => ms.into(),
        Op::Next(_, pace) | Op::NextNode(_, pace) | Op::Slow(pace, _) => {
            u32::from(pace.0) + u32::from(pace.1)
        }
        // Such a reading has some requests.
        Op::Readings { each, .. } => u32::from(each) * 4,
        Op::Fight(_, _, each, times) => (u32::from(each) * u32::from(times)).min(300_000),
        Op::NodesDenied(true) => 5000,
        _ => 0,
    }
}

/// What may be changed, and how often it usually is.
fn kinds_of_changes(
    preferred: &mut Preferences<'_>,
    scenario: Scenario,
) -> Vec<(u32, BoxedStrategy<Op>)> {
    let of = any::<u8>;
    let n = &preferred.one_of((0..5_u8).map(|n| (1, n)));
    let n = || n.clone();
    let kinds = kinds(preferred);
    let (shapes, aspects) = shapes(preferred);
    vec![
        (8, (n(), shapes).prop_map(|(n, shape)| Op::Service(n, shape)).boxed()),
        (8, (n(), aspects).prop_map(|(n, aspect)| Op::Alter(n, aspect)).boxed()),
        (4, n().prop_map(Op::DeleteService).boxed()),
        (9, (n(), 0..2_u8, endpoints()).prop_map(|(n, of, it)| Op::Slice(n, of, it)).boxed()),
        (3, (n(), 0..2_u8).prop_map(|(n, of)| Op::DeleteSlice(n, of)).boxed()),
        (2, (0..3_u8, any::<bool>()).prop_map(|(n, ready)| Op::Node(n, ready)).boxed()),
        (1, (0..3_u8).prop_map(Op::DeleteNode).boxed()),
        (
            5,
            (kinds, prop_oneof![4 => n(), 1 => Just(ALL)])
                .prop_map(|(kind, n)| Op::Undecodable(kind, n))
                .boxed(),
        ),
        (if scenario.crowd { 8 } else { 0 }, crowds(preferred)),
        (3, (drifts(preferred), of()).prop_map(|(drift, n)| Op::Drift(drift, n)).boxed()),
        (4, (foreign(preferred), of()).prop_map(|(foreign, n)| Op::Foreign(foreign, n)).boxed()),
        (if scenario.target == Target::Agent { 3 } else { 0 }, Just(Op::Token).boxed()),
    ]
}

/// What goes on for a while, and how often it usually does.
fn kinds_of_whiles(
    preferred: &mut Preferences<'_>,
    scenario: Scenario,
) -> Vec<(u32, BoxedStrategy<Op>)> {
    let of = any::<u8>;
    let (kinds, fates) = (&kinds(preferred), &fates(preferred));
    let (kinds, fates) = (|| kinds.clone(), || fates.clone());
    let paces = &paces(preferred);
    let paces = || paces.clone();
    vec![
        (12, (fates(), paces()).prop_map(|(fate, pace)| Op::Next(fate, pace)).boxed()),
        (
            if scenario.target == Target::Agent { 0 } else { 5 },
            (fates(), paces()).prop_map(|(fate, pace)| Op::NextNode(fate, pace)).boxed(),
        ),
        (2, (fates(), 1..20_000_u16).prop_map(|(fate, ms)| Op::Outage(fate, ms)).boxed()),
        (3, (paces(), 1..30_000_u16).prop_map(|(pace, ms)| Op::Slow(pace, ms)).boxed()),
        (
            3,
            (of(), kinds(), prop_oneof![1 => Just(1_u16), 1 => 1..9000_u16])
                .prop_map(|(of, kind, ms)| Op::WatchEnds(of, kind, ms))
                .boxed(),
        ),
        (
            3,
            (of(), kinds(), 1..9000_u16)
                .prop_map(|(of, kind, ms)| Op::WatchStalls(of, kind, ms))
                .boxed(),
        ),
        (3, prop::bool::weighted(0.7).prop_map(Op::NodesDenied).boxed()),
        (3, readings(preferred)),
        (
            1,
            (drifts(preferred), of(), 1000..30_000_u16, 2..40_u8)
                .prop_map(|(drift, n, each, times)| Op::Fight(drift, n, each, times))
                .boxed(),
        ),
        (
            6,
            (of(), prop_oneof![1 => Just(1_u16), 1 => 1..30_000_u16])
                .prop_map(|(n, ms)| Op::Restart(n, ms))
                .boxed(),
        ),
    ]
}

/// What else may happen, and how often it usually does.
fn kinds_of_others(
    preferred: &mut Preferences<'_>,
    scenario: Scenario,
) -> Vec<(u32, BoxedStrategy<Op>)> {
    let of_the_lead = |weight| if scenario.target == Target::Elected { weight } else { 0 };
    vec![
        (
            2,
            (any::<u8>(), kinds(preferred), 1..3_u8, masks())
                .prop_map(|(of, kind, lists, hidden)| Op::Lists(of, kind, lists, hidden))
                .boxed(),
        ),
        (2, Just(Op::Address).boxed()),
        (of_the_lead(4), Just(Op::SessionEnds).boxed()),
        (of_the_lead(4), any::<u8>().prop_map(Op::LeaseEnds).boxed()),
    ]
}

fn shapes(preferred: &mut Preferences<'_>) -> (BoxedStrategy<Shape>, BoxedStrategy<Aspect>) {
    let addresses = preferred.one_of((0..4_u8).map(|n| (1, n)));
    let modes = preferred.one_of([
        (6, Mode::ClusterIp),
        (3, Mode::Headless),
        (3, Mode::NodePort),
        (1, Mode::Off),
    ]);
    let names = preferred.one_of([
        (6, Name::Own),
        (2, Name::Shared),
        (1, Name::OfAnother),
        (2, Name::OfMachines),
    ]);
    let seconds = preferred.one_of([(5, Second::None), (2, Second::Tcp), (1, Second::Udp)]);
    // Consul refuses the last but one, and fails at the last.
    let tags = preferred.one_of([(5, 0_u8), (5, 1), (6, 2), (2, 3), (1, 4)]);
    let joins = preferred.one_of([(9, false), (1, true)]);
    let aspects = preferred.among(vec![
        (3, addresses.clone().prop_map(Aspect::Address).boxed()),
        (3, modes.clone().prop_map(Aspect::Mode).boxed()),
        (3, names.clone().prop_map(Aspect::Name).boxed()),
        (1, seconds.clone().prop_map(Aspect::Second).boxed()),
        (1, tags.clone().prop_map(Aspect::Tag).boxed()),
    ]);
    let shapes = (addresses, modes, names, seconds, tags, joins);
    let shapes = shapes.prop_map(|(address, mode, name, second, tag, joins)| Shape {
        address,
        mode,
        name,
        second,
        tag,
        joins,
    });
    (shapes.boxed(), aspects)
}

/// Which of many: all, one half, the other one, or any.
fn masks() -> impl Strategy<Value = u8> {
    prop_oneof![3 => Just(255_u8), 1 => Just(0x0f), 1 => Just(0xf0), 3 => any::<u8>()]
}

fn endpoints() -> impl Strategy<Value = Endpoints> {
    (0..8_u8, 0..8_u8, prop::bool::weighted(0.2)).prop_map(|(present, ready, moved)| Endpoints {
        present,
        ready,
        moved,
    })
}

fn crowds(preferred: &mut Preferences<'_>) -> BoxedStrategy<Op> {
    let states = preferred.one_of([
        (3, Crowd::Ready),
        (1, Crowd::NotReady),
        (1, Crowd::Few),
        (2, Crowd::Off),
        (1, Crowd::Gone),
    ]);
    (masks(), states).prop_map(|(which, state)| Op::Crowd(which, state)).boxed()
}

fn kinds(preferred: &mut Preferences<'_>) -> BoxedStrategy<WatchedKind> {
    preferred.one_of([
        (3, WatchedKind::Services),
        (3, WatchedKind::Slices),
        (1, WatchedKind::Nodes),
    ])
}

fn fates(preferred: &mut Preferences<'_>) -> BoxedStrategy<Fate> {
    preferred.among(vec![
        (5, Just(Fate::Applied).boxed()),
        (2, Just(Fate::Failed).boxed()),
        (1, Just(Fate::Denied).boxed()),
        (1, Just(Fate::Lost).boxed()),
        (2, Just(Fate::AppliedUnanswered).boxed()),
        (2, (1000..29_000_u16).prop_map(Fate::AppliedLate).boxed()),
        (1, Just(Fate::HalfFailed).boxed()),
        (1, Just(Fate::HalfUnanswered).boxed()),
    ])
}

fn paces(preferred: &mut Preferences<'_>) -> BoxedStrategy<Pace> {
    let mut one = || {
        preferred.among(vec![
            (3, Just(1_u16).boxed()),
            (2, (2..100_u16).boxed()),
            (1, (100..9000_u16).boxed()),
        ])
    };
    (one(), one()).prop_map(|(there, back)| Pace(there, back)).boxed()
}

fn readings(preferred: &mut Preferences<'_>) -> BoxedStrategy<Op> {
    let fails =
        preferred.among(vec![(2, Just(None).boxed()), (1, (0..5_u8).prop_map(Some).boxed())]);
    (prop_oneof![Just(1_u16), 1..3000_u16], fails)
        .prop_map(|(each, fails_at)| Op::Readings { each, fails_at })
        .boxed()
}

fn drifts(preferred: &mut Preferences<'_>) -> BoxedStrategy<Drift> {
    preferred.one_of([
        (3, Drift::Deregistered),
        (2, Drift::Changed),
        (1, Drift::Stray),
        (2, Drift::PtrRemoved),
        (1, Drift::NodeRemoved),
        (1, Drift::MarkerChanged),
        (1, Drift::AllLost),
    ])
}

fn foreign(preferred: &mut Preferences<'_>) -> BoxedStrategy<Foreign> {
    preferred.one_of([
        (3, Foreign::Machines),
        (2, Foreign::Ptr),
        (2, Foreign::PtrOfOtherCluster),
        (3, Foreign::PtrOfOurs),
        (1, Foreign::OnNode),
        (1, Foreign::Node),
        (1, Foreign::Check),
    ])
}

fn times(preferred: &mut Preferences<'_>) -> BoxedStrategy<Op> {
    let times = preferred.among(vec![
        (5, (1..10_u32).boxed()),
        (4, (10..3000_u32).boxed()),
        (2, (3000..35_000_u32).boxed()),
        (1, (60_000..300_000_u32).boxed()),
    ]);
    times.prop_map(Op::Pass).boxed()
}
