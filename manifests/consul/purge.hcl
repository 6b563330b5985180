# The least rights of purge, for a cluster of the name `kubernetes` (--cluster), with either sink. With
# another name, or with --node-name, change them here. With --owner consul-k8s the node of --node takes the
# place of these nodes (consul-k8s's own token will do). It is a token for one use by hand: delete it
# afterwards.

# The registrations, in the agent and on the synthetic nodes.
service_prefix "" { policy = "write" }

# Which nodes have the cluster's mark, and which others still have registrations of it.
node_prefix "" { policy = "read" }

# The synthetic nodes: the base node and one for each namespace. Not needed with --sink agent.
node "k8s-kubernetes" { policy = "write" }
node_prefix "k8s-kubernetes." { policy = "write" }

# Which of the nodes is the agent's. Without this its registrations count as another's until they
# have gone. Not needed with --sink catalog.
agent_prefix "" { policy = "read" }

# The PTR records: every one of their keys begins so.
key_prefix "0." { policy = "write" }

# Which Kubernetes cluster the name belongs to, and the lock.
key_prefix "kube-consul/kubernetes/" { policy = "write" }
