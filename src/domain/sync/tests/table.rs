//! Services and options, and what follows in Consul: one row each.
//!
//! A row is `what | objects | options | result`. Objects are separated by `;`:
//! - `web ...` or `other/web ...` a Service (in `shop`, unless it says where), at 10.0.0.1 with the
//!   port `http:80` unless it says otherwise: `ip=`, `ext=`, `lb=` addresses, `headless`,
//!   `name:port/nodePort` (`.udp`, `.sctp` after it), `@key=value` our annotation, `@@key=value` one of consul-k8s, `@:key=value` one by its whole key,
//!   `label:key=value`, `created=`, `local`, `publish`, `noports`, a type such as `NodePort`, `to=`
//!   an external name; `~` is a blank
//! - `> http:8080 10.1.0.1 10.1.0.2! 10.1.0.3@n1` a slice of the Service before it, `!` not ready,
//!   `^` neither, but serving while it terminates, `=db-0` its host name; a Service with none has
//!   all its ports ready at 10.1.0.1; `>` alone is none
//! - `node n1 192.0.2.1` a node, `!` not ready, `excluded`, `ext:` an external address; `nodes` none
//!   at all: else they are not known
//! - `foreign web` a name that others hold: `=kubernetes` another sync, `=eu` that cluster's bridge
//!
//! The result has the instances as `name address:port`, with `!` critical, `+` passing; where it
//! says tags `[a,b]`, meta `{key=value}` or a weight `*5`, those are compared too. `?Reason` is a
//! problem, `?Reason text` one that says so. `ptr address name` is a PTR record; they are compared where one is shown, or
//! `noptr`. Each row holds in every order in which its objects may come, listed and one by one.

use std::net::IpAddr;
use std::sync::Arc;

use super::*;
use crate::domain::consul::names::{Holder, Holders};
use crate::domain::consul::record::Check;
use crate::domain::consul::registration_id::service_of_id;
use crate::domain::kube::object::{
    Endpoint, EndpointPort, Node, NodeAddressType, Protocol, ServicePort,
};
use crate::domain::services::settings::{AddressMode, Annotation, PtrScope};
use crate::domain::testing::{endpoint, node, port};

pub(super) const ROWS: &str = r#"
# address modes: auto
a ClusterIP                       | web | | web 10.0.0.1:80
headless: its endpoints           | web headless; > http:8080 10.1.0.1 10.1.0.2 | | web 10.1.0.1:8080; web 10.1.0.2:8080
headless without endpoints        | web headless; > | |
both families                     | web ip=10.0.0.1,fd00::7 | | web 10.0.0.1:80; web fd00::7:80
IPv6 alone                        | web ip=fd00::7 | | web fd00::7:80
endpoints of both families        | web headless; > http:1 10.1.0.1; > http:1 fd00::1 | | web 10.1.0.1:1; web fd00::1:1

# address modes: cluster-ip
a headless Service has none       | web headless | --address cluster-ip |
asked for by annotation           | web @address=cluster-ip | --address endpoints | web 10.0.0.1:80
asked for where there is none     | web headless @address=cluster-ip | | ?Incomplete

# address modes: endpoints
by option                         | web; > http:8080 10.1.0.1 10.1.0.2! | --address endpoints | web 10.1.0.1:8080; web 10.1.0.2:8080!
by annotation                     | web @address=endpoints; > http:8080 10.1.0.1 | --address cluster-ip | web 10.1.0.1:8080
S none that leads to its client   | web headless; > http:1 ::1 ::ffff:127.0.0.1 10.1.0.1 | | web 10.1.0.1:1; ?InvalidAddress "::1", "::ffff:127.0.0.1"
one endpoint in two slices        | web headless; > http:8080 10.1.0.1!; > http:8080 10.1.0.1 | | web 10.1.0.1:8080
O1 one address, two ports         | web headless; > http:8081 10.1.0.1; > http:8080 10.1.0.1 | | web 10.1.0.1:8080; web 10.1.0.1:8081
O1 each with its own readiness    | web headless; > http:8081 10.1.0.1; > http:8080 10.1.0.1! | | web 10.1.0.1:8080!; web 10.1.0.1:8081
O1 of each named port             | web headless http:80 sql:81; > http:1 sql:2 10.1.0.1; > http:3 sql:4 10.1.0.1! | | web 10.1.0.1:1; web 10.1.0.1:3!; web-sql 10.1.0.1:2; web-sql 10.1.0.1:4!
other ports elsewhere             | web headless http:80 sql:81; > http:1 10.1.0.1; > sql:2 10.1.0.2 | | web 10.1.0.1:1; web-sql 10.1.0.2:2
O4 without ports                  | db headless noports; > 10.1.0.1 10.1.0.2! | | db 10.1.0.1:0 [shop]; db 10.1.0.2:0!
O4 without ports, of both families| db headless noports; > 10.1.0.1; > fd00::1 | | db 10.1.0.1:0; db fd00::1:0
O4 whatever ports the slice has   | db headless noports; > sql:1 10.1.0.1 | | db 10.1.0.1:0
O4 no address of its own          | db headless noports @address=cluster-ip; > 10.1.0.1 | | ?Incomplete
O5 its slice has no ports         | web headless; > 10.1.0.1 | | ?Incomplete none serves the port http TCP 80
O5 its slice has another one      | web headless; > sql:1 10.1.0.1 | | ?Incomplete found sql TCP 1
O5 unnamed against named          | web headless; > :1 10.1.0.1 | | ?Incomplete found (unnamed) TCP 1
O5 named against unnamed          | web headless :80; > http:1 10.1.0.1 | | ?Incomplete the port (unnamed) TCP 80
O5 another protocol               | web headless http:80; > http:1.udp 10.1.0.1 | | ?Incomplete found http UDP 1
O5 at a cluster IP                | web; > sql:1 10.1.0.1 | | web 10.0.0.1:80!; ?Incomplete found sql TCP 1
O5 one of two ports               | web http:80 sql:81; > http:1 10.1.0.1 | | web 10.0.0.1:80; web-sql 10.0.0.1:81!; ?Incomplete the port sql TCP 81
O5 nothing is ready               | web; > sql:1 10.1.0.1! | | web 10.0.0.1:80!
O5 it is served, and not ready    | web http:80 sql:81; > http:1 10.1.0.1; > sql:1 10.1.0.2! | | web 10.0.0.1:80; web-sql 10.0.0.1:81!
O9 by its host name               | db headless sql:1; > sql:1 10.1.0.1=db-0 10.1.0.2=db-1! | | db 10.1.0.1:1 [shop,sql,db-0]; db 10.1.0.2:1! [shop,sql,db-1]
O9 not twice                      | db headless sql:1 @service-tags=db-0; > sql:1 10.1.0.1=db-0 | | db 10.1.0.1:1 [shop,sql,db-0]
not ready, published              | web headless publish; > http:1 10.1.0.1! | | web 10.1.0.1:1
where it runs                     | web headless; > http:1 10.1.0.1@n1 | | web 10.1.0.1:1 {external-k8s-node-name=n1}

