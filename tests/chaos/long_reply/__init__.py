"""A long streamed reply, to many subscribers who come and go and are slow.

    $ python -m tests.chaos.long_reply --store sqlite --publisher celery
    50,000 pieces in 250.4 s, 259,871 characters, 0 kills
    100 of 100 subscribers have the whole text; 3,410 connections, 412,345 notifications
    server: 61.2 s of CPU; resident 48 MiB before, 61 MiB at most

A real server process, a Celery worker (or ``run_job``) whose job calls ``delta()`` for each piece,
and subscribers of every kind. The text of each is compared with the original.
``tests/chaos/test_long_reply.py`` runs a short one.
"""
