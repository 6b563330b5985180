//! A simulator: bridges beside a Kubernetes and a Consul that exist in memory only, in virtual
//! time, through any order of events and faults.
//!
//! A sequence is a [`Scenario`] and a list of [`Op`]s, made from a seed. Requests are on their way
//! for a while, are applied, refused, denied, lost, answered late or applied after they were given
//! up; readings go on step by step while writes are under way; watches stall, end and list again;
//! others write beside us; leaders are deposed. At each step what must always hold is checked
//! (`invariants`). At the end faults stop, and what stands in Consul has to become what an
//! undisturbed bridge would have written.
//!
//! | file | what it is |
//! |---|---|
//! | `ops` | what may happen, and how often |
//! | `kubernetes` | objects, watches, and what a process was told by them |
//! | `consul` | what stands in Consul, and how it takes writes |
//! | `world` | the time, the requests on their way, the election |
//! | `invariants` | what must hold at each step |
//!
//! `KUBE_CONSUL_SIM_SEQUENCES` asks for another number of sequences than [`SEQUENCES`], and
//! `KUBE_CONSUL_SIM_SEED` for another first seed. A sequence that fails is shrunk and printed with
//! its seed, in the form in which it can be put into a test. `KUBE_CONSUL_SIM_TRACE=1` shows each
//! step of the sequence of one seed.

mod consul;
mod invariants;
mod kubernetes;
mod ops;
mod regressions;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, available_parallelism};
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use proptest::tuple::TupleValueTree;

use self::invariants::Checked;
use self::ops::{Op, Scenario, ops, preferences, scenarios};
use self::world::{World, cluster};
use crate::domain::consul::record::RecordKey;
use crate::domain::consul::registration_id::service_of_id;
use crate::domain::kube::names::ObjectKey;
use crate::domain::map::set_order;

/// How many sequences are run: some seconds.
const SEQUENCES: u64 = 2000;
/// A core that has not converged by then never will: readings that take 15 s are made each half hour.
const CONVERGES_WITHIN: Duration = Duration::from_mins(40);
/// Since faults ended and Consul was read, no record that is wanted is absent for longer than that:
/// what others keep changing, or what is denied, is written again after a minute at most.
const ABSENT_FOR: Duration = Duration::from_secs(150);
/// An undisturbed bridge has done all by then.
const CALM: Duration = Duration::from_secs(10);
/// Long enough for a reading, and for a denied write to be tried again.
const ROUND: Duration = Duration::from_secs(90);
/// Between two looks whether it has.
const STEP: Duration = Duration::from_secs(4);
/// Problems of records that are tried again although all else is done.
const FOR_GOOD: [&str; 3] = ["Denied", "Failing", "Contested"];
/// How often a sequence is made smaller, or tried to be.
const MOST_SHRINKS: u64 = 3000;

type Sequence = (Scenario, Vec<Op>);

/// Runs a sequence with hash maps of this order, and tells what went wrong.
fn run(sequence: &Sequence, order: u64, trace: bool) -> Checked {
    set_order(order);
    let attempt = || {
        let (scenario, ops) = sequence;
        let mut world = World::new(*scenario);
        if trace {
            world = world.traced();
        }
        for op in ops {
            world.happen(op)?;
        }
        world.heal()?;
        let mut calm = world.calm();
        calm.pass(CALM)?;
        converges(&mut world, &calm)?;
        world.check_readiness()?;
        world.check_names()?;
        world.applied.clear();
        world.pass(world.scenario.resync() * 3)?;
        if let Some(record) = world.applied.first() {
            return Err(format!("at rest, and still {record} is written"));
        }
        Ok(())
    };
    catch_unwind(AssertUnwindSafe(attempt)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned()));
        Err(format!("it panics: {}", text.unwrap_or_default()))
    })
}

/// Lets time pass until both sides stand still.
fn converges(world: &mut World, calm: &World) -> Checked {
    let mut passed = Duration::ZERO;
    while passed < CONVERGES_WITHIN {
        world.pass(STEP)?;
        passed += STEP;
        if world.awaits_allowance()? {
            world.allow_removals();
            passed = Duration::ZERO;
        }
        if passed >= ABSENT_FOR && world.read_for(ABSENT_FOR) {
            nothing_is_missing(world, calm)?;
        }
        if world.must_be_right(&FOR_GOOD) {
            // Whether others keep a node is only seen when it is to be removed, and by a reading.
            records(world, calm).map_err(|why| format!("it rests, and {why}"))?;
        }
        if passed >= ROUND
            && world.is_at_rest()
            && world.read_for(Duration::ZERO)
            && !world.has_backlog()
            && compare(world, calm).is_ok()
        {
            return Ok(());
        }
    }
    if !world.is_at_rest() || world.has_backlog() {
        return Err(format!("it does not come to rest: {}", world.backlog()));
    }
    compare(world, calm)
}

/// Whether all that an undisturbed bridge has registered is there.
fn nothing_is_missing(world: &World, calm: &World) -> Checked {
    let past = world.depends_on_the_past();
    let wanted = calm.consul.registrations.keys().filter(|id| {
        let service = service_of_id(&cluster(), id);
        service.is_none_or(|service| !past.services.contains(&service))
    });
    match wanted.into_iter().find(|id| !world.consul.registrations.contains_key(*id)) {
        Some(id) => Err(format!("{id} is still absent: {:?}", world.waits_of(id))),
        None => Ok(()),
    }
}

