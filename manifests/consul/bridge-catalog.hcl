# The least rights of the bridge with the catalog sink (--sink catalog --leader-elect), for a
# cluster of the name `kubernetes` (--cluster). With another name, or with --node-name, change
# them here.

# Services are registered under the names that they have in Kubernetes.
service_prefix "" { policy = "write" }

# Which names others hold on any node, which must not be joined.
node_prefix "" { policy = "read" }

# The synthetic nodes: the base node and one for each namespace.
node "k8s-kubernetes" { policy = "write" }
node_prefix "k8s-kubernetes." { policy = "write" }

# The lock's session, on the base node. Without --leader-elect there is none.
session "k8s-kubernetes" { policy = "write" }

# The datacenter and the domain that PTR records end with: the right to ask the agent or
# server at the bridge's Consul address. Not needed with --datacenter and --dns-domain.
agent_prefix "" { policy = "read" }

# The reverse-DNS records: every one of their keys begins so.
key_prefix "0." { policy = "write" }

# Which Kubernetes cluster the name belongs to, and the lock.
key_prefix "kube-consul/kubernetes/" { policy = "write" }
