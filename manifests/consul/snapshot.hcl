# The rights of the CronJob that saves snapshots. A snapshot has every token in it, so Consul asks
# for no less: whoever has this token, or a snapshot, has everything.
acl = "write"
