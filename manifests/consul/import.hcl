# What `import` needs: to see the services that it imports, and their nodes. Narrow service_prefix to
# the names that the cluster may use; what is not allowed stays as it was and is reported.
service_prefix "" {
  policy = "read"
}
node_prefix "" {
  policy = "read"
}
