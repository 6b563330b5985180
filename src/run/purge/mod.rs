//! `purge`: removes everything that one cluster owns in Consul, after showing it. Kubernetes is
//! not needed.
//!
//! Kept here: nothing is removed before all was read completely (invariant: evidence), nothing
//! without the mark (invariant: ownership), and PTR records and the owner key go only when the
//! catalog has no registration of the cluster any more. Whatever interrupts it, the same command
//! goes on.

mod inventory;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::pin::Pin;
use std::time::Duration;

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};
use indicatif::{ProgressBar, ProgressDrawTarget};
use tokio::time::{Instant, sleep};

pub use self::inventory::Cluster;
use self::inventory::{AgentPart, Inventory, NodePart, clean, registrations, write_namespaces};
use crate::consul::coordination::lock::Lock;
use crate::consul::coordination::owner::OwnerKey;
use crate::consul::http::client::Client;
use crate::consul::http::config::Config;
use crate::consul::read::marks::Mark;
use crate::consul::write::removal::Left;
use crate::consul::write::txn::{MAX_OPERATIONS, Operation};
use crate::domain::text::chain;
use crate::run::Error;
use crate::run::daemon::connect::{consul, log_out, runtime};
use crate::run::daemon::signals::{Stop, signals};

/// Requests to an agent under way at a time: as many as a bridge makes.
const AGENT_REQUESTS: usize = 16;
/// How long the agent may take to have the catalog follow: it does so at once, and a failed try
/// is repeated within half a minute.
const CATALOG_FOLLOWS: Duration = Duration::from_secs(40);
/// Between two looks at whether it has.
const CATALOG_POLL: Duration = Duration::from_millis(250);
/// Records that are named when they could not be removed: a screen's worth.
const MAX_NAMED: usize = 20;

/// What is to be removed.
#[derive(Debug)]
pub struct Options {
    /// How Consul is reached.
    pub consul: Config,
    /// Whose records.
    pub owner: Owner,
    /// Without asking.
    pub yes: bool,
}

/// Whose records are to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A cluster's bridge.
    Cluster(Cluster),
    /// consul-k8s's catalog sync, on this node.
    ConsulK8s {
        /// The node's name.
        node: String,
    },
}

/// A removal under way.
struct Removal {
    client: Client,
    stop: Pin<Box<dyn Future<Output = Stop> + Send>>,
    progress: ProgressBar,
    removed: usize,
    left: Vec<Left>,
}

/// Shows what there is, asks, and removes it.
pub fn main(options: Options) -> Result<(), Error> {
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let stop = Box::pin(signals()?);
        let client = consul(&options.consul)?;
        // Nothing is drawn where standard error is no terminal.
        let progress = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let removal =
            Removal { client: client.clone(), stop, progress, removed: 0, left: Vec::new() };
        let result = match options.owner {
            Owner::Cluster(cluster) => removal.cluster(&cluster, options.yes).await,
            Owner::ConsulK8s { node } => removal.consul_k8s(&node, options.yes).await,
        };
        log_out(&client).await;
        result
    });
    // Whoever interrupts the question leaves a thread behind that waits for the answer.
    runtime.shutdown_background();
    result
}

// === impl Removal ===

impl Removal {
    async fn cluster(mut self, cluster: &Cluster, yes: bool) -> Result<(), Error> {
        let client = self.client.clone();
        let inventory = self.unless_stopped(Inventory::read(&client, cluster)).await?;
        let inventory = inventory.map_err(|error| unreadable(&error))?;
        say(&inventory.text(cluster, client.url()))?;
        if inventory.is_empty() {
            return Ok(());
        }
        self.confirm(yes).await?;
        self.progress.set_length(inventory.operations() as u64);
        let outcome = self.remove(cluster, &inventory).await;
        self.finish(outcome)
    }