# address modes: load-balancer
O7 addresses before host names    | web lb=lb.example.org,203.0.113.1 | --address load-balancer | web 203.0.113.1:80; ?Incomplete lb.example.org
O7 only host names                | web lb=a.example.org,b.example.org | --address load-balancer | web a.example.org:80; web b.example.org:80
S no host name that DNS can carry | web lb=a..example,b.example.org | --address load-balancer | web b.example.org:80; ?InvalidAddress "a..example"
S none that leads to its client   | web lb=127.0.0.1,203.0.113.1 | --address load-balancer | web 203.0.113.1:80; ?InvalidAddress "127.0.0.1"
both families of a balancer       | web lb=203.0.113.1,2001:db8::1 | --address load-balancer | web 203.0.113.1:80; web 2001:db8::1:80
not yet there                     | web | --address load-balancer |
not yet there, by annotation      | web @address=load-balancer | | ?Incomplete
not ready                         | web lb=203.0.113.1; > http:1 10.1.0.1! | --address load-balancer | web 203.0.113.1:80!

# address modes: external-ip
each of them                      | web ext=198.51.100.1,198.51.100.2 | --address external-ip | web 198.51.100.1:80; web 198.51.100.2:80
none                              | web | --address external-ip |
none, by annotation               | web @address=external-ip | | ?Incomplete
S none that leads to its client   | web ext=169.254.169.254,255.255.255.255,198.51.100.1 | --address external-ip | web 198.51.100.1:80; ?InvalidAddress "169.254.169.254", "255.255.255.255"

# address modes: node-port
each node                         | web http:80/30080; node n1 192.0.2.1; node n2 192.0.2.2 | --address node-port | web 192.0.2.1:30080; web 192.0.2.2:30080
by annotation, the others not     | web http:80/30080 @address=node-port; api ip=10.0.0.2; node n1 192.0.2.1 | | web 192.0.2.1:30080; api 10.0.0.2:80
by annotation, not the option     | web http:80/30080 @address=cluster-ip | --address node-port | web 10.0.0.1:80
the node is told                  | web http:80/30080; node n1 192.0.2.1 | --address node-port | web 192.0.2.1:30080 {external-k8s-node-name=n1,port-http=80}
a node that is not ready          | web http:80/30080; node n1 192.0.2.1 !; node n2 192.0.2.2 | --address node-port | web 192.0.2.1:30080!; web 192.0.2.2:30080
no endpoint is ready              | web http:80/30080; > http:1 10.1.0.1!; node n1 192.0.2.1 | --address node-port | web 192.0.2.1:30080!
not ready, without checks         | web http:80/30080; > http:1 10.1.0.1!; node n1 192.0.2.1 ! | --address node-port --health none | web 192.0.2.1:30080
only ports that have one          | web http:80/30080 sql:81; node n1 192.0.2.1 | --address node-port | web 192.0.2.1:30080
each port its own                 | web http:80/30080 sql:81/30081; node n1 192.0.2.1 | --address node-port | web 192.0.2.1:30080; web-sql 192.0.2.1:30081
none has one, by annotation       | web @address=node-port; node n1 192.0.2.1 | | ?Incomplete
both families                     | web ip=10.0.0.1,fd00::7 http:80/30080; node n1 192.0.2.1 fd00::1 | --address node-port | web 192.0.2.1:30080; web fd00::1:30080
only the Service's family         | web http:80/30080; node n1 192.0.2.1 fd00::1 | --address node-port | web 192.0.2.1:30080
only the Service's other family   | web ip=fd00::7 http:80/30080; node n1 192.0.2.1 fd00::1 | --address node-port | web fd00::1:30080
no node has its family            | web http:80/30080 @address=node-port; node n1 fd00::1 | | ?Incomplete
no node at all                    | web http:80/30080; nodes | --address node-port |
nodes are not known               | web http:80/30080; api ip=10.0.0.2 @address=auto | --address node-port |
an address of two nodes, one up   | web http:80/30080; node n1 192.0.2.1 !; node n2 192.0.2.1 | --address node-port | web 192.0.2.1:30080 {external-k8s-node-name=n2}
an address of two nodes           | web http:80/30080; node n2 192.0.2.1; node n1 192.0.2.1 | --address node-port | web 192.0.2.1:30080 {external-k8s-node-name=n1}
local: nodes with a ready one     | web local http:80/30080; > http:1 10.1.0.1@n1 10.1.0.2@n2!; node n1 192.0.2.1; node n2 192.0.2.2; node n3 192.0.2.3 | --address node-port | web 192.0.2.1:30080
local: of each port               | web local http:80/30080 sql:81/30081; > http:1 10.1.0.1@n1; > sql:1 10.1.0.2@n2; node n1 192.0.2.1; node n2 192.0.2.2 | --address node-port | web 192.0.2.1:30080; web-sql 192.0.2.2:30081
local: of each family             | web local ip=10.0.0.1,fd00::7 http:80/30080; > http:1 fd00::2@n1; node n1 192.0.2.1 fd00::1 | --address node-port | web fd00::1:30080
local: none is ready              | web local http:80/30080; > http:1 10.1.0.1@n1!; node n1 192.0.2.1 | --address node-port |
local: none, without checks       | web local http:80/30080; > http:1 10.1.0.1@n1!; node n1 192.0.2.1 | --address node-port --health none |
local: not ready, published       | web local publish http:80/30080; > http:1 10.1.0.1@n1!; node n1 192.0.2.1 | --address node-port | web 192.0.2.1:30080
local: on no node                 | web local http:80/30080; node n1 192.0.2.1 | --address node-port |
local: its node is not ready      | web local http:80/30080; > http:1 10.1.0.1@n1; node n1 192.0.2.1 ! | --address node-port | web 192.0.2.1:30080!
O10 excluded nodes                | web http:80/30080; node n1 192.0.2.1 excluded; node n2 192.0.2.2 | --address node-port | web 192.0.2.2:30080
O10 all are excluded              | web http:80/30080 @address=node-port; node n1 192.0.2.1 excluded | | ?Incomplete
O10 the external address first    | web http:80/30080; node n1 192.0.2.1 ext:203.0.113.1; node n2 192.0.2.2 | --address node-port | web 203.0.113.1:30080; web 192.0.2.2:30080
O10 internal ones                 | web http:80/30080; node n1 192.0.2.1 ext:203.0.113.1; node n2 ext:203.0.113.2 | --address node-port --node-address internal | web 192.0.2.1:30080
O10 external ones                 | web http:80/30080; node n1 192.0.2.1 ext:203.0.113.1; node n2 192.0.2.2 | --address node-port --node-address external | web 203.0.113.1:30080
O10 by annotation                 | web http:80/30080 @node-address=internal; node n1 192.0.2.1 ext:203.0.113.1 | --address node-port | web 192.0.2.1:30080
O10 by annotation, none has one   | web http:80/30080 @address=node-port @node-address=external; node n1 192.0.2.1 | | ?Incomplete (external)
O11 draining, at endpoints        | web headless; > http:1 10.1.0.1^ | | web 10.1.0.1:1!
O11 draining, at a cluster IP     | web; > http:1 10.1.0.1^ 10.1.0.2! | | web 10.0.0.1:80
O11 draining, at a balancer       | web lb=203.0.113.1; > http:1 10.1.0.1^ | --address load-balancer | web 203.0.113.1:80
O11 draining, at an external IP   | web ext=198.51.100.1; > http:1 10.1.0.1^ | --address external-ip | web 198.51.100.1:80
O11 draining, at nodes            | web http:80/30080; > http:1 10.1.0.1^; node n1 192.0.2.1 | --address node-port | web 192.0.2.1:30080
O11 draining, at local nodes      | web local http:80/30080; > http:1 10.1.0.1^@n1 10.1.0.2@n2!; node n1 192.0.2.1; node n2 192.0.2.2 | --address node-port | web 192.0.2.1:30080
O11 a ready one before it         | web local http:80/30080; > http:1 10.1.0.1^@n1 10.1.0.2@n2; node n1 192.0.2.1; node n2 192.0.2.2 | --address node-port | web 192.0.2.2:30080
O11 another port's does not count | web http:80 sql:81; > http:1 10.1.0.1^; > sql:1 10.1.0.2 | | web 10.0.0.1:80; web-sql 10.0.0.1:81
local matters to nodes only       | web local; > http:1 10.1.0.1 | | web 10.0.0.1:80

