"""A scenario of one tenant, of which many tests change a line."""

ONE = """
[machine]
profile = "icelake"
epc = "64M"
[[cgroup]]
path = "/a"
max = "{limit}"
[[tenant]]
name = "t"
cgroup = "/a"
size = "8M"
accesses = 100_000
access_ns = 100
workload = {{ pattern = "{pattern}" }}
"""
