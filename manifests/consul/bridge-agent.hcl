# The least rights of the bridge with the agent sink (--sink agent), for a cluster of the name
# `kubernetes` (--cluster) and agents whose node names begin with `kube-consul-`, as in
# manifests/base. With others, change them here.

# Services are registered under the names that they have in Kubernetes.
service_prefix "" { policy = "write" }

# What the catalog has on the agent's node; and which names others hold on any node, which must
# not be joined.
node_prefix "" { policy = "read" }

# What the agent says of itself: its datacenter and domain end the PTR records, and by its
# node the bridge sees that the catalog has what the agent was given.
agent_prefix "kube-consul-" { policy = "read" }

# The reverse-DNS records: every one of their keys begins so.
key_prefix "0." { policy = "write" }

# Which Kubernetes cluster the name belongs to.
key "kube-consul/kubernetes/owner" { policy = "write" }