    async fn remove(&mut self, cluster: &Cluster, inventory: &Inventory) -> Result<(), Error> {
        if let Some(agent) = &inventory.agent {
            self.empty_agent(agent).await?;
        }
        self.empty_nodes(&inventory.nodes).await?;
        for node in &inventory.nodes {
            self.remove_node(cluster, &node.name).await?;
        }
        if inventory.lock.is_some() {
            self.remove_lock(cluster).await?;
        }
        let agent = inventory.agent.as_ref().and_then(|agent| agent.node.as_deref());
        self.remove_last(cluster, inventory.uid.as_deref(), agent).await
    }

    /// The sentinel goes last: as long as it is there, a reading of the agent tells the truth.
    async fn empty_agent(&mut self, agent: &AgentPart) -> Result<(), Error> {
        let before = self.left.len();
        for batch in agent.services.chunks(MAX_OPERATIONS) {
            self.check_stop()?;
            let client = &self.client;
            let answers = stream::iter(batch)
                .map(|service| async move { (&service.id, client.deregister(&service.id).await) });
            let answers: Vec<_> = answers.buffer_unordered(AGENT_REQUESTS).collect().await;
            for (id, answer) in answers {
                self.answered(format!("service ID {id} in the agent"), answer);
            }
        }
        if let Some(sentinel) = &agent.sentinel
            && self.left.len() == before
        {
            self.check_stop()?;
            let answer = self.client.deregister(sentinel).await;
            self.answered(format!("the sentinel {sentinel}"), answer);
        }
        Ok(())
    }

    async fn empty_nodes(&mut self, nodes: &[NodePart]) -> Result<(), Error> {
        let operations = nodes.iter().flat_map(|node| {
            node.on.marked.iter().map(|service| {
                let named = format!("service ID {} on node {}", service.id, node.name);
                let (node, id, name) =
                    (node.name.clone(), service.id.clone(), service.name.clone());
                (named, Operation::DeleteService { node, id, name })
            })
        });
        self.transactions(operations).await
    }

