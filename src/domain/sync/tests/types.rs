//! Types of Services in each address mode, and what the operator chooses and adds: rows of the form
//! that [`super::table`] explains.

use super::table::check_rows;

/// What consul-k8s' catalog sync (1.8) registers of each type is `--address by-type`. Where it
/// differs, the row says `not theirs`: it registers a `NodePort` Service's external IPs at the node port,
/// where nothing listens on them; an instance of a node for each endpoint on it; further ports not at
/// all; and a load balancer's host names beside its addresses.
#[test]
fn each_type_in_each_mode() {
    check_rows(
        r"
# ClusterIP
in by-type: its endpoints         | web; > http:8080 10.1.0.1 10.1.0.2! | --address by-type | web 10.1.0.1:8080; web 10.1.0.2:8080!
by-type, no endpoint              | web; > | --address by-type |
by-type, external IPs             | web ext=198.51.100.1; > http:8080 10.1.0.1 | --address by-type | web 198.51.100.1:80
by-type, two external IPs         | web ext=198.51.100.1,198.51.100.2 | --address by-type | web 198.51.100.1:80; web 198.51.100.2:80
by-type, external IPs, not ready  | web ext=198.51.100.1; > http:8080 10.1.0.1! | --address by-type | web 198.51.100.1:80!
by-type, a further port           | web http:80 sql:81; > http:1 sql:2 10.1.0.1 | --address by-type | web 10.1.0.1:1; web-sql 10.1.0.1:2
by-type, the first port only      | web http:80 sql:81; > http:1 sql:2 10.1.0.1 | --address by-type --extra-ports off | web 10.1.0.1:1
by-type, the named port only      | web http:80 sql:81 @@service-port=sql; > http:1 sql:2 10.1.0.1 | --address by-type --extra-ports off | web 10.1.0.1:2
by-type, a number                 | web @@service-port=9; > http:1 10.1.0.1 | --address by-type | web 10.1.0.1:9
by-type, of both families         | web ip=10.0.0.1,fd00::7; > http:1 10.1.0.1; > http:1 fd00::1 | --address by-type | web 10.1.0.1:1; web fd00::1:1
auto                              | web ClusterIP ext=198.51.100.1 | | web 10.0.0.1:80
auto, not ready                   | web ClusterIP; > http:8080 10.1.0.1! | | web 10.0.0.1:80!
cluster-ip                        | web ClusterIP; > | --address cluster-ip | web 10.0.0.1:80!
endpoints                         | web ClusterIP; > http:8080 10.1.0.1 | --address endpoints | web 10.1.0.1:8080
node-port                         | web ClusterIP; node n1 192.0.2.1 | --address node-port |
load-balancer                     | web ClusterIP | --address load-balancer |
external-ip                       | web ClusterIP ext=198.51.100.1 | --address external-ip | web 198.51.100.1:80
external-ip, none                 | web ClusterIP | --address external-ip |

# headless
by-type                           | web headless; > http:8080 10.1.0.1 | --address by-type | web 10.1.0.1:8080
by-type, not ready                | web headless; > http:8080 10.1.0.1! | --address by-type | web 10.1.0.1:8080!
by-type, external IPs             | web headless ext=198.51.100.1; > http:8080 10.1.0.1 | --address by-type | web 198.51.100.1:80
by-type, without ports            | web headless noports; > 10.1.0.1 | --address by-type | web 10.1.0.1:0
cluster-ip                        | web headless; > http:8080 10.1.0.1 | --address cluster-ip |
node-port                         | web headless; > http:8080 10.1.0.1; node n1 192.0.2.1 | --address node-port |
load-balancer                     | web headless; > http:8080 10.1.0.1 | --address load-balancer |
external-ip                       | web headless ext=198.51.100.1; > http:8080 10.1.0.1 | --address external-ip | web 198.51.100.1:80

# NodePort
by-type: nodes with an endpoint   | web NodePort http:80/30080; > http:1 10.1.0.1@n1; node n1 192.0.2.1; node n2 192.0.2.2 | --address by-type | web 192.0.2.1:30080
by-type, two on one node          | web NodePort http:80/30080; > http:1 10.1.0.1@n1 10.1.0.2@n1; node n1 192.0.2.1 | --address by-type | web 192.0.2.1:30080
by-type, two on two nodes         | web NodePort http:80/30080; > http:1 10.1.0.1@n1 10.1.0.2@n2; node n1 192.0.2.1; node n2 192.0.2.2 | --address by-type | web 192.0.2.1:30080; web 192.0.2.2:30080
by-type, one not ready            | web NodePort http:80/30080; > http:1 10.1.0.1@n1 10.1.0.2@n2!; node n1 192.0.2.1; node n2 192.0.2.2 | --address by-type | web 192.0.2.1:30080
by-type, none ready               | web NodePort http:80/30080; > http:1 10.1.0.1@n1!; node n1 192.0.2.1 | --address by-type |
by-type, no endpoint              | web NodePort http:80/30080; >; node n1 192.0.2.1 | --address by-type |
by-type, all nodes                | web NodePort http:80/30080; > http:1 10.1.0.1@n1; node n1 192.0.2.1; node n2 192.0.2.2 | --address by-type --node-port-nodes all | web 192.0.2.1:30080; web 192.0.2.2:30080
by-type, local                    | web NodePort local http:80/30080; > http:1 10.1.0.1@n1; node n1 192.0.2.1; node n2 192.0.2.2 | --address by-type --node-port-nodes all | web 192.0.2.1:30080
by-type, its external address     | web NodePort http:80/30080; > http:1 10.1.0.1@n1; node n1 192.0.2.1 ext:203.0.113.1 | --address by-type | web 203.0.113.1:30080
by-type, its internal address     | web NodePort http:80/30080; > http:1 10.1.0.1@n1; node n1 192.0.2.1 ext:203.0.113.1 | --address by-type --node-address internal | web 192.0.2.1:30080
by-type, only external ones       | web NodePort http:80/30080; > http:1 10.1.0.1@n1; node n1 192.0.2.1 | --address by-type --node-address external |
by-type, not theirs: external IPs | web NodePort ext=198.51.100.1 http:80/30080; > http:1 10.1.0.1@n1; node n1 192.0.2.1 | --address by-type | web 198.51.100.1:80
by-type, a further port           | web NodePort http:80/30080 sql:81/30081; > http:1 sql:2 10.1.0.1@n1; node n1 192.0.2.1 | --address by-type | web 192.0.2.1:30080; web-sql 192.0.2.1:30081
by-type, an endpoint of no node   | web NodePort http:80/30080; > http:1 10.1.0.1; node n1 192.0.2.1 | --address by-type |
auto                              | web NodePort http:80/30080; node n1 192.0.2.1 | | web 10.0.0.1:80
endpoints                         | web NodePort http:80/30080; > http:8080 10.1.0.1 | --address endpoints | web 10.1.0.1:8080
node-port                         | web NodePort http:80/30080; > http:1 10.1.0.1@n1; node n1 192.0.2.1; node n2 192.0.2.2 | --address node-port | web 192.0.2.1:30080; web 192.0.2.2:30080
node-port, with endpoints         | web NodePort http:80/30080; > http:1 10.1.0.1@n1; node n1 192.0.2.1; node n2 192.0.2.2 | --address node-port --node-port-nodes with-endpoints | web 192.0.2.1:30080
load-balancer                     | web NodePort http:80/30080 | --address load-balancer |
external-ip                       | web NodePort http:80/30080 ext=198.51.100.1 | --address external-ip | web 198.51.100.1:80

# LoadBalancer
by-type: its address              | web LoadBalancer http:80/30080 lb=203.0.113.1; > http:1 10.1.0.1@n1 | --address by-type | web 203.0.113.1:80
by-type, its host name            | web LoadBalancer lb=lb.example.org | --address by-type | web lb.example.org:80
by-type, not theirs: host names   | web LoadBalancer lb=lb.example.org,203.0.113.1 | --address by-type | web 203.0.113.1:80; ?Incomplete lb.example.org
by-type, two addresses            | web LoadBalancer lb=203.0.113.1,203.0.113.2 | --address by-type | web 203.0.113.1:80; web 203.0.113.2:80
by-type, external IPs             | web LoadBalancer ext=198.51.100.1 lb=203.0.113.1 | --address by-type | web 198.51.100.1:80
by-type, not ready                | web LoadBalancer lb=203.0.113.1; > http:1 10.1.0.1! | --address by-type | web 203.0.113.1:80!
by-type, asked for its endpoints  | web LoadBalancer lb=203.0.113.1 @address=endpoints; > http:1 10.1.0.1 | --address by-type | web 10.1.0.1:1
auto                              | web LoadBalancer lb=203.0.113.1 | | web 10.0.0.1:80
endpoints                         | web LoadBalancer lb=203.0.113.1; > http:1 10.1.0.1 | --address endpoints | web 10.1.0.1:1
node-port                         | web LoadBalancer http:80/30080 lb=203.0.113.1; node n1 192.0.2.1 | --address node-port | web 192.0.2.1:30080
load-balancer                     | web LoadBalancer lb=203.0.113.1 | --address load-balancer | web 203.0.113.1:80
external-ip                       | web LoadBalancer lb=203.0.113.1 ext=198.51.100.1 | --address external-ip | web 198.51.100.1:80

# ExternalName
not without the option            | db ExternalName headless to=db.example.org sql:5432 | |
an alias                          | db ExternalName headless to=db.example.org sql:5432 | --external-name true | db db.example.org:5432
in each mode                      | db ExternalName headless to=db.example.org sql:5432 | --external-name true --address by-type | db db.example.org:5432
whatever the annotation           | db ExternalName headless to=db.example.org sql:5432 @address=cluster-ip | --external-name true | db db.example.org:5432
without ports, at none            | db ExternalName headless noports to=db.example.org | --external-name true | db db.example.org:0
the port that is asked for        | db ExternalName headless noports to=db.example.org @service-port=5432 | --external-name true | db db.example.org:5432
without the root's dot            | db ExternalName headless noports to=db.example.org. | --external-name true | db db.example.org:0
nobody watches over it            | db ExternalName headless to=db.example.org sql:1; > sql:1 10.1.0.1! | --external-name true | db db.example.org:1
never one of Consul's names       | db ExternalName headless noports to=db.service.Consul. | --external-name true |
never one that was imported       | db ExternalName headless noports to=db.example.org label:consul=true | --external-name true |
nor one that import made          | db ExternalName headless noports to=db.example.org @import=db | --external-name true |
to nothing                        | db ExternalName headless noports | --external-name true |
no PTR record                     | db ExternalName headless noports to=192.0.2.77 | --external-name true --reverse-dns all | db 192.0.2.77:0; noptr
",
    );
}

