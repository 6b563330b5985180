# The least rights of the Consul agents of manifests/consul-agents (acl.tokens.agent). Their node
# names are those of the Kubernetes nodes, which may be any. What they register for others needs
# the others' tokens, not this one.

# Its own node.
node_prefix "" { policy = "write" }

# What the catalog has of its services: what it does not see there it writes again every minute.
service_prefix "" { policy = "read" }

# Leaving, before its pod is replaced.
agent_prefix "" { policy = "write" }