# ports and their names
further ports                     | web http:80 metrics:9100 | | web 10.0.0.1:80 [shop,http]; web-metrics 10.0.0.1:9100 [shop,metrics]
an unnamed port                   | web :80; > :8080 10.1.0.1 | | web 10.0.0.1:80 [shop]
the primary by name               | web http:80 metrics:9100 @service-port=metrics | | web-http 10.0.0.1:80; web 10.0.0.1:9100
the primary by number             | web http:80 metrics:9100 @@service-port=9100 | | web-http 10.0.0.1:80; web 10.0.0.1:9100
O3 a primary that is not there    | web http:80 metrics:9100 @service-port=nope | | web 10.0.0.1:80; web-metrics 10.0.0.1:9100; ?InvalidAnnotation
O3 a number of none of its ports  | web http:80 metrics:9100 @service-port=4141 | | web 10.0.0.1:4141; web-metrics 10.0.0.1:9100
O3 its number at endpoints        | web headless @@service-port=8081; > http:8080 10.1.0.1; > http:8081 10.1.0.1! | | web 10.1.0.1:8081
O3 its number at nodes            | web http:80/30080 @service-port=4141; node n1 192.0.2.1 | --address node-port | web 192.0.2.1:4141
O3 the number of a port           | web headless http:80 sql:81 @service-port=81; > http:1 sql:2 10.1.0.1 | | web-http 10.1.0.1:1; web 10.1.0.1:2
O3 no number of a port            | web @service-port=0 | | web 10.0.0.1:80; ?InvalidAnnotation
O3 nor this                       | web @service-port=65536 | | web 10.0.0.1:80; ?InvalidAnnotation
O2 a protocol as a tag            | kube-dns dns:53.udp dns-tcp:53 | | kube-dns 10.0.0.1:53 [shop,dns,udp]; kube-dns-dns-tcp 10.0.0.1:53 [shop,dns-tcp]
O2 and in meta                    | kube-dns dns:53.udp dns-tcp:53 | | kube-dns 10.0.0.1:53 {external-k8s-protocol=udp}; kube-dns-dns-tcp 10.0.0.1:53 {external-k8s-protocol=}
O2 at endpoints, of its protocol  | d headless a:53.udp b:53; > a:1.udp b:2 10.1.0.1 | | d 10.1.0.1:1 [shop,a,udp]; d-b 10.1.0.1:2 [shop,b]
O2 SCTP                           | web m3ua:2905.sctp | | web 10.0.0.1:2905 [shop,m3ua,sctp]
ports as meta                     | web http:80 metrics:9100 | | web 10.0.0.1:80 {port-http=80,port-metrics=9100}; web-metrics 10.0.0.1:9100
no port                           | web noports | | ?Incomplete
readiness of each port            | web http:80 sql:81; > sql:1 10.1.0.1; > http:1 10.1.0.2! | | web 10.0.0.1:80!; web-sql 10.0.0.1:81

# names
by template                       | web http:80 sql:81 | --name-template {service}-{namespace} | web-shop 10.0.0.1:80; web-shop-sql 10.0.0.1:81
with the cluster                  | web | --name-template {cluster}-{service} --cluster eu | eu-web 10.0.0.1:80 {kube-consul-cluster=eu}
with the port                     | web http:80 sql:81 | --name-template {service}-{port} | web-http 10.0.0.1:80; web-sql 10.0.0.1:81
with an unnamed port              | web :80; > :1 10.1.0.1 | --name-template {service}-{port} | web-80 10.0.0.1:80
by annotation, trimmed            | web @service-name=~api~ | | api 10.0.0.1:80
by annotation, whatever template  | web http:80 sql:81 @service-name=api | --name-template x-{service} | api 10.0.0.1:80; api-sql 10.0.0.1:81
an empty one                      | web @service-name=~ | | ?InvalidAnnotation
O6 one that does not resolve      | web @service-name=a.b | | a.b 10.0.0.1:80; ?InvalidName
O6 nor does this                  | web @service-name=a~b | | a b 10.0.0.1:80; ?InvalidName
O6 these resolve                  | web @service-name=redis_cache; api ip=10.0.0.2 @service-name=_srv | | redis_cache 10.0.0.1:80; _srv 10.0.0.2:80
one of two bytes too many         | web @service-name=aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffggggg | | aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffggggg 10.0.0.1:80; ?InvalidName
a derived one that is too long    | web http:80 metrics:90 @service-name=aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffff | | aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffff 10.0.0.1:80; aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffff-metrics 10.0.0.1:90; ?InvalidName
consul is Consul's own            | consul | | ?InvalidName
consul, asked for                 | consul @service-name=consul | | consul 10.0.0.1:80
consul's further ports            | consul http:80 dns:53 | | consul-dns 10.0.0.1:53; ?InvalidName

