"""Programs under ptrace and seccomp: how they start, join, stop and are answered; what /proc says of them."""
