# The least rights of a Consul server of manifests/consul-servers (acl.tokens.agent), whose node
# name begins with `consul-server-`. Its probe and its preStop hook use the same token.

# Its own node.
node_prefix "consul-server-" { policy = "write" }

# What the catalog has of its services (there are none: without this it could not know).
service_prefix "" { policy = "read" }

# Leaving, before its pod is replaced.
agent_prefix "consul-server-" { policy = "write" }

# Autopilot's view: whether it votes, and whether the others do. And handing over the lead.
operator = "write"