# tags, meta, weight
tags                              | web @service-tags=a,b | | web 10.0.0.1:80 [shop,http,a,b]
tags of consul-k8s                | web @@service-tags=a,b | | web 10.0.0.1:80 [shop,http,a,b]
no tag twice                      | web @service-tags=a,shop,a,~http | | web 10.0.0.1:80 [shop,http,a]
meta                              | web @service-meta-team=a @@service-meta-team=b @@service-meta-tier=c | | web 10.0.0.1:80 {team=a,tier=c}
meta of ours                      | web | | web 10.0.0.1:80 {external-source=kubernetes,external-k8s-ns=shop,external-k8s-service=web,kube-consul-cluster=kubernetes}
meta that marks ownership         | web @service-meta-external-source=x | | web 10.0.0.1:80 {external-source=kubernetes}; ?InvalidAnnotation
meta wins over a port's           | web @service-meta-port-http=x | | web 10.0.0.1:80 {port-http=x}
O14 meta of Consul's own          | web @service-meta-consul-x=1 @service-meta-a=2 | | web 10.0.0.1:80 {a=2,consul-x=}; ?InvalidAnnotation
a weight                          | web @service-weight=7 | | web 10.0.0.1:80 *7
a weight of consul-k8s            | web @@service-weight=7 | | web 10.0.0.1:80 *7
no weight                         | web | | web 10.0.0.1:80 *1
a weight that is none             | web @service-weight=1 | | web 10.0.0.1:80 *1; ?InvalidAnnotation
an address that is none           | web @address=moon | | web 10.0.0.1:80; ?InvalidAnnotation
an annotation that is none        | web @servce-name=x | | web 10.0.0.1:80; ?InvalidAnnotation
one of consul-k8s we do not know  | web @@connect-inject=true | | web 10.0.0.1:80
ours before theirs                | web @service-name=a @@service-name=b | | a 10.0.0.1:80

# health
no endpoint                       | web; > | | web 10.0.0.1:80!
one of two is ready               | web; > http:1 10.1.0.1 10.1.0.2! | | web 10.0.0.1:80
none is ready                     | web; > http:1 10.1.0.1! 10.1.0.2! | | web 10.0.0.1:80!
none is ready, published          | web publish; > http:1 10.1.0.1! | | web 10.0.0.1:80
published, but there is none      | web publish; > | | web 10.0.0.1:80!
never a check                     | web; > | --health none | web 10.0.0.1:80
always a check                    | web headless; > http:1 10.1.0.1 10.1.0.2! | --health always | web 10.1.0.1:1+; web 10.1.0.2:1!

# whether it is registered
opted out                         | web @sync=false | |
opted out for consul-k8s          | web @@service-sync=f | |
ours before theirs                | web @sync=true @@service-sync=false | | web 10.0.0.1:80
not opted in                      | web | --default-sync false |
opted in                          | web @sync=1 | --default-sync false | web 10.0.0.1:80
opted in for consul-k8s           | web @@service-sync=t | --default-sync false | web 10.0.0.1:80
neither yes nor no                | web @sync=maybe | | web 10.0.0.1:80; ?InvalidAnnotation
O13 neither, and not by default   | web @@service-sync=yes @weight=1 | --default-sync false | ?InvalidAnnotation service-sync
O13 neither, and not selected     | web @sync=maybe | --default-sync false --deny-namespace shop |
what is wrong with one opted out  | web @sync=false @service-weight=x noports | |
only some namespaces              | web; other/api ip=10.0.0.2 | --namespace shop | web 10.0.0.1:80
several namespaces                | web; other/api ip=10.0.0.2; third/x ip=10.0.0.3 | --namespace shop --namespace third | web 10.0.0.1:80; x 10.0.0.3:80
not some namespaces               | web; other/api ip=10.0.0.2 | --deny-namespace shop | api 10.0.0.2:80
deny wins                         | web | --namespace shop --deny-namespace shop |
opting in opens no namespace      | web @sync=true | --deny-namespace shop |
selected                          | web label:app=web; api ip=10.0.0.2 | --selector app=web | web 10.0.0.1:80
selected by a set                 | web label:tier=a; api ip=10.0.0.2 label:tier=c | --selector tier~in~(a,b) | web 10.0.0.1:80
selected by absence               | web label:x=1; api ip=10.0.0.2 | --selector !x | api 10.0.0.2:80
ExternalName                      | web ExternalName | |
made by consul-k8s                | web label:consul=true | |
made by consul8s                  | web label:consul8s_source=consul | |

# consul8s, from Kubernetes to Consul
a name made elsewhere             | web label:consul8s_source=kubernetes @:consul8s/service.name=api @:domainName=api.example.org. | | api api.example.org:80 [shop,http]
all its annotations               | web http:80 sql:81 label:consul8s_source=kubernetes @:consul8s/service.name=api @:domainName=10.9.0.1 @:consul8s/service.port_name=sql @:consul8s/service.tags=a,~b @:consul8s/service.id=x/y | | api 10.9.0.1:81 [shop,sql,a, b]
its ID is kept                    | web label:consul8s_source=kubernetes @:consul8s/service.name=api @:domainName=fd00::1 @:consul8s/service.id=x/y | | api fd00::1:80 {consul8s-service-id=x/y}
whatever its endpoints are        | web label:consul8s_source=kubernetes @:consul8s/service.name=api @:domainName=x.example; > http:1 10.1.0.1! | | api x.example:80
without a name                    | web label:consul8s_source=kubernetes @:domainName=x.example; b ip=10.0.0.2 | | b 10.0.0.2:80; ?InvalidAnnotation consul8s/service.name
without an address                | web label:consul8s_source=kubernetes @:consul8s/service.name=api | | ?InvalidAnnotation domainName
several ports, none is named      | web http:80 sql:81 label:consul8s_source=kubernetes @:consul8s/service.name=api @:domainName=x.example | | ?InvalidAnnotation port_name
removed                           | web label:consul8s_source=kubernetes @:consul8s/service.remove_registration=TRUE | |
removed by nothing but that       | web label:consul8s_source=kubernetes @:consul8s/service.name=api @:domainName=x.example @:consul8s/service.remove_registration=1 | | api x.example:80
an ExternalName Service           | web ExternalName to=a.example label:consul8s_source=kubernetes @:consul8s/service.name=api @:domainName=x.example | | api x.example:80
a headless Service                | web headless label:consul8s_source=kubernetes @:consul8s/service.name=api @:domainName=x.example | | api x.example:80
one ID of two Services            | web label:consul8s_source=kubernetes @:consul8s/service.name=a @:domainName=x.example @:consul8s/service.id=i; b ip=10.0.0.2 label:consul8s_source=kubernetes @:consul8s/service.name=b @:domainName=y.example @:consul8s/service.id=i | | a x.example:80; b y.example:80
both labels of it                 | web label:consul8s_source=kubernetes label:registration=consul @:consul8s/service.name=api @:domainName=x.example | | api x.example:80
ours wins                         | web label:consul8s_source=kubernetes @:consul8s/service.name=api @:domainName=x.example @service-name=web @address=cluster-ip | | web 10.0.0.1:80
without its label                 | web @:consul8s/service.name=api @:domainName=x.example | | web 10.0.0.1:80
it opts in                        | web label:consul8s_source=kubernetes @:consul8s/service.name=api @:domainName=x.example | --default-sync false | api x.example:80
it opts out                       | web label:consul8s_source=kubernetes @:consul8s/service.name=api @:domainName=x.example @sync=false | |
its label joins no name           | web label:consul8s_source=kubernetes @:consul8s/service.name=api @:domainName=x.example; foreign api | | ?ForeignName
beside what it had registered     | web label:consul8s_source=kubernetes @:consul8s/service.name=api @:domainName=x.example @join=true; foreign api | | api x.example:80
the same, by option               | web label:consul8s_source=kubernetes @:consul8s/service.name=api @:domainName=x.example; foreign api | --join-existing always | api x.example:80
an address that answers nobody    | web label:consul8s_source=kubernetes @:consul8s/service.name=api @:domainName=a..b | | ?InvalidAnnotation domainName
where a tenant may not            | web label:consul8s_source=kubernetes @:consul8s/service.name=api @:domainName=x.example | --annotations service-tags | web 10.0.0.1:80; ?IgnoredAnnotation consul8s_source
I12 made for an import            | web @import=pg | |
O13 a label of consul8s' README   | web label:registration=consul @service-weight=x | | ?ImportLabel
O13 the same, opted out           | web label:registration=consul @sync=false | |
opting in does not help those     | web label:consul=true @sync=true | |
a label of the same name          | web label:consul=false | | web 10.0.0.1:80

