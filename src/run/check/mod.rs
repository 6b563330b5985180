//! `check`: whether each thing holds that a bridge with these options needs, and what to do about
//! each that does not. It writes nothing.
//!
//! | file | what it is |
//! |---|---|
//! | `ask` | a question, and how long its answer may take |
//! | `kubernetes` | the API, the cluster's identity, permissions |
//! | `consul` | the agent, the leader, ACL rules, DNS, certificates, the owner key |
//! | `dns` | one question to Consul's DNS |
//! | `report` | what was found, as text and JSON |

mod ask;
mod consul;
mod dns;
mod kubernetes;
mod report;

use std::io::{ErrorKind, Write as _};
use std::pin::pin;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;

use self::ask::Ask;
use self::consul::{CONSUL, OWNER};
use self::kubernetes::KUBERNETES;
use self::report::{Finding, Findings, Status, failed, ok, skipped, warning};
use crate::consul::http::client::Client as ConsulClient;
use crate::domain::text::{counted, escape_unseen};
use crate::kubernetes::client::Connected;
use crate::kubernetes::permissions::server_date;
use crate::run::Error;
use crate::run::daemon::checks::NOTHING_SELECTED;
use crate::run::daemon::connect::{
    consul as connect_consul, kubernetes as connect, log_out, runtime,
};
use crate::run::daemon::signals::signals;
use crate::run::plan::{self, Output, Plan};

const SELECTION: &str = "selection";
const NAMES: &str = "names";
const CLOCK: &str = "clock";

/// Between two rounds of `--wait`: soon enough for an init container, and no burden.
const ROUND: Duration = Duration::from_secs(2);
/// Clocks further apart than this break tokens and certificates, and `Date` has seconds.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(10);
/// Names that are listed in one line.
const LISTED: usize = 5;

/// What is checked.
#[derive(Debug)]
pub struct Options {
    /// What a plan with these options needs, and how long each answer may take.
    pub plan: plan::Options,
    /// Whether to check again until nothing fails.
    pub wait: bool,
}

/// Prints what was found. Whether nothing failed.
pub fn main(options: &Options, output: Output) -> Result<bool, Error> {
    let findings = runtime()?.block_on(async {
        let mut stop = pin!(signals()?);
        let consul = connect_consul(&options.plan.common.consul)?;
        let findings = tokio::select! {
            findings = rounds(options, &consul) => Ok(findings),
            _ = &mut stop => Err(Error::Interrupted),
        };
        log_out(&consul).await;
        findings
    })?;
    let text = match output {
        Output::Text => findings.text(),
        Output::Json => {
            let json = serde_json::to_string_pretty(&findings);
            json.map_err(|error| Error::Failed(format!("cannot write what was found: {error}")))?
                + "\n"
        }
    };
    match anstream::stdout().write_all(escape_unseen(&text).as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::Failed(format!("cannot write what was found: {error}")))
        }
        Ok(()) | Err(_) => Ok(findings.ok),
    }
}

/// One round, or with `--wait` as many as it takes. What fails is said whenever it is another.
async fn rounds(options: &Options, consul: &ConsulClient) -> Findings {
    let mut said = Vec::new();
    loop {
        let findings = round(options, consul).await;
        if findings.ok || !options.wait {
            return findings;
        }
        let failing: Vec<Finding> =
            findings.checks.into_iter().filter(|it| it.status == Status::Failed).collect();
        if failing != said {
            for Finding { check, found, remedy, .. } in &failing {
                tracing::warn!(check, found, remedy, "waiting");
            }
            said = failing;
        }
        sleep(ROUND).await;
    }
}

async fn round(options: &Options, client: &ConsulClient) -> Findings {
    let plan::Options { common, sync, timeout } = &options.plan;
    let ask = Ask::within(*timeout);
    let kubernetes = connect(common).await;
    let (mut findings, uid) = match &kubernetes {
        Ok(kubernetes) => kubernetes::check(common, sync, kubernetes, ask).await,
        Err(error) => {
            let remedy = "give --kube-url, --kubeconfig, or run in a pod with a service account";
            (vec![failed(KUBERNETES, error.to_string(), remedy)], None)
        }
    };
    let (of_consul, _) = consul::check(common, sync, client, ask).await;
    findings.extend(of_consul);
    let answers = |check| {
        !findings.iter().any(|it: &Finding| it.check == check && it.status == Status::Failed)
    };
    let (has_kubernetes, has_consul) = (answers(KUBERNETES), answers(CONSUL));
    if has_consul {
        findings.extend(consul::records(common, sync, client, uid.as_deref(), ask).await);
    } else {
        findings.push(skipped(OWNER, "Consul does not answer"));
    }
    findings
        .extend(clocks(kubernetes.as_ref().ok(), client, (has_kubernetes, has_consul), ask).await);
    let is_possible = findings.iter().all(|it| it.status != Status::Failed);
    if is_possible {
        findings.extend(planned(&options.plan, client).await);
    } else {
        findings.extend([SELECTION, NAMES].map(|it| skipped(it, "something before this failed")));
    }
    Findings::of(findings)
}

