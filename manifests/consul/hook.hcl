# The least rights of the registration hook (register and deregister), for the service `web`. Write
# one for each service: a token that may write another's could take its name.

# Registering and removing the instances.
service "web" { policy = "write" }

# Seeing when the catalog shows the change. Without this the hook does not wait for it: clients may
# see the change some milliseconds after it has ended.
node_prefix "" { policy = "read" }

# Telling the instance on its own agent from one that an earlier owner of its address has left on
# another. Without this any instance of its ID counts as seen.
agent_prefix "" { policy = "read" }