#[test]
fn the_operator_selects_types_and_ports_and_adds_tags_and_meta() {
    check_rows(
        r"
# --service-type
of this type                      | web NodePort | --service-type NodePort | web 10.0.0.1:80
of another                        | web NodePort; api LoadBalancer ip=10.0.0.2 | --service-type LoadBalancer | api 10.0.0.2:80
of one of two                     | web ClusterIP; api NodePort ip=10.0.0.2 | --service-type NodePort --service-type LoadBalancer | api 10.0.0.2:80
headless is ClusterIP             | web headless; > http:1 10.1.0.1 | --service-type ClusterIP | web 10.1.0.1:1
an annotation does not change it  | web ClusterIP @sync=true | --service-type NodePort |

# --extra-ports
the first alone                   | web http:80 sql:81 | --extra-ports off | web 10.0.0.1:80
the one that is asked for         | web http:80 sql:81 @service-port=sql | --extra-ports off | web 10.0.0.1:81
also where names tell them apart  | web http:80 sql:81 | --extra-ports off --name-template {service}-{port} | web-http 10.0.0.1:80
so no other Service is in its way | web http:80 sql:81 created=1; web-sql ip=10.0.0.2 created=2 | --extra-ports off | web 10.0.0.1:80; web-sql 10.0.0.2:80

# --tag
after the namespace               | web @service-tags=v2 | --tag k8s --tag eu | web 10.0.0.1:80 [shop,k8s,eu,http,v2]
not twice                         | web @service-tags=k8s | --tag shop --tag k8s | web 10.0.0.1:80 [shop,k8s,http]
whoever else has the name         | web @join=true; foreign web | --tag k8s | web 10.0.0.1:80 [shop,k8s]
also a neighbour's namespace      | dev/web; prod/web ip=10.0.0.2 | --tag prod --on-conflict merge | web 10.0.0.1:80 [dev,prod,http]; web 10.0.0.2:80 [prod,http]

# --tag-from-label
its value                         | web label:team=payments | --tag-from-label team | web 10.0.0.1:80 [shop,http,payments]
in a tag                          | web label:app/version=1.2 | --tag-from-label app/version=v{value} | web 10.0.0.1:80 [shop,http,v1.2]
before those asked for            | web label:team=payments @service-tags=a | --tag-from-label team | web 10.0.0.1:80 [shop,http,payments,a]
without the label                 | web | --tag-from-label team | web 10.0.0.1:80 [shop,http]
not a neighbour's                 | dev/web label:team=prod; prod/web ip=10.0.0.2 | --on-conflict merge --tag-from-label team | web 10.0.0.1:80 [dev,http]; web 10.0.0.2:80 [prod,http]; ?Incomplete no tag

# --meta-from-label
under its own key                 | web label:team=payments | --meta-from-label team | web 10.0.0.1:80 {team=payments}
under another                     | web label:app/version=1.2 | --meta-from-label app/version=version | web 10.0.0.1:80 {version=1.2}
the annotation wins               | web label:team=payments @service-meta-team=core | --meta-from-label team | web 10.0.0.1:80 {team=core}
",
    );
}