/// What a plan knows, because it asks for all that a bridge would.
async fn planned(options: &plan::Options, client: &ConsulClient) -> [Finding; 2] {
    match plan::make(options, client).await {
        Ok(plan) => [selection(&plan), names(&plan)],
        Err(error) => {
            let remedy = "see what kube-consul plan says";
            [skipped(SELECTION, "no plan"), failed(NAMES, error.to_string(), remedy)]
        }
    }
}

/// Whether the options select any Service.
fn selection(plan: &Plan) -> Finding {
    if plan.selects_any {
        return ok(SELECTION, "a Service is selected, or no option limits which are");
    }
    let remedy = "correct the option, or label or annotate the Services that are meant";
    warning(SELECTION, NOTHING_SELECTED, remedy)
}

/// Names that others hold.
fn names(plan: &Plan) -> Finding {
    let held =
        plan.problems.iter().filter(|it| ["ForeignName", "NameConflict"].contains(&it.reason));
    let held: Vec<String> = held.map(|it| format!("{}/{}", it.namespace, it.name)).collect();
    if held.is_empty() {
        return ok(NAMES, "every Service can have its Consul name");
    }
    let more = held.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let listed = held.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
    let remedy = "kube-consul plan says who holds each; give them other names by --name-template or \
        the annotation kube-consul.io/service-name, or join by --join-existing";
    let what = counted(held.len(), "Service");
    warning(NAMES, format!("others hold the names of {what}: {listed}{more}"), remedy)
}

/// How far the clocks of both sides are from this one's.
async fn clocks(
    kubernetes: Option<&Connected>,
    client: &ConsulClient,
    (has_kubernetes, has_consul): (bool, bool),
    ask: Ask,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(kubernetes) = kubernetes.filter(|_| has_kubernetes) {
        let date = ask.of_text(server_date(&kubernetes.client)).await;
        findings.push(clock("the Kubernetes API", date));
    }
    if has_consul {
        findings.push(clock("Consul", ask.of_consul(client.server_date()).await));
    }
    findings
}

fn clock(whose: &str, date: Result<Option<String>, String>) -> Finding {
    let check = format!("{CLOCK} of {whose}");
    let date = match date {
        Ok(Some(date)) => date,
        Ok(None) => return skipped(check, "it does not tell its time"),
        Err(why) => return skipped(check, why),
    };
    let Ok(theirs) = httpdate::parse_http_date(&date) else {
        return skipped(check, format!("its time cannot be read: {date:?}"));
    };
    let now = SystemTime::now();
    let apart = now.duration_since(theirs).unwrap_or_else(|error| error.duration());
    if apart > CLOCK_DIFFERENCE {
        let remedy =
            "let both machines take their time from NTP: tokens and certificates depend on it";
        return warning(check, format!("{} s apart from this machine's", apart.as_secs()), remedy);
    }
    ok(check, "the same as this machine's")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_wrong_is_a_warning() {
        let date = |time: SystemTime| Ok(Some(httpdate::fmt_http_date(time)));
        let now = SystemTime::now();
        assert_eq!(clock("Consul", date(now)).status, Status::Ok);
        for wrong in [now - Duration::from_mins(1), now + Duration::from_mins(1)] {
            assert_eq!(clock("Consul", date(wrong)).status, Status::Warning);
        }
        assert_eq!(clock("Consul", Ok(Some("noon".to_owned()))).status, Status::Skipped);
    }

    #[test]
    fn what_others_wrote_reaches_no_terminal_as_it_is() {
        let findings =
            Findings::of(vec![failed("a\n\u{1b}[2J", "b\u{9b}31m\r", "c\u{1b}]0;x\u{7}")]);
        let text = findings.text();
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        assert_eq!(text.lines().count(), 2, "{text:?}");
    }

    #[test]
    fn text_has_a_line_for_each_and_the_remedy_below_it() {
        let checks = vec![ok("a", "fine"), failed("longer", "broken", "mend it")];
        let findings = Findings::of(checks);
        assert!(!findings.ok);
        let expected = "\
ok       a       fine
failed   longer  broken
                 -> mend it
";
        assert_eq!(findings.text(), expected);
    }
}