/// Compares with what one would have written to an empty Consul that was never disturbed.
fn compare(world: &World, calm: &World) -> Checked {
    records(world, calm)?;
    let past = world.depends_on_the_past();
    let problems = |world: &World| -> BTreeMap<(String, String, String), bool> {
        let excused: BTreeSet<String> = past.services.iter().map(ObjectKey::to_string).collect();
        let all = world.problems().into_iter().filter(|(_, object, reason)| {
            // Which of those that share an address has its PTR record may depend on it, too.
            let is_shared = !past.ptr.is_empty() && reason == "ForeignPtrRecord";
            // That others keep a node was seen when it was to be removed; it may be needed by now.
            !excused.contains(object) && !is_shared && reason != "ForeignOnNode"
        });
        all.map(|it| (it, true)).collect()
    };
    same("problems", &problems(world), &problems(calm), |a, b| a == b)
}

fn records(world: &World, calm: &World) -> Checked {
    let past = world.depends_on_the_past();
    let registrations = |world: &World| -> BTreeMap<Box<str>, _> {
        let all = world.consul.registrations.iter();
        let compared = all.filter(|(id, _)| {
            service_of_id(&cluster(), id).is_none_or(|service| !past.services.contains(&service))
        });
        compared.map(|(id, registered)| (id.clone(), registered.clone())).collect()
    };
    same("registrations", &registrations(world), &registrations(calm), |a, b| {
        // In the catalog it does not matter with which token something was written.
        let record = RecordKey::Registration(a.registration.id.clone());
        let tokens_count = !world.consul.is_catalog && !world.old_tokens.contains(&record);
        a.registration == b.registration && (!tokens_count || a.token == b.token)
    })?;
    let ptr = |world: &World| -> BTreeMap<Box<str>, _> {
        let all = world.consul.kv.iter().filter(|(key, _)| !past.ptr.contains(*key));
        all.map(|(key, entry)| (key.clone(), (entry.record.clone(), entry.flags))).collect()
    };
    same("PTR records", &ptr(world), &ptr(calm), |a, b| a == b)?;
    let nodes = |world: &World| -> BTreeMap<Box<str>, bool> {
        let all = world.consul.nodes.iter().filter(|node| !past.namespaces.contains(*node));
        all.map(|node| (node.clone(), true)).collect()
    };
    same("namespace nodes", &nodes(world), &nodes(calm), |a, b| a == b)
}

fn same<K: Ord + std::fmt::Debug, V: std::fmt::Debug>(
    what: &str,
    found: &BTreeMap<K, V>,
    expected: &BTreeMap<K, V>,
    equal: impl Fn(&V, &V) -> bool,
) -> Checked {
    let keys: BTreeSet<&K> = found.keys().chain(expected.keys()).collect();
    for key in keys {
        let (found, expected) = (found.get(key), expected.get(key));
        if !matches!((found, expected), (Some(a), Some(b)) if equal(a, b)) {
            return Err(format!("{what}: {key:?}: expected {expected:?}, found {found:?}"));
        }
    }
    Ok(())
}

fn sequence_of(seed: u64) -> impl ValueTree<Value = Sequence> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let preferences =
        preferences().new_tree(&mut runner).expect("nothing is filtered out").current();
    let scenario = scenarios().new_tree(&mut runner).expect("nothing is filtered out");
    let ops = ops(&preferences, scenario.current());
    let ops = ops.new_tree(&mut runner).expect("nothing is filtered out");
    TupleValueTree::new((scenario, ops))
}

/// The smallest sequence found that still fails, and how.
fn shrunk(
    mut tree: impl ValueTree<Value = Sequence>,
    order: u64,
    mut why: String,
) -> (Sequence, String) {
    let mut smallest = tree.current();
    let mut more = tree.simplify();
    for _ in 0..variable("KUBE_CONSUL_SIM_SHRINKS").unwrap_or(MOST_SHRINKS) {
        if !more {
            break;
        }
        let candidate = tree.current();
        more = match run(&candidate, order, false) {
            Err(still) => {
                (smallest, why) = (candidate, still);
                tree.simplify()
            }
            Ok(()) => tree.complicate(),
        };
    }
    (smallest, why)
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: expected a number, found {text:?}")))
}

/// The first of these seeds whose sequence fails, and how.
fn first_failure(seeds: Range<u64>, trace: bool) -> Option<(u64, String)> {
    let (next, failures) = (AtomicU64::new(seeds.start), Mutex::new(BTreeMap::new()));
    let work = || {
        while lock(&failures).is_empty() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !seeds.contains(&seed) {
                break;
            }
            if let Err(why) = run(&sequence_of(seed).current(), seed, trace) {
                lock(&failures).insert(seed, why);
            }
        }
    };
    let threads = if trace { 1 } else { available_parallelism().map_or(1, usize::from) };
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    lock(&failures).pop_first()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn any_order_of_events_and_faults_keeps_the_invariants_and_converges() {
    let count = variable("KUBE_CONSUL_SIM_SEQUENCES").unwrap_or(SEQUENCES);
    let first = variable("KUBE_CONSUL_SIM_SEED").unwrap_or(0);
    let trace = variable("KUBE_CONSUL_SIM_TRACE").is_some();
    let Some((seed, why)) = first_failure(first..first + count, trace) else { return };
    let ((scenario, ops), smallest) = shrunk(sequence_of(seed), seed, why.clone());
    let ops: Vec<String> = ops.iter().map(|op| format!("    {op:?},\n")).collect();
    panic!(
        "seed {seed}, sequence {} of {count}: {why}\nshrunk: {smallest}\n{scenario:?}, [\n{}]",
        seed - first + 1,
        ops.concat()
    );
}