# one name, two Services
the older one                     | web created=2; other/web ip=10.0.0.2 created=1 | | web 10.0.0.2:80; ?NameConflict
O8 of one age, by namespace       | web; other/web ip=10.0.0.2 | | web 10.0.0.2:80; ?NameConflict
O8 of one age, by name            | b @service-name=x; a ip=10.0.0.2 @service-name=x | | x 10.0.0.2:80; ?NameConflict
A2 a trusted namespace first      | web @service-name=pay; other/pay ip=10.0.0.2 created=-9 | --trusted-namespace shop | pay 10.0.0.1:80; ?NameConflict
A2 its further port, too          | web http:80 sql:81; other/web-sql ip=10.0.0.2 created=-9 | --trusted-namespace shop | web 10.0.0.1:80; web-sql 10.0.0.1:81; ?NameConflict
A2 among them the usual order     | web @service-name=pay; other/pay ip=10.0.0.2 | --trusted-namespace shop --trusted-namespace other | pay 10.0.0.2:80; ?NameConflict
A2 a suffix that it may not need  | web; web-shop ip=10.0.0.3; other/web-shop ip=10.0.0.2 created=-9 | --trusted-namespace shop --on-conflict suffix | web 10.0.0.1:80; web-shop 10.0.0.3:80; web-shop-other 10.0.0.2:80
its own name before an annotation | web created=2; api ip=10.0.0.2 created=1 @service-name=web | | web 10.0.0.1:80; ?NameConflict
an annotation before a port       | a http:80 b:81 created=1; c ip=10.0.0.2 created=2 @service-name=a-b | | a 10.0.0.1:80; a-b 10.0.0.2:80; ?NameConflict
its own name before a port        | a http:80 b:81 created=1; a-b ip=10.0.0.2 created=2 | | a 10.0.0.1:80; a-b 10.0.0.2:80; ?NameConflict
one that is opted out claims none | web @sync=false created=1; other/web ip=10.0.0.2 created=2 | | web 10.0.0.2:80
nor one of another namespace      | web created=1; other/web ip=10.0.0.2 created=2 | --deny-namespace shop | web 10.0.0.2:80
its template tells them apart     | web; other/web ip=10.0.0.2 | --name-template {service}-{namespace} | web-shop 10.0.0.1:80; web-other 10.0.0.2:80
merged                            | web; other/web ip=10.0.0.2 | --on-conflict merge | web 10.0.0.1:80 [shop,http]; web 10.0.0.2:80 [other,http]
merged, all that want it          | web; api ip=10.0.0.2 @service-name=web | --on-conflict merge | web 10.0.0.1:80; web 10.0.0.2:80
suffixed                          | web created=1; other/web ip=10.0.0.2 created=2 | --on-conflict suffix | web 10.0.0.1:80; web-other 10.0.0.2:80
suffixed, each port               | web http:80 sql:81 created=1; other/web http:80 sql:81 ip=10.0.0.2 created=2 | --on-conflict suffix | web 10.0.0.1:80; web-sql 10.0.0.1:81; web-other 10.0.0.2:80; web-sql-other 10.0.0.2:81
suffixed, and taken as well       | web created=1; other/web ip=10.0.0.2 created=2; web-other ip=10.0.0.3 created=3 | --on-conflict suffix | web 10.0.0.1:80; web-other 10.0.0.3:80; ?NameConflict
suffixed, nobody in the way       | web | --on-conflict suffix | web 10.0.0.1:80

# names that others hold
not joined                        | web; foreign web | | ?ForeignName
joined by option                  | web; foreign web | --join-existing always | web 10.0.0.1:80
N1 another cluster's bridge       | web; foreign web=eu | | ?ForeignName the cluster "eu"
N1 another sync of Kubernetes     | web; foreign web=kubernetes | | ?ForeignName
N1 joined, of Kubernetes          | web; api ip=10.0.0.2; foreign web=eu api=kubernetes | --join-existing kubernetes | web 10.0.0.1:80; api 10.0.0.2:80
N1 not joined, of others          | web; foreign web | --join-existing kubernetes | ?ForeignName
N1 joined by annotation           | web @join=true; foreign web=eu | | web 10.0.0.1:80
N1 not joined by annotation       | web @join=false; foreign web=eu | --join-existing kubernetes | ?ForeignName
joined by annotation              | web @join=true; foreign web | | web 10.0.0.1:80
not joined by annotation          | web @join=false; foreign web | --join-existing always | ?ForeignName
S Consul's own, by annotation     | web @service-name=Consul @join=true; foreign consul | | ?ForeignName see --join-existing
S Consul's own, by option         | web @service-name=consul @join=true; foreign consul | --join-existing always | consul 10.0.0.1:80
S the mark in an agent            | web @service-name=_KUBE-consul @join=true | --join-existing always | ?InvalidName
S another tool's mark             | web @service-meta-external-sync-source=katalog-sync | | web 10.0.0.1:80; ?InvalidAnnotation ownership
N4 by annotation, the other not   | a/db @service-name=postgres @join=true; test/postgres ip=10.0.0.2; foreign postgres | --on-conflict merge | postgres 10.0.0.1:80; ?ForeignName
N5 compared as Consul does        | web @service-name=apİ; api ip=10.0.0.2 | | api 10.0.0.2:80; ?InvalidName; ?NameConflict
N5 and beside machines            | web @service-name=bİlling; foreign billing | | ?ForeignName; ?InvalidName
N10 a tag that is a neighbour's   | dev/web @service-tags=prod,Prod,v2; prod/web ip=10.0.0.2 | --on-conflict merge | web 10.0.0.1:80 [dev,http,v2]; web 10.0.0.2:80 [prod,http]; ?Incomplete "prod", "Prod"
N10 also where one has the name   | dev/web @service-tags=prod; prod/web ip=10.0.0.2 created=9 | | web 10.0.0.1:80 [dev,http]; ?Incomplete "prod"; ?NameConflict
N10 a host name, a port's name    | dev/web headless prod:80; > prod:1 10.1.0.1=prod; prod/web ip=10.0.0.2 | --on-conflict merge | web 10.1.0.1:1 [dev]; web 10.0.0.2:80 [prod,http]; ?Incomplete
N10 no tag under a joined name    | web @join=true @service-tags=primary; foreign web | | web 10.0.0.1:80 [shop]; ?Incomplete "primary"
N10 but beside another cluster    | web @join=true @service-tags=primary; foreign web=eu | | web 10.0.0.1:80 [shop,http,primary]
N10 nor where the join came first | web @join=true @service-tags=primary | | web 10.0.0.1:80 [shop,http,primary]
N13 an annotation that counts     | web @service-weight=7 | --annotations service-weight | web 10.0.0.1:80 *7
N13 one that does not count       | web @join=true; foreign web | --annotations sync,service-name | ?ForeignName; ?IgnoredAnnotation kube-consul.io/join
N13 in a trusted namespace        | web @join=true; other/web @join=true; foreign web | --annotations sync --trusted-namespace shop --on-conflict merge | web 10.0.0.1:80; ?ForeignName; ?IgnoredAnnotation
N13 not registered, but told      | web @sync=true | --annotations service-name --default-sync false | ?IgnoredAnnotation
another name                      | web @service-name=api; foreign web | | api 10.0.0.1:80
only the port's name              | web http:80 sql:81; foreign web-sql | | web 10.0.0.1:80; ?ForeignName
the second does not get it either | web created=1; other/web ip=10.0.0.2 created=2; foreign web | | ?ForeignName; ?NameConflict
nor under a suffix of its own     | web created=1; foreign web | --on-conflict suffix | ?ForeignName
nor all of them                   | web; other/web ip=10.0.0.2; foreign web | --on-conflict merge | ?ForeignName; ?ForeignName

