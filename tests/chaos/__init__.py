"""What holds when processes die, links break and clients misbehave. Each test is bounded in time.

``scripts/test tests/faults --rounds 200`` goes on for about ten minutes.
"""
