//! Whether a Service is registered at all.

use crate::domain::consul::names::is_name_in_consul;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{IMPORT_ANNOTATION, Service, ServiceType};
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::annotations::{is_consul8s, sync};
use crate::domain::services::consul8s::asks_for_removal;
use crate::domain::services::settings::Settings;

/// Services with such a label mirror Consul services (consul-k8s, consul8s): sending them back
/// would make a loop.
const IMPORTED: [(&str, &str); 3] =
    [("consul", "true"), ("consul8s_source", "consul"), LABEL_OF_README];
/// What consul8s' README asks for and its code never reads: of these three a Service may have it
/// for another reason.
const LABEL_OF_README: (&str, &str) = ("registration", "consul");

/// Whether the label of this key can change a registration.
pub fn is_read_label(settings: &Settings, key: &str) -> bool {
    IMPORTED.iter().any(|(read, _)| *read == key)
        || settings.selector.reads(key)
        || settings.label_tags.iter().any(|it| it.label() == key)
        || settings.label_meta.iter().any(|it| it.label() == key)
}

/// Whether the Service is to be registered, and what is wrong with what says so.
pub(super) fn selection(
    settings: &Settings,
    key: &ObjectKey,
    service: &Service,
) -> (bool, Vec<Problem>) {
    let (why, problems) = unselected(settings, key, service);
    (why.is_none(), problems)
}

/// Why the Service is not to be registered, in words; none: it is.
pub fn not_selected(settings: &Settings, key: &ObjectKey, service: &Service) -> Option<String> {
    unselected(settings, key, service).0
}

/// Why the Service is not to be registered, and what is wrong with what says so.
fn unselected(
    settings: &Settings,
    key: &ObjectKey,
    service: &Service,
) -> (Option<String>, Vec<Problem>) {
    let because = |why: &str| (Some(why.to_owned()), Vec::new());
    let is_consul8s = is_consul8s(settings, key, service);
    if service.kind == ServiceType::ExternalName && !settings.external_name && !is_consul8s {
        return because("its type is ExternalName, and --external-name is not given");
    }
    if !(settings.service_types.is_empty() || settings.service_types.contains(&service.kind)) {
        return because("its type is none of --service-type");
    }
    if service.external_name.as_deref().is_some_and(is_name_in_consul) {
        return because("its external name is one of Consul's");
    }
    if !settings.includes_namespace(&key.namespace) {
        return because("its namespace is left out by --namespace or --deny-namespace");
    }
    if !service.namespace_selected {
        return because("the labels of its namespace do not match --namespace-selector");
    }
    if !settings.selector.selects(&service.labels) {
        return because("its labels do not match --selector");
    }
    if service.annotations.contains_key(IMPORT_ANNOTATION) {
        // Its endpoints are Consul's: sending them back would make a loop.
        return because("its endpoints are imported from Consul");
    }
    let (sync, mut problems) = sync(settings, key, service);
    if sync.is_none() && is_consul8s && asks_for_removal(service) {
        return because("annotation consul8s/service.remove_registration says that it is not");
    }
    if !sync.unwrap_or(settings.default_sync || is_consul8s) {
        let why = match sync {
            Some(_) => "an annotation says that it is not (sync: \"false\")",
            None => "no annotation asks for it, and --default-sync is false",
        };
        return (Some(why.to_owned()), problems);
    }
    let has_label =
        |(name, value): &(&str, &str)| service.labels.get(*name).is_some_and(|v| &**v == *value);
    let means_it = |label: &&(&str, &str)| **label != LABEL_OF_README || !is_consul8s;
    let Some(label) = IMPORTED.iter().filter(means_it).find(|label| has_label(label)) else {
        return (None, problems);
    };
    let (name, value) = label;
    if *label == LABEL_OF_README {
        problems.push(Problem::new(
            Reason::ImportLabel,
            format!(
                "the label {name}: {value} says that the Service mirrors one of Consul (consul8s), \
                 so it is not registered; remove the label to have it registered",
            ),
        ));
    }
    (Some(format!("the label {name}: {value} says that it mirrors one of Consul")), problems)
}