# PTR records
of a cluster IP                   | web | | web 10.0.0.1:80; ptr 10.0.0.1 web
of both families                  | web ip=10.0.0.1,fd00::7 | | web 10.0.0.1:80; web fd00::7:80; ptr 10.0.0.1 web; ptr fd00::7 web
of the primary port               | web http:80 sql:81 @service-port=sql | | web-http 10.0.0.1:80; web 10.0.0.1:81; ptr 10.0.0.1 web
none of a balancer's host name    | web lb=lb.example.org | --address load-balancer | web lb.example.org:80; noptr
of external IPs                   | web ext=198.51.100.1 | --address external-ip | web 198.51.100.1:80; ptr 198.51.100.1 web
S none that is merely claimed     | web ext=198.51.100.1 @address=external-ip | | web 198.51.100.1:80; noptr
S but in a trusted namespace      | web ext=198.51.100.1 @address=external-ip | --trusted-namespace shop | web 198.51.100.1:80; ptr 198.51.100.1 web
S nor with pods'                  | web ext=198.51.100.1 @address=external-ip | --reverse-dns all | web 198.51.100.1:80; noptr
S no node's at an external IP     | web ext=192.0.2.1,198.51.100.1; node n1 192.0.2.1 | --address external-ip | web 192.0.2.1:80; web 198.51.100.1:80; ptr 198.51.100.1 web
S no node's at a balancer         | web lb=192.0.2.1,203.0.113.1; node n1 192.0.2.1 | --address load-balancer --reverse-dns all | web 192.0.2.1:80; web 203.0.113.1:80; ptr 203.0.113.1 web
no pod's                          | web headless; > http:1 10.1.0.1 | | web 10.1.0.1:1; noptr
pods' too                         | web headless; > http:1 10.1.0.1 | --reverse-dns all | web 10.1.0.1:1; ptr 10.1.0.1 web
none                              | web | --reverse-dns off | web 10.0.0.1:80; noptr
no node's                         | web http:80/30080; node n1 192.0.2.1 | --address node-port --reverse-dns all | web 192.0.2.1:30080; noptr
N9 no pod's with a node's address | web headless; > http:1 10.1.0.1@n1 192.0.2.1@n1; node n1 192.0.2.1 | --reverse-dns all | web 10.1.0.1:1; web 192.0.2.1:1; ptr 10.1.0.1 web
N9 but where nodes are not known  | web headless; > http:1 192.0.2.1@n1 | --reverse-dns all | web 192.0.2.1:1; ptr 192.0.2.1 web
N9 a shared one, the older        | b ext=198.51.100.1; a ext=198.51.100.1 ip=10.0.0.2 created=2 | --address external-ip | a 198.51.100.1:80; b 198.51.100.1:80; ptr 198.51.100.1 b
N9 a shared one, of one age       | b ext=198.51.100.1; a ext=198.51.100.1 ip=10.0.0.2 | --address external-ip | a 198.51.100.1:80; b 198.51.100.1:80; ptr 198.51.100.1 a
N9 a cluster IP before others'    | kubernetes ip=10.96.0.1 created=9 @address=cluster-ip; a ext=10.96.0.1 ip=10.0.0.2 | --address external-ip | kubernetes 10.96.0.1:80; a 10.96.0.1:80; ptr 10.96.0.1 kubernetes
N9 a balancer before external IPs | b lb=192.0.2.9 created=9 @address=load-balancer; a ext=192.0.2.9 ip=10.0.0.2 | --address external-ip | b 192.0.2.9:80; a 192.0.2.9:80; ptr 192.0.2.9 b
N9 an external IP before pods     | b ext=10.1.0.1 created=9; a headless @address=endpoints; > http:1 10.1.0.1 | --address external-ip --reverse-dns all | b 10.1.0.1:80; a 10.1.0.1:1; ptr 10.1.0.1 b
N9 none for what does not resolve | web @service-name=a.b | | a.b 10.0.0.1:80; ?InvalidName; noptr
none for what is not registered   | web; foreign web | | ?ForeignName; noptr
while it is not ready, too        | web; > | | web 10.0.0.1:80!; ptr 10.0.0.1 web
"#;

/// What is wrong with a Service that has no annotation is not its annotations.
#[test]
fn no_service_without_annotations_has_an_invalid_one() {
    let rows = ROWS.lines().filter(|row| !row.contains('@') && !row.starts_with('#'));
    let wrong: Vec<&str> = rows.filter(|row| row.contains("Annotation")).collect();
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn services_and_options_give_these_records() {
    check_rows(ROWS);
}

/// Fails with all rows that do not give what they say.
pub(super) fn check_rows(rows: &str) {
    let rows = rows.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let failures: Vec<String> = rows.filter_map(|line| Row::read(line).failure()).collect();
    assert!(failures.is_empty(), "{} rows are wrong:\n{}", failures.len(), failures.join("\n"));
}

struct Row<'a> {
    line: &'a str,
    settings: Settings,
    objects: Vec<SeenObject>,
    /// Whether nodes are listed.
    has_nodes: bool,
    foreign: ForeignNames,
    result: Vec<&'a str>,
}

