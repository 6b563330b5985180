# The least rights of `kube-consul node` beside an agent of manifests/consul-agents. Pods may ask
# for any service's name: a narrower service_prefix limits them.
service_prefix "" { policy = "write" }

# What the agent says of itself, and whether the catalog shows what was registered.
agent_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }
