# The least rights of the Consul agent beside the bridge (acl.tokens.agent), whose node name
# begins with `kube-consul-`, as in manifests/base. What it registers for the bridge needs the
# bridge's token, not this one.

# Its own node.
node_prefix "kube-consul-" { policy = "write" }

# What the catalog has of its services: what it does not see there it writes again every minute,
# and never removes.
service_prefix "" { policy = "read" }