impl<'a> Row<'a> {
    fn read(line: &'a str) -> Self {
        let columns: Vec<&str> = line.split('|').collect();
        let [_, objects, options, result] = columns[..] else { panic!("not a row: {line}") };
        let parts = |text: &'a str| text.split(';').map(str::trim).filter(|part| !part.is_empty());
        let mut row = Self {
            line,
            settings: options_of(options),
            objects: Vec::new(),
            has_nodes: false,
            foreign: ForeignNames::default(),
            result: parts(result).collect(),
        };
        for part in parts(objects) {
            row.object(part);
        }
        row.complete_services();
        row.result.sort_unstable();
        row
    }

    fn object(&mut self, text: &str) {
        let mut words = text.split_whitespace();
        match words.next().expect("parts are not empty") {
            ">" => self.slice(words),
            "foreign" => self.foreign.extend(words.map(read_foreign)),
            "nodes" => self.has_nodes = true,
            "node" => {
                self.has_nodes = true;
                let name = words.next().expect("a node has a name");
                self.objects.push(SeenObject::Node(ObjectKey::new("", name), read_node(words)));
            }
            name => {
                let (namespace, name) = name.split_once('/').unwrap_or(("shop", name));
                let key = ObjectKey::new(namespace, name);
                let service = read_service(&key, words);
                self.objects.push(SeenObject::Service(key, service));
            }
        }
    }

    fn slice<'w>(&mut self, words: impl Iterator<Item = &'w str>) {
        let service = self.objects.iter().rev().find_map(|object| match object {
            SeenObject::Service(key, _) => Some(key.clone()),
            _ => None,
        });
        let service = service.expect("a slice stands after its Service");
        let mut slice = slice(&service.name, &[], &[]);
        let (mut ports, mut endpoints) = (Vec::new(), Vec::new());
        for word in words {
            if let Some(endpoint) = read_endpoint(word) {
                endpoints.push(endpoint);
            } else {
                let (name, number) = word.split_once(':').expect("neither an address nor a port");
                let (port, protocol) = read_number(number);
                ports.push(EndpointPort { name: name.into(), port, protocol });
            }
        }
        (slice.ports, slice.endpoints) = (ports.into(), endpoints.into());
        let name = format!("{}-{}", service.name, self.objects.len());
        let key = ObjectKey::new(service.namespace.clone(), name);
        self.objects.push(SeenObject::EndpointSlice(key, slice));
    }

    /// Gives a slice to each Service that has none.
    fn complete_services(&mut self) {
        let mut missing = Vec::new();
        let mut objects = self.objects.iter().peekable();
        while let Some(object) = objects.next() {
            if let SeenObject::Service(key, service) = object
                && !matches!(objects.peek(), Some(SeenObject::EndpointSlice(..)))
            {
                let ports = service.ports.iter().map(|port| EndpointPort {
                    name: port.name.clone().unwrap_or_default(),
                    port: port.port + 8000,
                    protocol: port.protocol,
                });
                let mut slice = slice(&key.name, &[], &[("10.1.0.1", true)]);
                slice.ports = ports.collect();
                missing.push(SeenObject::EndpointSlice(key.clone(), slice));
            }
        }
        drop(objects);
        self.objects.append(&mut missing);
    }

    /// What is wrong with the row, in whatever order its objects arrive.
    fn failure(&self) -> Option<String> {
        let orders = orders(self.objects.len());
        let listed = orders.iter().map(|order| (order, true));
        // Where nodes are never known, what comes before that they are needed is registered.
        let waits = self.settings.address == AddressMode::NodePort && !self.has_nodes;
        let one_by_one = orders.iter().filter(|_| !waits).map(|order| (order, false));
        listed.chain(one_by_one).find_map(|(order, is_list)| {
            let found = self.found(order, is_list);
            let how = if is_list { "listed" } else { "one by one" };
            let found = (found != self.result).then(|| found.join("; "));
            found.map(|found| format!("{}\n    found, {how} as {order:?}, {found}", self.line))
        })
    }

    fn found(&self, order: &[usize], is_list: bool) -> Vec<String> {
        let objects: Vec<&SeenObject> = order.iter().map(|place| &self.objects[*place]).collect();
        let mut simulation = Simulation::new(self.settings.clone());
        simulation.others_hold(self.foreign.clone());
        simulation.resync();
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
            if kind != Kind::Node || self.has_nodes {
                let of_kind = objects.iter().filter(|it| is_list && it.kind() == kind);
                simulation.list(kind, of_kind.map(|object| SeenObject::clone(object)));
            }
        }
        if !self.has_nodes && self.settings.reverse == PtrScope::All {
            // It would wait for them.
            let denied = Some("no permission".to_owned());
            simulation.bridge.handle_watch_failure(Kind::Node, denied, simulation.now);
        }
        for object in objects.into_iter().filter(|_| !is_list) {
            simulation.settle();
            simulation.seen(object.clone());
        }
        simulation.settle();
        let (bridge, cluster) = (&simulation.bridge, &self.settings.cluster);
        let mut found: Vec<String> =
            simulation.registrations.values().map(|it| self.shown(it)).collect();
        found.extend(bridge.problems().into_iter().map(|(_, _, it)| self.problem_shown(it)));
        if self.result.iter().any(|it| it.starts_with("ptr ")) {
            found.extend(simulation.kv.values().map(|entry| ptr_shown(&entry.record)));
        } else if self.result.contains(&"noptr") && simulation.kv.is_empty() {
            found.push("noptr".to_owned());
        }
        let ours = |id: &str| service_of_id(cluster, id).is_some();
        assert!(simulation.registrations.keys().all(|id| ours(id)), "{}", self.line);
        found.sort();
        found
    }

    /// A problem with as much of its message as the row shows.
    fn problem_shown(&self, problem: &Problem) -> String {
        let says = |it: &&&str| {
            let said = it.strip_prefix('?').and_then(|it| it.split_once(' '));
            said.is_some_and(|(reason, text)| {
                reason == problem.reason.as_str() && problem.message.contains(text)
            })
        };
        let shown = self.result.iter().find(says);
        shown.map_or_else(|| format!("?{}", problem.reason), ToString::to_string)
    }

    /// A registration with those details that the row shows of it.
    fn shown(&self, registration: &Registration) -> String {
        let Registration { service, address, port, tags, meta, weight, check, .. } = registration;
        let mark = match check {
            Check::None => "",
            Check::Passing => "+",
            Check::Critical => "!",
        };
        let plain = format!("{service} {address}:{port}{mark}");
        let wanted = self.result.iter().find_map(|it| it.strip_prefix(plain.as_str())?.get(1..));
        match wanted.map(|details| details.split_at(1.min(details.len()))) {
            Some(("[", _)) => format!("{plain} [{}]", tags.join(",")),
            Some(("*", _)) => format!("{plain} *{weight}"),
            Some(("{", pairs)) => {
                let keys =
                    pairs.trim_end_matches('}').split(',').filter_map(|it| it.split_once('='));
                let value = |key: &str| meta.get(key).unwrap_or_default();
                let pairs = keys.map(|(key, _)| format!("{key}={}", value(key)));
                format!("{plain} {{{}}}", pairs.collect::<Vec<_>>().join(","))
            }
            _ => plain,
        }
    }
}

