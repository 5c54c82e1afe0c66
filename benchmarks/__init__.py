"""What ClawProxy costs, measured beside what it is compared with, in one run on one machine.

Rule 1: an absolute figure says nothing on a shared machine: every claim is a ratio of interleaved rounds, the best of each.
Rule 2: what measures costs less than what is measured: the provider and the load generator are C (`provider.c`, `load.c`), and a
        result says when they were the limit.
Rule 3: an answer that is not checked was not given: the load generator counts tokens and fails on the first wrong answer.
Rule 4: the gateway is `clawproxy serve` as anybody starts it: the default pipeline, ledger and audit on, one worker.
"""