    async fn transactions(
        &mut self,
        operations: impl IntoIterator<Item = (String, Operation<'_>)>,
    ) -> Result<(), Error> {
        let mut operations = operations.into_iter();
        loop {
            let batch: Vec<_> = operations.by_ref().take(MAX_OPERATIONS).collect();
            if batch.is_empty() {
                return Ok(());
            }
            self.check_stop()?;
            let count = batch.len();
            let left = self.client.remove_all(batch).await;
            let left = left.map_err(|error| Error::Failed(error.chain()))?;
            self.count(count - left.len());
            self.left.extend(left);
        }
    }

    /// Deleting a node deletes all that is on it, so it is looked at just before.
    async fn remove_node(&mut self, cluster: &Cluster, node: &str) -> Result<(), Error> {
        self.check_stop()?;
        let on = self.client.left_on_node(node, &Mark::Cluster(cluster.name.clone())).await;
        let on = on.map_err(|error| unreadable(&error))?;
        let named = format!("node {node}");
        if !on.others.is_empty() {
            let why = format!("{} are on it, which no bridge made", on.others.join(", "));
            self.left.push((named, why));
        } else if !on.marked.is_empty() {
            let why = "registrations are on it again: is a bridge running?".to_owned();
            self.left.push((named, why));
        } else {
            let delete = Operation::DeleteNode { node: node.into() };
            self.transactions([(named, delete)]).await?;
        }
        Ok(())
    }

    /// The session of a lock ended with the base node: one that is held is another bridge's.
    async fn remove_lock(&mut self, cluster: &Cluster) -> Result<(), Error> {
        self.check_stop()?;
        let lock = self.client.lock_of(&cluster.name).await.map_err(|error| unreadable(&error))?;
        let named = "the leader's lock".to_owned();
        match lock {
            None => {}
            Some(Lock { holder: Some(holder), .. }) => {
                let why = format!("{} holds it: a bridge is running", clean(&holder));
                self.left.push((named, why));
            }
            Some(lock) => {
                let answer = self.client.remove_lock(&cluster.name, &lock).await;
                self.answered(named, answer);
            }
        }
        Ok(())
    }

    /// PTR records and the owner key, if no registration is left.
    async fn remove_last(
        &mut self,
        cluster: &Cluster,
        uid: Option<&str>,
        agent: Option<&str>,
    ) -> Result<(), Error> {
        let others = self.nodes_left(cluster, agent).await?;
        if !others.is_empty() {
            let others: Vec<String> = others.iter().map(|node| clean(node)).collect();
            return say(&format!(
                "PTR records and the owner key stay: {} still have registrations of the cluster.\n",
                others.join(", ")
            ));
        }
        let keys = self.client.marked_keys(&cluster.name).await.map_err(|e| unreadable(&e))?;
        self.expect_more(keys.len() + usize::from(uid.is_some()));
        let operations = keys.into_iter().map(|it| {
            (format!("KV key {}", it.key), Operation::DeleteKey { key: it.key, index: it.index })
        });
        self.transactions(operations).await?;
        self.check_stop()?;
        if let Some(uid) = uid.filter(|_| self.left.is_empty()) {
            let key = OwnerKey::new(self.client.clone(), &cluster.name);
            match key.release(uid).await {
                Ok(was_there) => self.count(usize::from(was_there)),
                Err(error) => self.left.push((format!("KV key {}", key.key()), chain(&error))),
            }
        }
        Ok(())
    }

    /// The nodes that still have registrations, once the catalog has followed the agent.
    async fn nodes_left(
        &mut self,
        cluster: &Cluster,
        agent: Option<&str>,
    ) -> Result<BTreeSet<Box<str>>, Error> {
        let until = Instant::now() + CATALOG_FOLLOWS;
        loop {
            self.check_stop()?;
            let left = self.client.other_nodes(&cluster.name, &BTreeSet::new()).await;
            let left = left.map_err(|error| unreadable(&error))?;
            let waits = agent.is_some_and(|agent| left.contains(agent)) && self.left.is_empty();
            if !waits || Instant::now() >= until {
                return Ok(left);
            }
            let again = self.client.in_agent(&Mark::Cluster(cluster.name.clone())).await;
            if !again.map_err(|error| unreadable(&error))?.is_empty() {
                let why = "registrations are in it again: is a bridge running?".to_owned();
                self.left.push(("the agent".to_owned(), why));
                return Ok(left);
            }
            sleep(CATALOG_POLL).await;
        }
    }

    async fn consul_k8s(mut self, node: &str, yes: bool) -> Result<(), Error> {
        let client = self.client.clone();
        let on = self.unless_stopped(client.on_node(node, &Mark::ConsulK8s)).await?;
        let on = on.map_err(|error| unreadable(&error))?;
        let mut text = format!(
            "consul-k8s on node {} in {}: {}\n",
            clean(node),
            client.url(),
            registrations(&on.marked)
        );
        // Writing to a String cannot fail.
        let _ = write_namespaces(&mut text, &on.marked);
        if !on.others.is_empty() {
            let _ = writeln!(text, "{} other services on it stay.", on.others.len());
        }
        if on.marked.is_empty() {
            text.push_str("Nothing can be removed here.\n");
            return say(&text);
        }
        text.push_str(
            "consul-k8s leaves no sign of whether it runs: stop its catalog sync first, it \
             registers again what is removed.\n",
        );
        say(&text)?;
        self.confirm(yes).await?;
        self.progress.set_length(on.marked.len() as u64);
        let mut outcome = self.empty_nodes(&[NodePart { name: node.into(), on }]).await;
        if outcome.is_ok() && self.left.is_empty() {
            outcome = self.remove_emptied(node).await;
        }
        self.finish(outcome)
    }

    /// Removes consul-k8s's node if nothing is left on it. That of an agent has a check of its own.
    async fn remove_emptied(&mut self, node: &str) -> Result<(), Error> {
        self.check_stop()?;
        let on = self.client.left_on_node(node, &Mark::ConsulK8s).await;
        let on = on.map_err(|error| unreadable(&error))?;
        if on.others.is_empty() && on.marked.is_empty() {
            self.expect_more(1);
            let delete = Operation::DeleteNode { node: node.into() };
            return self.transactions([(format!("node {node}"), delete)]).await;
        }
        let left: Vec<String> = on.others.iter().map(|it| clean(it)).collect();
        say(&format!("Node {} stays, with {}.\n", clean(node), left.join(", ")))
    }

    /// Says how it ended.
    fn finish(self, outcome: Result<(), Error>) -> Result<(), Error> {
        self.progress.finish_and_clear();
        let mut text = format!("Removed: {}.\n", self.removed);
        for (what, why) in self.left.iter().take(MAX_NAMED) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "Left: {}: {}", clean(what), clean(why));
        }
        match outcome {
            Err(Error::Interrupted) => {
                say(&format!("{text}Interrupted: the same command removes the rest.\n"))?;
                Err(Error::Interrupted)
            }
            Err(Error::Failed(why)) => {
                say(&text)?;
                Err(Error::Failed(format!("{why}; the same command goes on where this one ended")))
            }
            Err(error) => Err(error),
            Ok(()) if self.left.is_empty() => say(&text),
            Ok(()) => {
                say(&text)?;
                let count = self.left.len();
                Err(Error::Failed(format!("expected everything to be removed, found {count} left")))
            }
        }
    }

    async fn confirm(&mut self, yes: bool) -> Result<(), Error> {
        if yes {
            return Ok(());
        }
        let stderr = std::io::stderr();
        if !std::io::stdin().is_terminal() || !stderr.is_terminal() {
            return Err(Error::Usage(
                "expected a terminal to ask on, or --yes; found neither: nothing was removed"
                    .to_owned(),
            ));
        }
        let failed = |error| Error::Failed(format!("cannot ask: {error}"));
        write!(stderr.lock(), "Remove all of this? [y/N] ").map_err(failed)?;
        let answer = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map(|_| line)
        });
        let answer = self.unless_stopped(answer).await?;
        let answer = answer.map_err(|error| failed(error.into()))?.map_err(failed)?;
        if ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
            Ok(())
        } else {
            Err(Error::Failed("not confirmed: nothing was removed".to_owned()))
        }
    }

    async fn unless_stopped<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Error> {
        tokio::select! {
            done = work => Ok(done),
            _ = &mut self.stop => Err(Error::Interrupted),
        }
    }

    /// Between two batches: what is under way is always waited for.
    fn check_stop(&mut self) -> Result<(), Error> {
        match (&mut self.stop).now_or_never() {
            Some(_) => Err(Error::Interrupted),
            None => Ok(()),
        }
    }

    fn answered(&mut self, what: String, answer: Result<(), crate::consul::http::error::Error>) {
        match answer {
            Ok(()) => self.count(1),
            Err(error) => self.left.push((what, error.chain())),
        }
    }

    /// As many operations are still to come: the last ones, of which only now is known how many
    /// there are.
    fn expect_more(&self, operations: usize) {
        self.progress.set_length((self.removed + self.left.len() + operations) as u64);
    }

    fn count(&mut self, removed: usize) {
        self.removed += removed;
        self.progress.inc(removed as u64);
    }
}

fn unreadable(error: &crate::consul::read::evidence::Unknown) -> Error {
    Error::Failed(format!("Consul cannot be read, nothing more is removed: {}", chain(error)))
}

/// To standard output.
fn say(text: &str) -> Result<(), Error> {
    let written = std::io::stdout().write_all(text.as_bytes());
    written.map_err(|error| Error::Failed(format!("cannot write to standard output: {error}")))
}