fn ptr_shown(record: &PtrRecord) -> String {
    let (_, address) = record.key.split_once('/').expect("a PTR key has an address");
    let name = record.value.strip_suffix(".service.dc1.consul").expect("the zone is dc1.consul");
    format!("ptr {address} {name}")
}

fn options_of(text: &str) -> Settings {
    let mut settings = settings();
    let mut words = text.split_whitespace();
    while let Some(flag) = words.next() {
        let value = words.next().expect("the flag has a value").replace('~', " ");
        match flag {
            "--address" => settings.address = value.parse().unwrap(),
            "--annotations" => {
                let words = value.split(',').map(|word| word.parse::<Annotation>().unwrap());
                settings.annotations.allowed = Some(words.collect());
            }
            "--cluster" => settings.cluster = value.parse().unwrap(),
            "--default-sync" => settings.default_sync = value.parse().unwrap(),
            "--deny-namespace" => drop(settings.deny_namespaces.insert(value.into())),
            "--health" => settings.health = value.parse().unwrap(),
            "--join-existing" => settings.join_existing = value.parse().unwrap(),
            "--node-address" => settings.node_address = value.parse().unwrap(),
            "--node-port-nodes" => settings.node_port_nodes = Some(value.parse().unwrap()),
            "--service-type" => drop(settings.service_types.insert(value.parse().unwrap())),
            "--external-name" => settings.external_name = value.parse().unwrap(),
            "--extra-ports" => settings.extra_ports = value.parse().unwrap(),
            "--tag" => settings.tags.push(value),
            "--tag-from-label" => settings.label_tags.push(value.parse().unwrap()),
            "--meta-from-label" => settings.label_meta.push(value.parse().unwrap()),
            "--trusted-namespace" => {
                settings.annotations.trusted_namespaces.insert(value.into());
            }
            "--name-template" => settings.name_template = value.parse().unwrap(),
            "--namespace" => drop(settings.namespaces.insert(value.into())),
            "--on-conflict" => settings.on_conflict = value.parse().unwrap(),
            "--reverse-dns" => settings.reverse = value.parse().unwrap(),
            "--selector" => settings.selector = value.parse().unwrap(),
            _ => panic!("unknown option {flag}"),
        }
    }
    settings
}

/// All orders of so few objects, else two.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count > 4 {
        return vec![(0..count).collect(), (0..count).rev().collect()];
    }
    let mut orders = vec![vec![]];
    for place in 0..count {
        let longer = |order: &Vec<usize>| {
            let order = order.clone();
            (0..=place).map(move |at| {
                let mut order = order.clone();
                order.insert(at, place);
                order
            })
        };
        orders = orders.iter().flat_map(longer).collect();
    }
    orders
}

fn read_foreign(text: &str) -> (Box<str>, Holders) {
    let (name, holder) = text.split_once('=').unwrap_or((text, ""));
    let others = match holder {
        "" => Holder::Other,
        "kubernetes" => Holder::Kubernetes { cluster: None },
        cluster => Holder::Kubernetes { cluster: Some(cluster.into()) },
    };
    (name.into(), Holders { others, ours: false })
}

fn read_endpoint(word: &str) -> Option<Endpoint> {
    let (word, ready) = word.strip_suffix('!').map_or((word, true), |rest| (rest, false));
    let (word, node) = word.split_once('@').map_or((word, None), |(it, node)| (it, Some(node)));
    let (word, hostname) = word.split_once('=').map_or((word, None), |(it, is)| (it, Some(is)));
    let (address, draining) = word.strip_suffix('^').map_or((word, false), |rest| (rest, true));
    address.parse::<IpAddr>().is_ok().then(|| Endpoint {
        draining,
        hostname: hostname.map(Box::from),
        node: node.map(Arc::from),
        ..endpoint(address, ready && !draining)
    })
}

fn read_node<'w>(words: impl Iterator<Item = &'w str>) -> Node {
    let mut found = node(&[], true);
    for word in words {
        let (kind, address) = match word.strip_prefix("ext:") {
            Some(address) => (NodeAddressType::External, address),
            None => (NodeAddressType::Internal, word),
        };
        match address {
            "!" => found.ready = false,
            "excluded" => found.excluded = true,
            address => found.addresses.push((kind, ip(address))),
        }
    }
    found
}

fn read_service<'w>(key: &ObjectKey, words: impl Iterator<Item = &'w str>) -> Service {
    let mut service = service().build();
    service.uid = key.to_string().into();
    let default_ports = std::mem::take(&mut service.ports);
    let mut has_ports = true;
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let text = value.replace('~', " ");
        let addresses = || value.split(',').map(ip).collect();
        if let Some(name) = name.strip_prefix("@:") {
            service.annotations.insert(name.into(), text.into());
        } else if let Some(name) = name.strip_prefix("@@") {
            let name = format!("consul.hashicorp.com/{name}");
            service.annotations.insert(name.into(), text.into());
        } else if let Some(name) = name.strip_prefix('@') {
            service.annotations.insert(format!("kube-consul.io/{name}").into(), text.into());
        } else if let Some(label) = name.strip_prefix("label:") {
            service.labels.insert(label.into(), text.into());
        } else {
            match name {
                "ip" => service.cluster_ips = addresses(),
                "ext" => service.external_ips = addresses(),
                "lb" => service.load_balancer = value.split(',').map(Box::from).collect(),
                "created" => service.created = value.parse().unwrap(),
                "headless" => service.cluster_ips.clear(),
                "local" => service.external_traffic_local = true,
                "publish" => service.publish_not_ready = true,
                "noports" => has_ports = false,
                "to" => service.external_name = Some(text.into()),
                "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName" => {
                    service.kind = name.parse().unwrap();
                }
                port => service.ports.push(read_port(port)),
            }
        }
    }
    if has_ports && service.ports.is_empty() {
        service.ports = default_ports;
    }
    service
}

fn read_port(text: &str) -> ServicePort {
    let (name, numbers) = text.split_once(':').expect("a port is name:number");
    let (numbers, node_port) = numbers.split_once('/').unwrap_or((numbers, ""));
    let (number, protocol) = read_number(numbers);
    ServicePort { node_port: node_port.parse().ok(), protocol, ..port(name, number) }
}

fn read_number(text: &str) -> (u16, Protocol) {
    let (number, protocol) = text.split_once('.').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => panic!("no protocol: {other}"),
    };
    (number.parse().expect("a port has a number"), protocol)
}
