# What Consul's DNS may answer to everybody (acl.tokens.dns). A narrower service_prefix hides names.
node_prefix "" { policy = "read" }
service_prefix "" { policy = "read" }
query_prefix "" { policy = "read" }
